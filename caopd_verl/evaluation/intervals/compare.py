"""Two models on the same questions: is one better, worse, or can't one tell?

A paired bootstrap over the questions that both answered: each resample draws questions, both models are evaluated on
them, and the interval is that of the difference. "better" and "worse" are said only where it excludes 0.

    caopd compare outputs/base outputs/caopd
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from caopd_verl.errors import DataError
from caopd_verl.evaluation.intervals.bootstrap import cluster_index
from caopd_verl.evaluation.intervals.estimates import (
    ALL_METRICS,
    check_bootstrap,
    draws,
    problem,
    without_bias,
)
from caopd_verl.evaluation.metrics.calibration import FloatArray

BETTER, WORSE, CANT_TELL = "better", "worse", "can't tell"
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
COMPARED = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER, "abs_ocg")
_MIN_DEFINED = 0.5


@dataclass(frozen=True)
class Column:
    """One readout of one model: for each row its question, confidence and verdict."""

    groups: Sequence[Hashable]
    confidence: Sequence[float | None]
    correct: Sequence[bool]


@dataclass(frozen=True)
class Difference:
    """`new` against `old` in one metric. `verdict` is None where the metric is undefined for one of the two."""

    old: float | None
    new: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Differences by metric over `n_questions` common questions, and how many others only one of the models has."""

    n_questions: int
    only_old: int
    only_new: int
    metrics: dict[str, Difference]


def compare(
    old: Column,
    new: Column,
    *,
    n_bins: int,
    missing: str,
    n_resamples: int,
    level: float,
    seed: int,
) -> Comparison:
    """Compare `new` with `old`; arguments as in `estimates.estimate_readouts`.

    Raises:
        DataError: no question in common, or bad rows as in `calibration_metrics`.
    """
    check_bootstrap(n_resamples, level)
    common = set(old.groups) & set(new.groups)
    if not common:
        raise DataError(
            "the two results have no question in common",
            expected="rows with the same ids, from the same task and split",
        )
    parts = [_restrict(column, common) for column in (old, new)]
    n_old = len(parts[0].groups)
    clusters = cluster_index([*parts[0].groups, *parts[1].groups], n_old + len(parts[1].groups))
    problems = [
        problem(
            part.confidence,
            part.correct,
            own,
            n_clusters=len(common),
            n_bins=n_bins,
            missing=missing,
        )
        for part, own in zip(parts, (clusters[:n_old], clusters[n_old:]), strict=True)
    ]
    sampled = draws(problems, n_clusters=len(common), n_resamples=n_resamples, seed=seed)
    points = [one.figures() for one in problems]
    metrics = {name: _difference(name, points, sampled, level) for name in COMPARED}
    return Comparison(
        len(common), len(set(old.groups) - common), len(set(new.groups) - common), metrics
    )


def _restrict(column: Column, common: set[Hashable]) -> Column:
    keep = [i for i, group in enumerate(column.groups) if group in common]
    return Column(
        [column.groups[i] for i in keep],
        [column.confidence[i] for i in keep],
        [column.correct[i] for i in keep],
    )


def _difference(
    name: str, points: list[FloatArray], sampled: FloatArray, level: float
) -> Difference:
    index = ALL_METRICS.index("ocg" if name == "abs_ocg" else name)
    values, columns = [], []
    for i, point in enumerate(points):
        value, drawn = float(point[index]), sampled[:, i, index]
        if name == "abs_ocg":
            value, drawn = abs(value), np.abs(drawn)
        defined = np.isnan(drawn).mean() <= 1.0 - _MIN_DEFINED if len(drawn) else True
        columns.append(
            without_bias(drawn, value, name=name)
            if defined and not np.isnan(drawn).any()
            else drawn
        )
        values.append(None if np.isnan(value) else value)
    old, new = values
    if old is None or new is None:
        return Difference(old, new, None, None, None, None)
    gaps = columns[1] - columns[0]
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) < max(1.0, _MIN_DEFINED * len(sampled)):
        return Difference(old, new, new - old, None, None, CANT_TELL)
    tail = (1.0 - level) / 2.0
    low, high = (float(q) for q in np.quantile(gaps, [tail, 1.0 - tail]))
    return Difference(old, new, new - old, low, high, _verdict(name, low, high))


def _verdict(name: str, low: float, high: float) -> str:
    if low <= 0.0 <= high:
        return CANT_TELL
    rises = low > 0.0
    return BETTER if rises == (name in HIGHER_IS_BETTER) else WORSE
