"""What a training step logs: one flat dict, `subsystem/quantity`, counts beside means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from caopd_verl.core.confidence import parse
from caopd_verl.core.targets import Target
from caopd_verl.pipeline import UpdateRow
from caopd_verl.types import RolloutGroup

_PARTS = ("reasoning", "confidence")
_READINGS = ("divergence", "student_entropy", "teacher_entropy", "topk_mass")
_TERM = "sum/term_"

# label, metric, format of the console's line for a training step
_CONSOLE = (
    ("loss", "loss/total", ".4f"),
    ("acc", "rollout/acc", ".2f"),
    ("stated", "rollout/stated_confidence", ".2f"),
    ("p_hat", "target/p_hat_mean", ".2f"),
    ("teacher p(p_hat)", "teacher/p_hat_token_prob", ".2f"),
    ("grad", "actor/grad_norm", ".2f"),
    ("s/step", "timing_s/step", ".1f"),
    ("gen", "timing_s/gen", ".1f"),
    ("update", "timing_s/update_actor", ".1f"),
)


def of_groups(groups: Sequence[RolloutGroup], targets: Sequence[Target]) -> dict[str, float]:
    """Rollouts and targets: accuracy, stated confidence, groups by number of successes."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    n_rollouts, n_groups = len(rollouts), len(targets)
    stated = [parse(rollout.text).value for rollout in rollouts]
    # An unreadable confidence is counted (format_adherence), never averaged in as 0.
    values = [value for value in stated if value is not None]
    n_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    successes = Counter(target.successes for target in targets)
    n_unanimous = sum(target.unanimous for target in targets)
    metrics = {
        "rollout/acc": sum(r.verdict.correct for r in rollouts) / n_rollouts,
        "rollout/format_adherence": len(values) / n_rollouts,
        "rollout/truncated": sum(r.truncated for r in rollouts) / n_rollouts,
        "rollout/tokens": n_tokens,
        "rollout/response_tokens": n_tokens / n_rollouts,
        "target/p_hat_mean": sum(t.p_hat for t in targets) / n_groups,
        "target/groups_none": successes[0] / n_groups,
        "target/groups_one": successes[1] / n_groups,
        "target/groups_all": n_unanimous / n_groups,
    }
    if values:
        metrics["rollout/stated_confidence"] = sum(values) / len(values)
    # every count is logged, 0 too, so that a chart has no gaps
    most = max(target.k for target in targets)
    for count in range(most + 1):
        metrics[f"target/successes_{count}"] = successes[count]
    return metrics


def of_rows(rows: Sequence[UpdateRow]) -> dict[str, float]:
    """Rows of the update: how many are trained, why others are not, what a revision had to do."""
    trained = [row for row in rows if row.trajectory.n_trained]
    n_by_tokens = sum(row.trajectory.counts_as == "tokens" for row in trained)
    metrics: dict[str, float] = {
        "rows/total": len(rows),
        "rows/trained": len(trained),
        "rows/counted_by_tokens": n_by_tokens,
        "rows/trained_tokens": sum(row.trajectory.n_trained for row in trained),
        "train/empty_step": 0,
    }
    for status, count in Counter(row.trajectory.status for row in rows).items():
        metrics[f"rows/{status}"] = count
    teacher_lengths = [len(row.teacher_prompt_ids or ()) for row in trained]
    if any(teacher_lengths):
        metrics["rows/teacher_prompt_tokens_max"] = max(teacher_lengths)
    return metrics


def of_update(raw: Mapping[str, Any]) -> dict[str, float]:
    """The workers' sums as means: losses of reasoning and confidence tokens apart, readings."""
    n_updates = len(_as_list(raw["loss"]))
    metrics = {
        "loss/total": _mean(raw["loss"]),
        "actor/grad_norm": _mean(raw["grad_norm"]),
        "actor/lr": _as_list(raw["lr"])[-1],
    }
    for name in ("ema/distance", "ema/skipped"):
        if name in raw:
            metrics[name] = _mean(raw[name]) if name == "ema/distance" else _total(raw[name])
    for name in raw:
        if name.startswith(_TERM):
            metrics[f"loss/{name.removeprefix(_TERM)}"] = _total(raw[name]) / n_updates
    for part in _PARTS:
        metrics |= _of_part(raw, part, n_updates)
    n_values = _total(raw["sum/value_tokens"])
    if n_values:
        # If the teacher does not take up the target, the divergence teaches no calibration.
        for name, key in (
            ("teacher/p_hat_token_prob", "sum/value_teacher_prob"),
            ("teacher/p_hat_token_log_prob", "sum/value_teacher_log_prob"),
            ("student/p_hat_token_prob", "sum/value_student_prob"),
        ):
            if key in raw:
                metrics[name] = _total(raw[key]) / n_values
    n_sampled = _total(raw["sum/sampled_tokens"])
    if n_sampled:
        metrics["rollout/sampler_ratio_mean"] = _total(raw["sum/sampler_ratio"]) / n_sampled
        metrics["rollout/prob_diff_mean"] = _total(raw["sum/sampler_prob_diff"]) / n_sampled
    return metrics


def _of_part(raw: Mapping[str, Any], part: str, n_updates: int) -> dict[str, float]:
    metrics = {}
    n_tokens = _total(raw[f"sum/{part}_tokens"])
    if f"sum/{part}_loss" in raw:
        metrics[f"loss/{part}"] = _total(raw[f"sum/{part}_loss"]) / n_updates
    for name in _READINGS:
        key = f"sum/{part}_{name}"
        if n_tokens and key in raw:
            metrics[f"{part}/{name}"] = _total(raw[key]) / n_tokens
    return metrics


def _as_list(value: Any) -> list[float]:
    """verl gives a number for one update of a step, and a list for several."""
    return list(value) if isinstance(value, (list, tuple)) else [float(value)]


def _total(value: Any) -> float:
    return math.fsum(_as_list(value))


def _mean(value: Any) -> float:
    values = _as_list(value)
    return math.fsum(values) / len(values)


def training_line(step: int, last: int, metrics: Mapping[str, float]) -> str:
    """One line for the console."""
    shown = [f"{label} {metrics[key]:{form}}" for label, key, form in _CONSOLE if key in metrics]
    return f"step {step}/{last}  " + "  ".join(shown)


def validation_line(step: int, metrics: Mapping[str, float]) -> str:
    """The validation metrics as a small table for the console, one line a readout and source."""
    names = (
        *("n", "acc", "mean_conf", "ece", "brier", "ocg", "spr", "auroc"),
        *("tie_rate", "format_adherence"),
    )
    tables = sorted({key.rsplit("/", 1)[0] for key in metrics if key.count("/") == 3})
    lines = [f"validation at step {step}"]
    for table in tables:
        shown = []
        for name in names:
            value = metrics.get(f"{table}/{name}")
            text = "undefined" if value is None else f"{value:.4g}"
            shown.append(f"{name} {text}")
        lines.append(f"  {table.removeprefix('val/')}: " + "  ".join(shown))
    return "\n".join(lines)
