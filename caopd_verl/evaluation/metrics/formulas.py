"""The formula of each calibration figure. No other file has one.

A figure is a function of a table that says, for each distinct confidence v, how many rows N_v
state it and how many of those, S_v, are correct. Training's validation, `caopd eval`, each
bootstrap resample, the noise floor, the paper's own rules and the torchmetrics differ in the table
and the bins they hand over, and share the formulas.

For confidences c and outcomes y in {0, 1} of n rows:

* `mean_conf` = mean c; `ocg` = mean c - mean y, the overconfidence gap (section 5.1 of arXiv
  2604.16830); `brier` = mean (c - y)^2.
* `ece` = sum over equal-width bins of n_b / n |mean c - mean y|. A bin is closed on the left, the
  last one on both sides, and the edges are the decimal numbers i / bins: 0.3, 0.6 and 0.7 open
  their bins. So |ocg| <= ece for any table. (The paper's Tables 1 and 3 break that, because they
  average the two over different rows.)
* `mce`: the largest gap of a bin that holds a row.
* `ece_debiased`: the ECE is biased upwards, since |mean c - mean y| is positive by chance alone.
  The bias is estimated bin by bin under normal noise of variance acc (1 - acc) / n_b and taken off
  (Kumar, Liang & Ma 2019, arXiv 1909.10155, section 4, in closed form by the mean of a folded
  normal); it may fall below 0 by chance.
* `ece_mass`: as `ece`, over bins of equal mass n / bins. Rows of one confidence that a bin's
  border cuts through are shared out in proportion, so the order of tied rows does not matter.
* `brier_reliability - brier_resolution + brier_uncertainty + brier_within` = `brier`. The first
  three are Murphy's terms over the equal-width bins; the last is what they miss because
  confidences differ inside a bin (Stephenson 2008).
* `nll`: natural logarithm, confidences clipped to [0.005, 0.995].
* `spr` = P(c+ > c-) over all pairs of a correct and a wrong row, the strict pairwise ranking;
  `tie_rate` = P(c+ = c-); `auroc` = spr + tie_rate / 2. Confidences of two decimals tie often, so
  SPR alone misleads.
* `aurc`: the error rate among the k most confident rows, averaged over k = 1 .. n; ties in
  expectation. `acc_at_50`, `acc_at_80`, `acc_at_90`: accuracy of the 50, 80, 90 % most confident.

What is undefined is NaN, never 0: SPR, AUROC and tie rate where all rows are correct or all are
wrong, everything where there are no rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from caopd_verl.evaluation.metrics.inputs import BoolArray, FloatArray, IntArray

NLL_CLIP = 0.005  # half a unit of the last decimal that is ever stated
COVERAGES = {"acc_at_50": 0.5, "acc_at_80": 0.8, "acc_at_90": 0.9}
_EDGE_TOLERANCE = 1e-9  # a confidence this near to an edge lies on it: 0.1 + 0.2 opens bin 3 of 10


class Table(NamedTuple):
    """Rows by confidence.

    Attributes:
        values: the distinct confidences, rising, shape [u].
        total: rows of each, shape [u]: whole numbers, as many as were drawn in a resample.
        right: how many of them are correct, shape [u]; [simulations, u] where only bins are asked.
    """

    values: FloatArray
    total: FloatArray
    right: FloatArray

    @property
    def n(self) -> float:
        """The number of rows."""
        return float(self.total.sum())


def table_of(confidence: FloatArray, correct: BoolArray) -> Table:
    """The table of rows, each counted once; both arrays of shape [n]."""
    values, code = np.unique(confidence, return_inverse=True)
    total = np.bincount(code).astype(np.float64)
    right = np.bincount(code, weights=correct).astype(np.float64)
    return Table(values, total, right)


class Means(NamedTuple):
    """Accuracy, mean confidence and Brier score of the rows of a table."""

    acc: float
    mean_conf: float
    brier: float


def means(table: Table) -> Means:
    """The figures that need no bins and no order. NaN without rows."""
    n = table.n
    if n == 0:
        return Means(math.nan, math.nan, math.nan)
    acc = float(table.right.sum()) / n
    squares = table.total @ table.values**2
    hits = table.right @ table.values
    # (c - y)^2 = c^2 - 2 c y + y, as y is 0 or 1.
    brier = float(squares - 2.0 * hits) / n + acc
    return Means(acc, float(table.total @ table.values) / n, brier)


def overconfidence_gap(mean_conf: float, acc: float) -> float:
    """OCG: above 0 is overconfident."""
    return mean_conf - acc


def share(part: float, whole: float) -> float:
    """`part / whole`; NaN where there is nothing to share."""
    return part / whole if whole else math.nan


# Equal-width bins


def bin_index(values: FloatArray, n_bins: int) -> IntArray:
    """For values in [0, 1] (shape [n]) the bin of each (shape [n], 0 to n_bins - 1)."""
    # Floats miss the decimal edges: numpy.linspace(0, 1, 11) puts 0.3, 0.6 and 0.7 one bin lower.
    tolerance = _EDGE_TOLERANCE * n_bins
    index = np.floor(values * n_bins + tolerance)
    return np.clip(index.astype(np.int64), 0, n_bins - 1)


def first_of_each(index: IntArray) -> IntArray:
    """Where each new value of a rising array (shape [u]) begins, shape [values in use]."""
    return np.unique(index, return_index=True)[1]


class Bins(NamedTuple):
    """The bins that hold a row, each array of shape [b]; `acc` and `gap` may be [simulations, b].

    Attributes:
        n: rows.
        mean_conf, acc: of the bin's rows.
        share: the bin's share of all rows.
        gap: |mean_conf - acc|.
    """

    n: FloatArray
    mean_conf: FloatArray
    acc: FloatArray
    share: FloatArray
    gap: FloatArray


def bins_of(table: Table, starts: IntArray) -> Bins:
    """The bins that begin at `starts` (indices into the table's values), without empty ones."""
    counts = np.add.reduceat(table.total, starts)
    conf_sums = np.add.reduceat(table.total * table.values, starts)
    right_sums = np.add.reduceat(table.right, starts, axis=-1)
    used = counts > 0  # a resample may draw none of a bin's rows
    n = counts[used]
    mean_conf = conf_sums[used] / n
    acc = right_sums[..., used] / n
    gap = np.abs(mean_conf - acc)
    return Bins(n, mean_conf, acc, n / n.sum(), gap)


def ece(bins: Bins) -> FloatArray:
    """The expected calibration error, shape [] or [simulations]."""
    return bins.gap @ bins.share


def mce(bins: Bins) -> float:
    """The maximum calibration error."""
    return float(bins.gap.max())


def debiased_ece(bins: Bins) -> float:
    """The ECE without what chance alone adds to it."""
    by_chance = []
    # Plain floats: on ten bins a loop is faster than arrays, and this runs in each resample.
    for gap, acc, n in zip(bins.gap, bins.acc, bins.n, strict=True):
        deviation = math.sqrt(acc * (1.0 - acc) / n)
        by_chance.append(_folded_mean(gap, deviation))
    bias = float(bins.share @ (np.array(by_chance) - bins.gap))
    return float(ece(bins)) - bias


def _folded_mean(mean: float, deviation: float) -> float:
    """E|X| for X normal with this mean (>= 0) and standard deviation."""
    if deviation == 0.0:
        return mean
    z = mean / deviation
    scale = deviation * math.sqrt(2.0 / math.pi)
    spread = scale * math.exp(-z * z / 2.0)
    return spread + mean * math.erf(z / math.sqrt(2.0))


class BrierParts(NamedTuple):
    """Reliability, resolution and uncertainty (Murphy), and what differs within bins."""

    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_parts(bins: Bins, all_rows: Means) -> BrierParts:
    """The parts of `all_rows.brier`."""
    reliability = float(bins.share @ bins.gap**2)
    resolution = float(bins.share @ (bins.acc - all_rows.acc) ** 2)
    uncertainty = all_rows.acc * (1.0 - all_rows.acc)
    within = all_rows.brier - (reliability - resolution + uncertainty)
    return BrierParts(reliability, resolution, uncertainty, within)


# Other figures


def equal_mass_ece(table: Table, n_bins: int) -> float:
    """The ECE over bins that hold the same number of rows."""
    excess = table.total * table.values - table.right
    mass_before = np.concatenate(([0.0], np.cumsum(table.total)))
    excess_before = np.concatenate(([0.0], np.cumsum(excess)))
    n = mass_before[-1]
    borders = n * np.arange(n_bins + 1) / n_bins
    # Linear between the values: rows of one confidence are shared out in proportion.
    at_borders = np.interp(borders, mass_before, excess_before)
    return float(np.abs(np.diff(at_borders)).sum() / n)


def clipped_logs(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log v and log (1 - v) of the clipped confidences, same shape."""
    clipped = np.clip(values, NLL_CLIP, 1.0 - NLL_CLIP)
    return np.log(clipped), np.log1p(-clipped)


def nll(table: Table, log_right: FloatArray, log_wrong: FloatArray) -> float:
    """The negative log-likelihood; the logarithms are those of `clipped_logs(table.values)`."""
    wrong = table.total - table.right
    log_likelihood = table.right @ log_right + wrong @ log_wrong
    return -float(log_likelihood) / table.n


class Separation(NamedTuple):
    """How well confidence tells correct rows from wrong ones; NaN where one kind is missing."""

    spr: float
    auroc: float
    tie_rate: float


def separation(table: Table) -> Separation:
    """Over all pairs of a correct and a wrong row, without making the pairs: time O(u)."""
    wrong = table.total - table.right
    pairs = table.right.sum() * wrong.sum()
    if pairs == 0:
        return Separation(math.nan, math.nan, math.nan)
    # The values rise, so that those before an entry are the wrong rows that state less.
    wrong_below = np.cumsum(wrong) - wrong
    spr = float(table.right @ wrong_below / pairs)
    tie_rate = float(table.right @ wrong / pairs)
    return Separation(spr, spr + tie_rate / 2.0, tie_rate)


def risk_coverage(table: Table) -> list[float]:
    """AURC, then the accuracies at `COVERAGES`."""
    size = table.total[::-1]  # most confident first
    hits = table.right[::-1]
    up_to, hits_up_to = np.cumsum(size), np.cumsum(hits)
    before, errors = up_to - size, size - hits
    errors_before = before - (hits_up_to - hits)
    # In a group of ties the expected risk at rank k is
    # (errors_before + errors / size * (k - before)) / k, and 1 / k sums to harmonic numbers.
    n = int(up_to[-1])
    harmonic = _harmonic(n)[up_to.astype(np.int64)]
    steps = np.diff(harmonic, prepend=0.0)
    slope = errors / np.maximum(size, 1.0)
    risks = errors + (errors_before - slope * before) * steps
    coverage = np.array(list(COVERAGES.values()))
    accuracies = _accuracy_of_first(coverage, up_to, hits_up_to)
    return [float(risks.sum()) / n, *accuracies.tolist()]


def accuracy_at(table: Table, coverage: FloatArray) -> FloatArray:
    """Accuracy of the most confident rows, for shares of all rows in (0, 1], same shape."""
    up_to = np.cumsum(table.total[::-1])
    hits_up_to = np.cumsum(table.right[::-1])
    return _accuracy_of_first(coverage, up_to, hits_up_to)


def _accuracy_of_first(
    coverage: FloatArray, up_to: FloatArray, hits_up_to: FloatArray
) -> FloatArray:
    # A share that cuts through ties takes its part of them, as chance would on average.
    answered = coverage * up_to[-1]
    ranks = np.concatenate(([0.0], up_to))
    hits = np.concatenate(([0.0], hits_up_to))
    return np.interp(answered, ranks, hits) / answered


# In a list, so that a longer one can take its place: resamples of one run all need the same.
_HARMONIC: list[FloatArray] = [np.zeros(1)]


def _harmonic(k: int) -> FloatArray:
    """The harmonic numbers of 0 .. k at least, shape [k + 1] or more; kept for the next call."""
    if len(_HARMONIC[0]) <= k:
        inverses = 1.0 / np.arange(1, 2 * k + 2)
        _HARMONIC[0] = np.concatenate(([0.0], np.cumsum(inverses)))
    return _HARMONIC[0]
