"""Training's validation: the rows of `caopd eval`, and the metrics of the log."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from caopd_verl.config import EvaluationConfig, Missing
from caopd_verl.core.confidence import parse
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.readouts.readout import EXACT, Readout
from caopd_verl.evaluation.rows.row import Generation, Job, make_row, prompt_hash
from tests.groups import make_group

pytestmark = pytest.mark.usefixtures("verl_on_cpu")


class TableServers:
    """Stands in for vLLM's servers: the first digit is 0 with 0.75 and 1 with 0.25, a point
    follows, and every digit behind it is as likely as any other."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.calls = []

    def next_token_log_probs(self, prefixes, token_ids):
        self.calls.append((prefixes, token_ids))
        return [self._next(prefix) for prefix in prefixes]

    def _next(self, prefix):
        written = self.tokenizer.decode(prefix, skip_special_tokens=True).rsplit(" ", 1)[1]
        if not written:
            return {self._id("0"): math.log(0.75), self._id("1"): math.log(0.25)}
        if "." not in written:
            return {self._id("."): 0.0}
        return {self._id(str(digit)): math.log(0.1) for digit in range(10)}

    def _id(self, character):
        (token,) = self.tokenizer.encode(character, add_special_tokens=False)
        return token


@pytest.fixture
def groups(tiny_tokenizer):
    return [
        make_group(tiny_tokenizer, 0, [True, False]),
        make_group(tiny_tokenizer, 1, [False, False]),
    ]


def test_a_row_of_training_is_a_row_of_an_evaluation(groups):
    from caopd_verl.verl_ext.validation import rows_of

    rows = rows_of(groups, None)
    keys = [(row["id"], row["sample"]) for row in rows]
    assert keys == [(group.example.id, sample) for group in groups for sample in (0, 1)]
    for group in groups:
        for sample, rollout in enumerate(group.rollouts):
            row = rows.pop(0)
            # judged anew from the text, as a file of finished responses would be
            evaluated = make_row(Job(group.example, sample), Generation(rollout.text))
            assert list(row) == list(evaluated)
            same = set(row) - {"truncated", "n_prompt_tokens", "n_tokens", "expected_reason"}
            assert {key: row[key] for key in same} == {key: evaluated[key] for key in same}
            assert row["truncated"] is False
            assert row["n_prompt_tokens"] == len(group.prompt_ids)
            assert row["n_tokens"] == len(rollout.token_ids)
            assert row["prompt_hash"] == prompt_hash(group.example.messages)
            assert row["confidence_text"] == "Confidence: 0.90"
            assert "caopd.evaluation.expected" in row["expected_reason"]
            json.dumps(row)


def test_the_verdict_is_the_one_that_training_gave(groups):
    """Validation does not verify twice: a verifier may be slow, or a model."""
    from caopd_verl.verl_ext.validation import rows_of

    (first, second), example = groups[0].rollouts, groups[0].example
    assert first.verdict.correct and not second.verdict.correct
    swapped = replace(first, verdict=second.verdict)
    (row,) = rows_of([replace(groups[0], rollouts=(swapped,))], None)
    assert not row["correct"] and row["answer"] == second.verdict.answer != example.answer


def test_expected_confidences_stand_in_the_rows_of_their_responses(groups, tiny_tokenizer):
    from caopd_verl.verl_ext.validation import read_expected, rows_of

    mute = replace(groups[0].rollouts[1], token_ids=groups[0].rollouts[1].token_ids[:3], text="691")
    groups[0] = replace(groups[0], rollouts=(groups[0].rollouts[0], mute))
    servers = TableServers(tiny_tokenizer)
    readouts = read_expected(groups, servers, Decoding(1.0, 1.0))
    rows = rows_of(groups, readouts)
    # 0.75 of the mass is uniform over 0.00 .. 0.99; of the rest 1.00 alone is a string
    mass = 0.75 + 0.25 * 0.01
    mean = (0.75 * 0.495 + 0.25 * 0.01 * 1.0) / mass
    for place in (0, 2, 3):
        assert rows[place]["expected_confidence"] == pytest.approx(mean, abs=1e-9)
        assert rows[place]["expected_t1_confidence"] == pytest.approx(mean, abs=1e-9)
        assert rows[place]["expected_mass"] == pytest.approx(mass, abs=1e-9)
        assert rows[place]["expected_kind"] == EXACT
    assert rows[1]["expected_confidence"] is None
    assert rows[1]["expected_reason"] == "confidence missing: no number to read"
    asked = [prefix for prefixes, _ in servers.calls for prefix in prefixes]
    prompts = [list(group.prompt_ids) for group in groups]
    for prefix in asked:
        assert any(prefix[: len(prompt)] == prompt for prompt in prompts)
    assert {len(token_ids) for _, token_ids in servers.calls} == {11}  # ten digits and the point


def test_the_log_has_each_source_and_readout_by_itself(groups):
    from caopd_verl.verl_ext.validation import flat_metrics, rows_of

    readouts = [
        Readout(0.2, 1.0, EXACT, value_t1=0.3),
        *[Readout(0.6, 1.0, EXACT, value_t1=0.5)] * 3,
    ]
    rows = rows_of(groups, readouts)
    other = [{**row, "source": "other", "truncated": True, "n_tokens": 7} for row in rows[:1]]
    config = EvaluationConfig(n_bins=5, missing=Missing.drop, expected=True)
    flat = flat_metrics([*rows, *other], config)
    stated = [parse(row["response"]).value for row in rows]
    correct = [row["correct"] for row in rows]
    for readout, values in {
        "stated": stated,
        "expected": [0.2, 0.6, 0.6, 0.6],
        "expected_t1": [0.3, 0.5, 0.5, 0.5],
    }.items():
        expected = calibration_metrics(values, correct, n_bins=5, missing="drop")
        found = {
            name.rsplit("/", 1)[1]: value
            for name, value in flat.items()
            if name.startswith(f"val/arithmetic/{readout}/")
        }
        assert found == expected
    assert flat["val/other/truncated"] == 1.0 and flat["val/arithmetic/truncated"] == 0.0
    assert flat["val/other/response_tokens"] == 7.0
    assert "val/other/stated/spr" not in flat  # one row: undefined, never 0
    only = flat_metrics(rows, EvaluationConfig())
    assert {name.split("/")[2] for name in only} == {"stated", "truncated", "response_tokens"}


def test_what_the_rows_depend_on_is_named_as_in_an_evaluation(compose):
    from caopd_verl.verl_ext.validation import run_settings

    config = compose("+recipe=sdpo_caopd", "+scale=cpu_tiny")
    settings = run_settings(config)
    assert settings["source"] == "training" and settings["task"] == "arithmetic/val"
    assert settings["chat_template_kwargs"] == {"enable_thinking": False}
    assert (settings["temperature"], settings["top_p"]) == (0.6, 0.95)
    json.dumps(settings)
