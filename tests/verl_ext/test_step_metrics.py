"""What a step logs, and that the EMA follows a step that was taken."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from caopd_verl.config import CaopdConfig, LossConfig

from .rows import loss_of, mixed_rows, random_tables

pytestmark = pytest.mark.usefixtures("verl_on_cpu")


@pytest.fixture
def tables():
    return random_tables()


def test_step_metrics_are_means_over_trained_tokens(tables):
    from caopd_verl.verl_ext import codec, step_metrics

    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    rows = mixed_rows()
    weights = codec.loss_weights(rows, config.loss)
    parts = [loss_of(config, tables, [rows[i]], [weights[i]]) for i in range(len(rows))]
    raw = {name: sum(m[name].aggregate() for _, m in parts) for name in parts[0][1]}
    raw |= {"loss": sum(float(loss.detach()) for loss, _ in parts), "grad_norm": 0.5, "lr": 1e-5}
    found = step_metrics.of_update(raw | {"ema/distance": 0.25, "ema/skipped": 0.0})

    student, teacher = tables[0].detach().double(), tables[1].double()
    values, entropies, divergences = [], [], []
    for row in rows:
        previous = [
            row.prompt_ids[-1],
            *row.trajectory.token_ids,
        ]  # value and confidence tokens come later: same for both
        for i, token in enumerate(row.trajectory.token_ids):
            if not (row.n_trained and row.trajectory.trained_mask[i]):
                continue
            log_t, log_s = (
                teacher[previous[i]].log_softmax(-1),
                student[previous[i]].log_softmax(-1),
            )
            if row.trajectory.value_mask[i]:
                values.append(float(log_t[token].exp()))
            if row.trajectory.confidence_mask[i]:
                entropies.append(float(-(log_t.exp() * log_t).sum()))
                divergences.append(float((log_t.exp() * (log_t - log_s)).sum()))
    assert found["teacher/p_hat_token_prob"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert found["confidence/teacher_entropy"] == pytest.approx(
        sum(entropies) / len(entropies), rel=1e-5
    )
    assert found["loss/reasoning"] + found["loss/confidence"] == pytest.approx(
        found["loss/total"], rel=1e-5
    )
    assert found["confidence/divergence"] <= sum(divergences) / len(
        divergences
    )  # buckets lose information
    assert 0 < found["reasoning/topk_mass"] < 1
    assert (found["ema/distance"], found["actor/grad_norm"], found["actor/lr"]) == (0.25, 0.5, 1e-5)


def test_step_metrics_of_several_mini_batches_are_joined():
    from caopd_verl.verl_ext import step_metrics

    raw = {
        "loss": [1.0, 3.0],
        "grad_norm": [1.0, 2.0],
        "lr": [1e-5, 2e-5],
        "ema/distance": [0.1, 0.3],
        "ema/skipped": [0.0, 1.0],
        "sum/confidence_tokens": [2.0, 6.0],
        "sum/confidence_divergence": [1.0, 3.0],
        "sum/confidence_loss": [1.0, 2.0],
    }
    found = step_metrics.of_update(
        {**raw, **{f"sum/confidence_{n}": [0.0, 0.0] for n in ("student_entropy",)}}
    )
    assert (
        found["loss/total"] == 2.0 and found["actor/grad_norm"] == 1.5 and found["actor/lr"] == 2e-5
    )
    assert found["ema/skipped"] == 1.0
    assert found["confidence/divergence"] == 0.5 and found["loss/confidence"] == 1.5
    assert "reasoning/divergence" not in found  # no token, no mean


def test_step_metrics_of_groups_and_rows():
    from caopd_verl.core.target import compute_target
    from caopd_verl.types import Example, Rollout, RolloutGroup, Verdict
    from caopd_verl.verl_ext import step_metrics

    def group(*texts):
        rollouts = tuple(
            Rollout(
                (1, 2), (-0.1, -0.1), text, Verdict(text.startswith("4"), "correct"), text == "cut"
            )
            for text in texts
        )
        return RolloutGroup("1-0", Example("a", [], "4", "arithmetic", "s", "f:1"), (1,), rollouts)

    groups = [
        group("4\nConfidence: 0.8", "5\nConfidence: 1.0"),
        group("cut", "5"),
        group("4", "4\nConfidence: high"),
    ]
    verdicts = [[r.verdict.correct for r in g.rollouts] for g in groups]
    targets = [compute_target(v, leave_one_out=False, shrinkage=None) for v in verdicts]
    found = step_metrics.of_groups(groups, targets)
    third = pytest.approx(1 / 3)
    assert found["target/groups_none"] == third and found["target/groups_one"] == third
    assert found["target/groups_all"] == third and found["target/p_hat_mean"] == 0.5
    assert [found[f"target/successes_{k}"] for k in range(3)] == [1, 1, 1]
    assert found["rollout/acc"] == 0.5 and found["rollout/format_adherence"] == third
    assert found["rollout/stated_confidence"] == pytest.approx(
        0.9
    )  # unreadable ones are counted, not averaged as 0
    assert found["rollout/truncated"] == pytest.approx(1 / 6)
    rows = step_metrics.of_rows(mixed_rows())
    assert (rows["rows/total"], rows["rows/trained"], rows["rows/confidence_only"]) == (6, 4, 1)
    assert (
        rows["rows/teacher_overlong"] == 1
        and rows["rows/unsolved"] == 1
        and rows["rows/replaced"] == 5
    )
    assert rows["rows/trained_tokens"] == 7 + 2 + 4 + 5 and rows["train/empty_step"] == 0


# ---------------------------------------------------------------------- the EMA follows a step that was taken (T14)


@pytest.mark.parametrize(("norm", "taken"), [(0.7, True), (math.inf, False), (math.nan, False)])
def test_t14_the_engine_remembers_whether_the_step_was_taken(monkeypatch, norm, taken):
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from caopd_verl.verl_ext.engine import CaopdEngine

    monkeypatch.setattr(FSDPEngineWithLMHead, "optimizer_step", lambda self: norm)
    engine = object.__new__(CaopdEngine)
    engine.optimizer_step()
    assert engine.step_taken is taken


@pytest.mark.parametrize("taken", [True, False])
def test_t14_the_teacher_moves_once_a_step_and_not_with_a_skipped_one(monkeypatch, taken):
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import TrainingWorker

    from caopd_verl.verl_ext.worker import StudentWorker

    output = TensorDict({}, batch_size=[])
    tu.assign_non_tensor(output, metrics={"loss": 1.0})
    monkeypatch.setattr(TrainingWorker, "train_batch", lambda self, data: output)
    worker = object.__new__(StudentWorker)
    student, teacher = torch.full((3,), 2.0), torch.zeros(3)
    worker.engine = SimpleNamespace(step_taken=taken, local_state=lambda: {"w": student})
    worker.teacher = SimpleNamespace(engine=SimpleNamespace(local_state=lambda: {"w": teacher}))
    worker.ema_rate = 0.25
    metrics = tu.get(worker.train_batch(TensorDict({}, batch_size=[])), "metrics")
    assert teacher.tolist() == ([0.5] * 3 if taken else [0.0] * 3)
    assert metrics["ema/skipped"] == float(not taken) and (metrics["ema/distance"] > 0) is taken
