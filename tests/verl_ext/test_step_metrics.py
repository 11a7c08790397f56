"""What a step logs, and that the EMA follows a step that was taken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from caopd_verl.config import CaopdConfig, LossConfig
from caopd_verl.types import CONFIDENCE_ROLES, Role

from .rows import loss_of, mixed_rows, random_tables, weights_of

pytestmark = pytest.mark.usefixtures("verl_on_cpu")


@pytest.fixture
def tables():
    return random_tables()


def test_step_metrics_are_means_over_trained_tokens(tables):
    from caopd_verl.verl_ext import step_metrics

    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    rows = mixed_rows((1, 0))
    weights = weights_of(rows, config)
    parts = [loss_of(config, tables, [rows[i]], [weights[i]]) for i in range(len(rows))]
    raw = {name: sum(m[name].aggregate() for _, m in parts) for name in parts[0][1]}
    raw |= {"loss": sum(float(loss.detach()) for loss, _ in parts), "grad_norm": 0.5, "lr": 1e-5}
    found = step_metrics.of_update(raw | {"ema/distance": 0.25, "ema/skipped": 0.0})

    student, teacher = tables[0].detach().double(), tables[1].double()
    values, entropies, divergences = [], [], []
    for row in rows:
        trajectory = row.trajectory
        if not trajectory.n_trained:
            continue
        # the value and confidence tokens stand behind the prompts: the same token precedes both
        previous = [trajectory.prompt_ids[-1], *trajectory.token_ids]
        for place, token in enumerate(trajectory.token_ids):
            role = trajectory.roles[place]
            if trajectory.weights[place] == 0 or role not in CONFIDENCE_ROLES:
                continue
            log_t = teacher[previous[place]].log_softmax(-1)
            log_s = student[previous[place]].log_softmax(-1)
            if role == Role.CONFIDENCE_VALUE:
                values.append(float(log_t[token].exp()))
            entropies.append(float(-(log_t.exp() * log_t).sum()))
            divergences.append(float((log_t.exp() * (log_t - log_s)).sum()))
    assert found["teacher/p_hat_token_prob"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert found["confidence/teacher_entropy"] == pytest.approx(
        sum(entropies) / len(entropies), rel=1e-5
    )
    assert found["loss/divergence"] == pytest.approx(found["loss/total"], rel=1e-5)
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
        "sum/reasoning_tokens": [0.0, 0.0],
        "sum/reasoning_divergence": [0.0, 0.0],
        "sum/value_tokens": [0.0, 0.0],
        "sum/sampled_tokens": [2.0, 2.0],
        "sum/sampler_ratio": [2.0, 3.0],
        "sum/sampler_prob_diff": [0.2, 0.2],
    }
    found = step_metrics.of_update(raw)
    assert (
        found["loss/total"] == 2.0 and found["actor/grad_norm"] == 1.5 and found["actor/lr"] == 2e-5
    )
    assert found["ema/skipped"] == 1.0
    assert found["confidence/divergence"] == 0.5 and found["loss/confidence"] == 1.5
    assert "reasoning/divergence" not in found  # no token, no mean
    assert found["rollout/sampler_ratio_mean"] == 1.25
    assert found["rollout/prob_diff_mean"] == pytest.approx(0.1)
    assert "teacher/p_hat_token_prob" not in found


def test_step_metrics_of_groups_and_rows():
    from caopd_verl.core.targets import SuccessRate
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
    targets = [SuccessRate().target("a", v) for v in verdicts]
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
    counted = {name: rows[f"rows/{name}"] for name in ("total", "trained", "counted_by_tokens")}
    assert counted == {"total": 6, "trained": 4, "counted_by_tokens": 1}
    reasons = {name: rows[f"rows/{name}"] for name in ("teacher_overlong", "unsolved", "replaced")}
    assert reasons == {"teacher_overlong": 1, "unsolved": 1, "replaced": 4}
    assert rows["rows/trained_tokens"] == 7 + 2 + 4 + 5 and rows["train/empty_step"] == 0
    assert rows["rows/teacher_prompt_tokens_max"] == 5 + 4


@pytest.mark.parametrize("taken", [True, False])
def test_the_teacher_moves_once_a_step_and_not_with_a_skipped_one(taken):
    """A step whose gradient is not finite is skipped: the student stays, so must the teacher."""
    from caopd_verl.verl_ext.worker import follow

    student, teacher = torch.full((3,), 2.0), torch.zeros(3)
    engines = [SimpleNamespace(local_state=lambda w=w: {"w": w}) for w in (teacher, student)]
    logged = follow(*engines, taken=taken, rate=0.25)
    assert teacher.tolist() == ([0.5] * 3 if taken else [0.0] * 3)
    assert logged["ema/skipped"] == float(not taken) and (logged["ema/distance"] > 0) is taken


def test_gradient_norms_that_verl_skips_are_told_from_those_it_takes(verl_on_cpu):
    from caopd_verl.verl_ext.engine import was_taken

    assert [was_taken(norm) for norm in (0.7, float("inf"), float("nan"))] == [True, False, False]
