"""Every family of methods on the real stack: sampling, update, validation and a readable report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import journal, run_main

pytestmark = pytest.mark.stack

SHORT = [
    "trainer.test_freq=3",
    "trainer.save_freq=3",
    "trainer.total_training_steps=3",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.rollout.n=4",
    "caopd.task.n_train=64",
    "caopd.task.n_val=60",
]
# recipe and overrides -> terms of the loss in the log, rows of a step with 8 prompts and K = 4
METHODS = {
    "sdft": (["+recipe=sdft"], ["divergence"], 8),
    "sdft_caopd": (["+recipe=sdft_caopd"], ["divergence"], 8),
    "sdft_caopd, all K": (
        ["+recipe=sdft_caopd", "caopd.trained_rollouts=all"],
        ["divergence"],
        32,
    ),
    "grpo": (["+recipe=grpo"], ["policy_gradient"], 32),
    "cross-entropy": (
        ["+recipe=sdpo_caopd", "caopd.confidence_loss=cross_entropy"],
        ["divergence", "confidence_cross_entropy"],
        32,
    ),
}
IN_CI = ("sdft_caopd", "grpo")  # a minute each; the others are slow tests
PARAMETERS = re.compile(r"(student|teacher) ([\d,]+) parameters")


def cases():
    for name in METHODS:
        marks = [] if name in IN_CI else [pytest.mark.slow]
        yield pytest.param(name, id=name, marks=marks)


@pytest.mark.parametrize("name", cases())
def test_a_method_trains_and_is_reported(name, tmp_path):
    arguments, terms, rows = METHODS[name]
    recipe = arguments[0].removeprefix("+recipe=")
    output = run_main(*SHORT, *arguments[1:], f"caopd.output_dir={tmp_path}", recipe=recipe)
    steps = [record for record in journal(tmp_path) if "loss/total" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    for record in steps:
        assert record["rows/total"] == rows and record["rows/trained"] > 0
        total = sum(record[f"loss/{term}"] for term in terms)
        assert total == pytest.approx(record["loss/total"], rel=1e-4, abs=1e-6)
    assert "val/arithmetic/stated/ece" in steps[-1]
    assert (tmp_path / "metrics.json").exists() and (tmp_path / "reliability_stated.png").exists()
    assert (tmp_path / "samples" / "step_000001.jsonl").read_text().count("\n") == 8
    held = dict(PARAMETERS.findall(output))
    has_teacher = "divergence" in terms
    assert set(held) == ({"student", "teacher"} if has_teacher else {"student"})
    assert ("ema/distance" in steps[-1]) == has_teacher
    teacher = Path(tmp_path / "checkpoints" / "global_step_3" / "teacher")
    assert teacher.exists() == has_teacher
