"""The trainer's step without Ray: order of operations, batches without a teacher; only the actor boundary is faked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from caopd_verl.config import CaopdConfig, ContextConfig
from caopd_verl.core.revise import find_eot_id
from caopd_verl.data.additions import generate
from caopd_verl.errors import CaopdError, ConfigError, TeacherContextError
from caopd_verl.methods.method import Setting
from caopd_verl.types import Rollout, RolloutGroup
from caopd_verl.verifiers import get_verifier

EXAMPLES = generate(n=4, seed=0, split="train")


@pytest.fixture
def make_group(tiny_tokenizer):
    eot = find_eot_id(tiny_tokenizer)

    def make(index: int, right: list[bool]) -> RolloutGroup:
        example, rollouts = EXAMPLES[index], []
        for ok in right:
            text = f"{example.answer if ok else 10**6}\nConfidence: 0.90"
            ids = (*tiny_tokenizer.encode(text, add_special_tokens=False), eot)
            verdict = get_verifier("arithmetic")(text, example.answer)
            rollouts.append(Rollout(ids, (-0.1,) * len(ids), text, verdict, truncated=False))
        prompt = tiny_tokenizer.apply_chat_template(
            example.messages, tokenize=False, add_generation_prompt=True
        )
        ids = tiny_tokenizer.encode(prompt, add_special_tokens=False)
        return RolloutGroup(f"1-{index}", example, tuple(ids), tuple(rollouts))

    return make


@pytest.fixture
def make_trainer(verl_on_cpu, tiny_tokenizer, monkeypatch):
    """A trainer whose rollouts, queue and workers are recorded calls."""
    from caopd_verl.verl_ext import codec
    from caopd_verl.verl_ext.trainer import CaopdTrainer

    def make(groups: list[RolloutGroup], **config):
        trainer = object.__new__(CaopdTrainer)
        trainer.calls = []

        def record(name, result=None):
            def call(*args, **kwargs):
                trainer.calls.append((name, args, kwargs))
                return result(*args) if callable(result) else result

            return call

        trainer.caopd = CaopdConfig(**{"context": ContextConfig(max_tokens=128), **config})
        trainer.setting = Setting(trainer.caopd, tiny_tokenizer, find_eot_id(tiny_tokenizer), 48)
        trainer.chat_kwargs, trainer.global_steps = {}, 3
        actor = SimpleNamespace(ppo_mini_batch_size=len(groups), ppo_epochs=1)
        trainer.config = SimpleNamespace(
            actor_rollout_ref=SimpleNamespace(actor=actor),
            data=SimpleNamespace(train_batch_size=len(groups)),
        )
        trainer._generate = record("generate", groups)
        trainer.on_sample_end = record("sample_end")
        trainer._balance_batch = record("balance", lambda batch: batch)
        trainer._put_old_log_probs = record("old_log_probs")
        trainer._update_actor = record("update", lambda batch: batch)
        monkeypatch.setattr(codec, "put", record("put", "the batch"))
        monkeypatch.setattr(codec, "put_nothing", record("put_nothing", "no batch"))
        return trainer

    return make


def step(trainer) -> dict:
    metrics: dict = {}
    trainer._step_once(metrics, {}, 4)
    return metrics


def test_t20_a_step_runs_in_the_order_of_the_pipeline(make_trainer, make_group):
    trainer = make_trainer([make_group(0, [True, True, False]), make_group(1, [False] * 3)])
    metrics = step(trainer)
    assert [name for name, _, _ in trainer.calls] == [
        "generate",
        "sample_end",
        "put",
        "balance",
        "update",
    ]
    assert metrics["rows/trained"] == 3 and metrics["target/groups_none"] == 0.5


def test_t19_old_log_probs_are_taken_on_the_revised_rows_where_a_step_has_several_mini_batches(
    make_trainer, make_group
):
    trainer = make_trainer([make_group(0, [True, True]), make_group(1, [True, True])])
    trainer.config.actor_rollout_ref.actor.ppo_mini_batch_size = 1
    step(trainer)
    assert [name for name, _, _ in trainer.calls][2:] == [
        "put",
        "balance",
        "old_log_probs",
        "update",
    ]


@pytest.mark.parametrize(
    ("mini_batch", "epochs", "shares"), [(2, 1, 1), (1, 1, 2), (2, 3, 1), (1, 3, 2)]
)
def test_a_mini_batch_is_scaled_by_its_share_of_one_pass(
    make_trainer, make_group, mini_batch, epochs, shares
):
    """Further passes over the same rows do not make each update's loss larger; they need old log-probs."""
    trainer = make_trainer([make_group(0, [True, True]), make_group(1, [True, True])])
    actor = trainer.config.actor_rollout_ref.actor
    actor.ppo_mini_batch_size, actor.ppo_epochs = mini_batch, epochs
    assert trainer._mini_batches == shares
    step(trainer)
    assert ("old_log_probs" in [name for name, _, _ in trainer.calls]) == (shares * epochs > 1)


def test_t20_what_goes_to_the_workers_is_built_from_the_revised_ids(
    make_trainer, make_group, tiny_tokenizer
):
    group = make_group(0, [True, True, False, False])
    trainer = make_trainer([group])
    step(trainer)
    rows, fields, at = next(args for name, args, _ in trainer.calls if name == "put")
    assert at == 3 and [row.key for row in rows] == [f"1-0_{i}_0" for i in range(4)]
    for rollout, own, teacher in zip(
        group.rollouts,
        fields["input_ids"].unbind(),
        fields["teacher_input_ids"].unbind(),
        strict=True,
    ):
        text, shown = tiny_tokenizer.decode(own.tolist()), tiny_tokenizer.decode(teacher.tolist())
        assert text.endswith("Confidence: 0.50<|im_end|>") and rollout.text.endswith("0.90")
        assert shown.count("Confidence: 0.50") == 2 and "0.90" not in shown + text


@pytest.mark.parametrize("switch", ["error", "skip"])
def test_a_batch_in_which_no_group_has_a_teacher(make_trainer, make_group, capsys, switch):
    trainer = make_trainer(
        [make_group(0, [False, False]), make_group(1, [True])], empty_batch=switch
    )
    if switch == "error":
        with pytest.raises(TeacherContextError) as caught:
            step(trainer)
        error = caught.value
        assert error.where == "caopd.empty_batch" and "step 3: no group has a teacher" in str(error)
        assert "caopd.empty_batch=skip" in str(error) and "what to do: use easier questions" in str(
            error
        )
    else:
        metrics = step(trainer)
        assert metrics["train/empty_step"] == 1 and metrics["rows/trained"] == 0
        assert (
            "step 3: no group has a teacher, there is nothing to train on; skipped"
            in capsys.readouterr().out
        )
    names = [name for name, _, _ in trainer.calls]  # no update on nothing
    assert names == ["generate", "sample_end"] + ["put_nothing"] * (switch == "skip")


def test_t16_unsolved_groups_alone_are_trained_under_confidence_only(make_trainer, make_group):
    trainer = make_trainer([make_group(0, [False, False])], unsolved="confidence_only")
    metrics = step(trainer)
    assert metrics["rows/confidence_only"] == 2 and trainer.calls[-1][0] == "update"


def test_t25_an_over_long_teacher_prompt_is_an_error_or_a_counted_masked_row(
    make_trainer, make_group
):
    groups = [make_group(0, [True, True])]
    for overlong in ("error", "shorten_demo"):
        trainer = make_trainer(
            groups, context=ContextConfig(max_tokens=20, overlong=overlong), empty_batch="skip"
        )
        if overlong == "error":
            with pytest.raises(CaopdError, match="a teacher prompt has"):
                step(trainer)
        else:
            metrics = step(trainer)
            assert metrics["rows/teacher_overlong"] == 2 and metrics["train/empty_step"] == 1


def test_t26_groups_with_the_same_question_stay_apart(make_trainer, make_group):
    """The same prompt twice in a batch: two groups by uid, each with its own p-hat."""
    from dataclasses import replace

    first, second = make_group(0, [True, True]), replace(make_group(0, [False, True]), uid="1-1")
    trainer = make_trainer([first, second])
    targets = [trainer._target(group).p_hat for group in (first, second)]
    assert targets == [1.0, 0.5]
    keys = [
        row.key
        for row in trainer._rows([first, second], [trainer._target(g) for g in (first, second)])
    ]
    assert len(set(keys)) == 4


def test_recorded_rollouts_are_read_back_as_they_were(verl_on_cpu, make_group, tmp_path):
    from caopd_verl.verl_ext.rollout import read_groups, write_groups

    groups = [make_group(0, [True, False]), make_group(1, [False, False])]
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
        [None] * servers, None, {}, eot_id=0, chat_kwargs={}, prompts_per_request=16
    )
    size = rollouts._prompts_per_call(n)
    assert [min(size, n - start) for start in range(0, n, size)] == sizes


def test_teachers_go_with_the_students_that_verl_removes(verl_on_cpu, tmp_path):
    from caopd_verl.verl_ext.worker import prune_teachers

    for step, kept in ((5, False), (10, True), (15, True)):
        (tmp_path / f"global_step_{step}" / "teacher").mkdir(parents=True)
        if kept:
            (tmp_path / f"global_step_{step}" / "actor").mkdir()
    prune_teachers(str(tmp_path / "global_step_15" / "actor"))
    assert [(tmp_path / f"global_step_{step}" / "teacher").exists() for step in (5, 10, 15)] == [
        False,
        True,
        True,
    ]


def test_t6_sampling_stops_at_the_ids_that_training_takes_for_stops(verl_on_cpu, tmp_path):
    import json

    from caopd_verl.verl_ext.dataset import stop_ids_of

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "eos_token_id": 7}))
    tokenizer = SimpleNamespace(eos_token_id=5)
    assert stop_ids_of(str(tmp_path), tokenizer, trust_remote_code=False) == (5, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert stop_ids_of(str(tmp_path), tokenizer, trust_remote_code=False) == (5, 8, 9)
