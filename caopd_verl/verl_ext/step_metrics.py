"""What a training step logs: one flat dict, `subsystem/quantity`, counts beside means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from caopd_verl.core.confidence import parse
from caopd_verl.core.target import Target
from caopd_verl.types import RolloutGroup
from caopd_verl.verl_ext.codec import Row

_PARTS = ("reasoning", "confidence")
_READINGS = ("divergence", "student_entropy", "teacher_entropy", "topk_mass")


def of_groups(groups: Sequence[RolloutGroup], targets: Sequence[Target]) -> dict[str, float]:
    """Rollouts and targets: accuracy, stated confidence, p-hat's histogram, groups by number of successes."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    stated = [parse(rollout.text) for rollout in rollouts]
    values = [s.value for s in stated if s.value is not None]
    solved = Counter(target.successes for target in targets)
    n = len(targets)
    metrics = {
        "rollout/acc": sum(r.verdict.correct for r in rollouts) / len(rollouts),
        "rollout/format_adherence": len(values) / len(rollouts),
        "rollout/truncated": sum(r.truncated for r in rollouts) / len(rollouts),
        "rollout/tokens": sum(len(r.token_ids) for r in rollouts),
        "rollout/response_tokens": sum(len(r.token_ids) for r in rollouts) / len(rollouts),
        "target/p_hat_mean": sum(t.p_hat for t in targets) / n,
        "target/groups_none": solved[0] / n,
        "target/groups_one": solved[1] / n,
        "target/groups_all": sum(t.successes == t.k for t in targets) / n,
    }
    if values:
        metrics["rollout/stated_confidence"] = sum(values) / len(values)
    for k in range(targets[0].k + 1):
        metrics[f"target/successes_{k}"] = solved[k]
    return metrics


def of_rows(rows: Sequence[Row]) -> dict[str, float]:
    """Rows of the update: how many are trained, why others are not, what a revision had to do."""
    trained = [row for row in rows if row.n_trained]
    metrics: dict[str, float] = {
        "rows/total": len(rows),
        "rows/trained": len(trained),
        "rows/confidence_only": sum(row.trajectory.confidence_only for row in trained),
        "rows/trained_tokens": sum(row.n_trained for row in trained),
        "rows/teacher_overlong": sum(
            row.trajectory.context is not None and row.teacher_prompt_ids is None for row in rows
        ),
        "train/empty_step": 0,
    }
    for status, count in Counter(row.trajectory.status for row in rows).items():
        metrics[f"rows/{status}"] = count
    if trained:
        lengths = [len(row.teacher_prompt_ids or ()) for row in trained]
        metrics["rows/teacher_prompt_tokens_max"] = max(lengths)
    return metrics


def of_update(raw: dict[str, Any]) -> dict[str, float]:
    """The workers' sums as means: losses of reasoning and confidence tokens apart, the teacher's take-up of p-hat."""

    def total(name: str) -> float:
        value = raw.get(name, 0.0)
        return math.fsum(value) if isinstance(value, (list, tuple)) else float(value)

    def mean(name: str) -> float:
        value = raw[name]
        return math.fsum(value) / len(value) if isinstance(value, (list, tuple)) else float(value)

    metrics = {"loss/total": mean("loss"), "actor/grad_norm": mean("grad_norm")}
    metrics["actor/lr"] = raw["lr"][-1] if isinstance(raw["lr"], (list, tuple)) else raw["lr"]
    metrics["ema/distance"] = mean("ema/distance")
    metrics["ema/skipped"] = total("ema/skipped")
    n_updates = len(raw["loss"]) if isinstance(raw["loss"], (list, tuple)) else 1
    for part in _PARTS:
        tokens = total(f"sum/{part}_tokens")
        metrics[f"loss/{part}"] = total(f"sum/{part}_loss") / n_updates
        if tokens:
            for name in _READINGS:
                metrics[f"{part}/{name}"] = total(f"sum/{part}_{name}") / tokens
    values = total("sum/value_tokens")
    if values:
        # does the teacher take up the target? (T8) per token of p-hat's number
        metrics["teacher/p_hat_token_prob"] = total("sum/value_teacher_prob") / values
        metrics["teacher/p_hat_token_log_prob"] = total("sum/value_teacher_log_prob") / values
        metrics["student/p_hat_token_prob"] = total("sum/value_student_prob") / values
    kept = total("sum/kept_tokens")
    if kept:
        metrics["rollout/tis_weight_mean"] = total("sum/tis_weight") / kept
        metrics["rollout/prob_diff_mean"] = total("sum/rollout_prob_diff") / kept
    return metrics


def training_line(step: int, last: int, metrics: dict[str, float]) -> str:
    """One line for the console."""
    parts = [
        ("loss", "loss/total", ".4f"),
        ("acc", "rollout/acc", ".2f"),
        ("stated", "rollout/stated_confidence", ".2f"),
        ("p_hat", "target/p_hat_mean", ".2f"),
        ("teacher p(p_hat)", "teacher/p_hat_token_prob", ".2f"),
        ("grad", "actor/grad_norm", ".2f"),
        ("s/step", "timing_s/step", ".1f"),
        ("gen", "timing_s/gen", ".1f"),
        ("update", "timing_s/update_actor", ".1f"),
    ]
    shown = [f"{label} {metrics[key]:{form}}" for label, key, form in parts if key in metrics]
    return f"step {step}/{last}  " + "  ".join(shown)


def validation_line(step: int, metrics: dict[str, float]) -> str:
    """The validation metrics as a small table for the console, one line a readout and source."""
    names = (
        "n",
        "acc",
        "mean_conf",
        "ece",
        "brier",
        "ocg",
        "spr",
        "auroc",
        "tie_rate",
        "format_adherence",
    )
    tables = sorted({key.rsplit("/", 1)[0] for key in metrics if key.count("/") == 3})
    lines = [f"validation at step {step}"]
    for table in tables:
        values = [(name, metrics.get(f"{table}/{name}")) for name in names]
        shown = [
            f"{name} {'undefined' if value is None else f'{value:.4g}'}" for name, value in values
        ]
        lines.append(f"  {table.removeprefix('val/')}: " + "  ".join(shown))
    return "\n".join(lines)
