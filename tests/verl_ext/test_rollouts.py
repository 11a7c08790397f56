"""Rollouts, rows of the data set and the sampler's stops; no Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from caopd_verl.data.additions import generate
from caopd_verl.errors import ConfigError
from caopd_verl.verifiers import get_verifier
from tests.groups import make_group

EXAMPLES = generate(n=4, seed=0, split="train")


def test_recorded_rollouts_are_read_back_as_they_were(verl_on_cpu, tiny_tokenizer, tmp_path):
    from caopd_verl.verl_ext.rollout import read_groups, write_groups

    groups = [
        make_group(tiny_tokenizer, 0, [True, False]),
        make_group(tiny_tokenizer, 1, [False, False]),
    ]
    write_groups(groups, str(tmp_path), 7)
    assert read_groups(str(tmp_path), 7) == groups
    with pytest.raises(ConfigError, match="no recorded rollouts for step 8") as caught:
        read_groups(str(tmp_path), 8)
    assert caught.value.where == "caopd.rollout.replay_path"


def test_an_example_survives_verls_data_set(verl_on_cpu):
    from caopd_verl.data import to_verl_rows
    from caopd_verl.verl_ext.dataset import example_of

    for example, row in zip(EXAMPLES, to_verl_rows(EXAMPLES), strict=True):
        found = example_of({**row, "raw_prompt": row["prompt"]})
        assert (found.id, found.messages, found.answer) == (
            example.id,
            example.messages,
            example.answer,
        )
        assert (found.verifier, found.source, found.where) == (
            example.verifier,
            example.source,
            example.where,
        )


def test_one_verifier_serves_reward_and_p_hat():
    from caopd_verl.verl_ext.reward import compute_score

    example = EXAMPLES[0]
    for text in (f"{example.answer}\nConfidence: 0.7", "wrong", f"{example.answer}"):
        score = compute_score(example.source, text, example.answer, {"verifier": example.verifier})
        assert score["score"] == float(get_verifier("arithmetic")(text, example.answer).correct)
        assert score["format"] == float("Confidence" in text)
    assert score["confidence"] is None


@pytest.mark.parametrize(
    ("n", "servers", "sizes"),
    [(32, 4, [8] * 4), (32, 1, [16, 16]), (3, 4, [1] * 3), (70, 4, [16] * 4 + [6])],
)
def test_every_server_gets_a_call_and_none_more_prompts_than_allowed(
    verl_on_cpu, n, servers, sizes
):
    from caopd_verl.verl_ext.rollout import GroupRollouts

    rollouts = GroupRollouts(
        [None] * servers, None, eot_id=0, chat_kwargs={}, prompts_per_request=16
    )
    size = rollouts.prompts_per_call(n)
    assert [min(size, n - start) for start in range(0, n, size)] == sizes


def test_sampling_stops_at_the_ids_that_training_takes_for_stops(verl_on_cpu, tmp_path):
    import json

    from caopd_verl.verl_ext.dataset import stop_ids_of

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "eos_token_id": 7}))
    tokenizer = SimpleNamespace(eos_token_id=5)
    assert stop_ids_of(str(tmp_path), tokenizer, trust_remote_code=False) == (5, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert stop_ids_of(str(tmp_path), tokenizer, trust_remote_code=False) == (5, 8, 9)


def test_seeds_of_neighbouring_prompts_do_not_overlap(verl_on_cpu):
    """vLLM draws a prompt's n samples with n seeds in a row."""
    from caopd_verl.verl_ext.rollout import prompt_seeds

    n = 8
    first, second = prompt_seeds(7, 0, 4, n), prompt_seeds(7, 4, 4, n)
    used = [seed + sample for seed in (*first, *second) for sample in range(n)]
    assert len(set(used)) == len(used)
    assert prompt_seeds(2**31 - 1, 0, 2, n)[1] == n - 1  # within vLLM's range
