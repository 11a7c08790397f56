"""Two models on the same questions: is one better, worse, or can't one tell?

A paired bootstrap over the questions that both answered: each resample draws questions, both models
are evaluated on them, and the interval is that of the difference. "better" and "worse" are said
only where it excludes 0.

    caopd compare outputs/base outputs/caopd
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from caopd_verl.config import Missing
from caopd_verl.errors import DataError
from caopd_verl.evaluation.intervals.bootstrap import (
    cluster_index,
    defined_draws,
    percentile_interval,
)
from caopd_verl.evaluation.intervals.estimates import (
    ALL_METRICS,
    check_bootstrap,
    draws,
    problem,
    without_bias,
)
from caopd_verl.evaluation.metrics.inputs import FloatArray

Judgement = Literal["better", "worse", "can't tell"]

HIGHER_IS_BETTER = (
    "acc",
    "format_adherence",
    "spr",
    "auroc",
    "acc_at_50",
    "acc_at_80",
    "acc_at_90",
)
LOWER_IS_BETTER = (
    "ece",
    "ece_mass",
    "ece_debiased",
    "ece_smooth",
    "mce",
    "brier",
    "brier_reliability",
    "nll",
    "aurc",
)
ABS_OCG = "abs_ocg"
"""|OCG|: the gap itself has no better side, as 0 is best."""

COMPARED = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER, ABS_OCG)


@dataclass(frozen=True)
class Column:
    """One readout of one model: for each row its question, confidence and verdict."""

    groups: Sequence[Hashable]
    confidence: Sequence[float | None]
    correct: Sequence[bool]


@dataclass(frozen=True)
class Difference:
    """`new` against `old` in one metric.

    Attributes:
        old, new: None where the metric is undefined.
        difference: `new` minus `old`.
        low, high: its interval; None where there is none.
        verdict: None where the metric is undefined for one of the two.
    """

    old: float | None
    new: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: Judgement | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Differences by metric over the common questions.

    Attributes:
        n_questions: common ones.
        only_old, only_new: questions that one of the models alone has.
        metrics: name of `COMPARED` -> difference.
    """

    n_questions: int
    only_old: int
    only_new: int
    metrics: dict[str, Difference]


def compare(
    old: Column,
    new: Column,
    *,
    n_bins: int,
    missing: Missing,
    n_resamples: int,
    level: float,
    seed: int,
) -> Comparison:
    """Compare `new` with `old`; the other arguments as in `estimates.estimate_readouts`.

    Raises:
        DataError: no question in common, or bad rows as in `calibration_metrics`.
    """
    check_bootstrap(n_resamples, level)
    old_questions, new_questions = set(old.groups), set(new.groups)
    common = old_questions & new_questions
    if not common:
        raise DataError(
            "the two results have no question in common",
            expected="rows with the same ids, from the same task and split",
        )
    parts = [_restrict(old, common), _restrict(new, common)]
    # Both are numbered together, so that a draw holds the same questions for both.
    questions = [*parts[0].groups, *parts[1].groups]
    clusters = cluster_index(questions, len(questions))
    n_old = len(parts[0].groups)
    problems = []
    for part, own in zip(parts, (clusters[:n_old], clusters[n_old:]), strict=True):
        one = problem(
            part.confidence,
            part.correct,
            own,
            n_clusters=len(common),
            n_bins=n_bins,
            missing=missing,
        )
        problems.append(one)
    sampled = draws(problems, n_clusters=len(common), n_resamples=n_resamples, seed=seed)
    points = [one.figures() for one in problems]
    differences = {name: _difference(name, points, sampled, level) for name in COMPARED}
    n_only_old = len(old_questions) - len(common)
    n_only_new = len(new_questions) - len(common)
    return Comparison(len(common), n_only_old, n_only_new, differences)


def _restrict(column: Column, common: set[Hashable]) -> Column:
    rows = zip(column.groups, column.confidence, column.correct, strict=True)
    kept = [row for row in rows if row[0] in common]
    groups, confidence, correct = zip(*kept, strict=True)
    return Column(groups, confidence, correct)


def _difference(
    name: str, points: Sequence[FloatArray], sampled: FloatArray, level: float
) -> Difference:
    """From the two samples' figures (shape [metrics]) and those of their resamples."""
    index = ALL_METRICS.index("ocg" if name == ABS_OCG else name)
    values = [float(point[index]) for point in points]
    drawn = sampled[:, :, index]
    if name == ABS_OCG:
        values = [abs(value) for value in values]
        drawn = np.abs(drawn)
    old, new = values
    if math.isnan(old) or math.isnan(new):
        return Difference(_defined(old), _defined(new), None, None, None, None)
    moved_old = _moved(drawn[:, 0], old, name)
    moved_new = _moved(drawn[:, 1], new, name)
    # Paired: what makes a draw of questions hard for both models cancels out.
    gaps = defined_draws(moved_new - moved_old)
    if gaps is None:
        return Difference(old, new, new - old, None, None, "can't tell")
    ends = percentile_interval(gaps, level=level)
    low, high = float(ends[0]), float(ends[1])
    verdict = _verdict(name, low, high)
    return Difference(old, new, new - old, low, high, verdict)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _moved(drawn: FloatArray, value: float, name: str) -> FloatArray:
    """Without bias, where every resample defines the metric: the bias is a mean over all."""
    if not len(drawn) or np.isnan(drawn).any():
        return drawn
    return without_bias(drawn, value, name=name)


def _verdict(name: str, low: float, high: float) -> Judgement:
    if low <= 0.0 <= high:
        return "can't tell"
    rises = low > 0.0
    return "better" if rises == (name in HIGHER_IS_BETTER) else "worse"
