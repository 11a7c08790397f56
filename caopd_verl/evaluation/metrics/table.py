"""All metrics as functions of one small table, so that a bootstrap resample costs a few milliseconds.

The rows that carry a confidence are sorted by it once. A resample is a weight for each row, and the table of a resample
holds, for each distinct confidence, the weight of its rows and that of the correct ones. Every metric follows from the
table by sums and cumulative sums: no pairs, no sorting, no n x m matrix.

Definitions beyond those of `metrics` (v a confidence, N_v and S_v rows and correct rows with it, n all rows):

* `ece_mass`: as `ece`, over bins of equal mass n / n_bins. Rows of one confidence that a bin's border cuts through are
  shared out in proportion, so the figure does not depend on the order of tied rows.
* `ece_debiased`: the binned ECE is biased upwards, since |mean c - mean y| of a bin is positive by chance alone. The
  bias is estimated bin by bin under normal noise of variance acc (1 - acc) / n_b and taken off (Kumar, Liang & Ma 2019,
  arXiv 1909.10155, section 4, in closed form by the mean of a folded normal); it may fall below 0 by chance.
* `ece_smooth`: SmoothECE of Blasiok & Nakkiran 2023 (arXiv 2309.12236), see `smooth`.
* `mce`: the largest gap of a bin that holds a row.
* `brier_reliability - brier_resolution + brier_uncertainty + brier_within` = `brier`. The first three are Murphy's
  terms over the equal-width bins; the last is what they miss because confidences differ inside a bin (Stephenson 2008).
* `nll`: natural logarithm, confidences clipped to [0.005, 0.995]: half a unit of the last place that is ever stated.
* `aurc`: the error rate among the k most confident rows, averaged over k = 1 .. n; ties in expectation.
* `acc_at_50`, `acc_at_80`, `acc_at_90`: accuracy of the 50, 80, 90 % most confident rows; ties in expectation.

    python -c "from caopd_verl.evaluation.metrics.table import *; print(evaluate(layout([.9, .6], [True, False], n_bins=10)))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from caopd_verl.evaluation.metrics.calibration import BoolArray, FloatArray, IntArray, bin_index
from caopd_verl.evaluation.metrics.smooth import CosineSmoother

NLL_CLIP = 0.005
COVERAGES = {"acc_at_50": 0.5, "acc_at_80": 0.8, "acc_at_90": 0.9}
TABLE_METRICS = (
    "acc_scored",
    "mean_conf",
    "ocg",
    "ece",
    "ece_mass",
    "ece_debiased",
    "ece_smooth",
    "mce",
    "brier",
    "brier_reliability",
    "brier_resolution",
    "brier_uncertainty",
    "brier_within",
    "nll",
    "spr",
    "auroc",
    "tie_rate",
    "aurc",
    *COVERAGES,
)


@dataclass(frozen=True)
class Layout:
    """What the resamples of one readout share.

    Attributes:
        order: the rows by rising confidence, shape [n]: `weights` are given in this order.
        values: distinct confidences in rising order, shape [u].
        code: for each row, in this order, the index of its confidence, shape [n].
        outcomes: for each row, in this order, 1 where it is correct, else 0, shape [n].
        bin_starts: the indices of distinct confidences at which a new equal-width bin begins, shape [bins in use].
        log_right, log_wrong: log v and log (1 - v) of the clipped confidences, shape [u].
        n_bins: bins of the binned figures.
        smoother: of `ece_smooth`, its bandwidth fixed by the full sample.
    """

    order: IntArray
    values: FloatArray
    code: IntArray
    outcomes: FloatArray
    bin_starts: IntArray
    log_right: FloatArray
    log_wrong: FloatArray
    n_bins: int
    smoother: CosineSmoother | None

    def table(self, weights: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """Rows and correct rows for each distinct confidence, shape [u] each; `weights` of shape [n], or all 1."""
        size = len(self.values)
        if weights is None:
            weights = np.ones(len(self.code))
        if size == len(self.code):  # no ties
            return weights, weights * self.outcomes
        total = np.bincount(self.code, weights=weights, minlength=size).astype(np.float64)
        right = np.bincount(self.code, weights=weights * self.outcomes, minlength=size).astype(
            np.float64
        )
        return total, right


def layout(
    confidence: Sequence[float] | FloatArray, correct: Sequence[bool] | BoolArray, *, n_bins: int
) -> Layout:
    """The layout of rows that all carry a confidence in [0, 1] (checked by the caller, `metrics._columns`)."""
    scores = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(scores, kind="stable")
    outcomes = np.asarray(correct, dtype=np.float64)[order]
    values, code = np.unique(scores[order], return_inverse=True)
    clipped = np.clip(values, NLL_CLIP, 1.0 - NLL_CLIP)
    starts = np.unique(bin_index(values, n_bins), return_index=True)[1]
    plain = Layout(
        order, values, code, outcomes, starts, np.log(clipped), np.log1p(-clipped), n_bins, None
    )
    if not len(values):
        return plain
    total, right = plain.table()
    return replace(
        plain, smoother=CosineSmoother.fit(values, total * values - right, float(total.sum()))
    )


def evaluate(rows: Layout, weights: FloatArray | None = None) -> FloatArray:
    """Every figure of `TABLE_METRICS`, in that order, NaN where undefined. `weights` must be whole numbers."""
    total, right = rows.table(weights)
    n = float(total.sum())
    if n == 0 or rows.smoother is None:
        return np.full(len(TABLE_METRICS), math.nan)
    values = rows.values
    acc, conf = float(right.sum()) / n, float(total @ values) / n
    brier = float(total @ values**2 - 2.0 * (right @ values)) / n + acc
    ece, debiased, mce, parts = _binned(rows, total, right, acc)
    return np.array(
        [
            *(acc, conf, conf - acc),
            *(ece, _equal_mass(values, total, right, rows.n_bins), debiased),
            *(rows.smoother.error(total * values - right, n), mce),
            *(brier, *parts, brier - (parts[0] - parts[1] + parts[2])),
            -float(right @ rows.log_right + (total - right) @ rows.log_wrong) / n,
            *_separation(total, right),
            *_risk_coverage(total, right),
        ]
    )


def _binned(
    rows: Layout, total: FloatArray, right: FloatArray, acc: float
) -> tuple[float, float, float, list[float]]:
    """ECE, debiased ECE, MCE, and Murphy's reliability, resolution and uncertainty."""
    n = total.sum()
    counts, conf_sums, right_sums = (
        np.add.reduceat(column, rows.bin_starts) for column in (total, total * rows.values, right)
    )
    used = counts > 0
    counts, share = counts[used], counts[used] / n
    bin_acc = right_sums[used] / counts
    gap = np.abs(conf_sums[used] / counts - bin_acc)
    noisy = [
        _folded_mean(g, math.sqrt(a * (1.0 - a) / m))
        for g, a, m in zip(gap, bin_acc, counts, strict=True)
    ]
    ece = float(share @ gap)
    debiased = ece - float(share @ (np.array(noisy) - gap))
    parts = [float(share @ gap**2), float(share @ (bin_acc - acc) ** 2), acc * (1.0 - acc)]
    return ece, debiased, float(gap.max()), parts


def _folded_mean(mean: float, deviation: float) -> float:
    """E|X| for X normal with this mean (>= 0) and standard deviation."""
    if deviation == 0.0:
        return mean
    z = mean / deviation
    return deviation * math.sqrt(2.0 / math.pi) * math.exp(-z * z / 2.0) + mean * math.erf(
        z / math.sqrt(2.0)
    )


def _equal_mass(values: FloatArray, total: FloatArray, right: FloatArray, n_bins: int) -> float:
    mass = np.concatenate(([0.0], np.cumsum(total)))
    excess = np.concatenate(([0.0], np.cumsum(total * values - right)))
    at_borders = np.interp(mass[-1] * np.arange(n_bins + 1) / n_bins, mass, excess)
    return float(np.abs(np.diff(at_borders)).sum() / mass[-1])


def _separation(total: FloatArray, right: FloatArray) -> tuple[float, float, float]:
    wrong = total - right
    pairs = right.sum() * wrong.sum()
    if pairs == 0:
        return math.nan, math.nan, math.nan
    wins = float(right @ (np.cumsum(wrong) - wrong) / pairs)
    ties = float(right @ wrong / pairs)
    return wins, wins + ties / 2.0, ties


def _risk_coverage(total: FloatArray, right: FloatArray) -> list[float]:
    """AURC, then the accuracies at `COVERAGES`."""
    size, hits = total[::-1], right[::-1]  # most confident first
    after, hits_after = np.cumsum(size), np.cumsum(hits)
    n = float(after[-1])
    before, errors = after - size, size - hits
    errors_before = before - (hits_after - hits)
    # In a group of ties the expected risk at rank k is (errors_before + errors / size * (k - before)) / k.
    numbers = _harmonic(int(n))[after.astype(np.int64)]
    steps = np.diff(numbers, prepend=0.0)
    slope = errors / np.maximum(size, 1.0)
    aurc = float((errors + (errors_before - slope * before) * steps).sum()) / n
    ranks, sums = np.concatenate(([0.0], after)), np.concatenate(([0.0], hits_after))
    return [aurc, *(float(np.interp(c * n, ranks, sums)) / (c * n) for c in COVERAGES.values())]


_NUMBERS: list[FloatArray] = [np.zeros(1)]


def _harmonic(k: int) -> FloatArray:
    """The harmonic numbers of 0 .. k at least, shape [k + 1] or more; kept for the next call."""
    if len(_NUMBERS[0]) <= k:
        _NUMBERS[0] = np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, 2 * k + 2))))
    return _NUMBERS[0]
