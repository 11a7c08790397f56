"""All figures of one readout under weights of its rows: a bootstrap resample takes milliseconds.

The rows that carry a confidence are sorted by it once (`layout`). A resample is a weight for each
row, the number of times it was drawn, and becomes a table (`formulas.Table`) by one counting pass.
Every figure follows from the table by sums and cumulative sums: no pairs, no sorting.

    python -c "from caopd_verl.evaluation.metrics.layout import evaluate, layout
    print(evaluate(layout([.9, .6], [True, False], n_bins=10)))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from caopd_verl.evaluation.metrics import formulas
from caopd_verl.evaluation.metrics.formulas import COVERAGES, Table, bin_index, first_of_each
from caopd_verl.evaluation.metrics.inputs import BoolArray, FloatArray, IntArray
from caopd_verl.evaluation.metrics.smooth import CosineSmoother

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
    """What the resamples of one readout share: n rows, u distinct confidences.

    Attributes:
        order: the rows by rising confidence, shape [n]: `weights` are given in this order.
        values: distinct confidences in rising order, shape [u].
        code: for each row, in this order, the index of its confidence, shape [n].
        outcomes: for each row, in this order, 1 where it is correct, else 0, shape [n].
        bin_starts: the indices of distinct confidences at which a new equal-width bin begins, shape
            [bins in use].
        log_right, log_wrong: log v and log (1 - v) of the clipped confidences, shape [u].
        n_bins: bins of the binned figures.
        smoother: of `ece_smooth`, its bandwidth fixed by the full sample; None without rows.
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

    def table(self, weights: FloatArray | None = None) -> Table:
        """Rows and correct rows for each confidence; `weights` of shape [n], or each row once."""
        size = len(self.values)
        if weights is None:
            weights = np.ones(len(self.code))
        weighted = weights * self.outcomes
        if size == len(self.code):  # no ties: each row is its own entry, without counting
            return Table(self.values, weights, weighted)
        total = np.bincount(self.code, weights=weights).astype(np.float64)
        right = np.bincount(self.code, weights=weighted).astype(np.float64)
        return Table(self.values, total, right)


def layout(
    confidence: Sequence[float] | FloatArray, correct: Sequence[bool] | BoolArray, *, n_bins: int
) -> Layout:
    """The layout of rows that all carry a confidence in [0, 1] (`inputs.read_rows` checks)."""
    scores = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(scores, kind="stable")  # so that sums round alike on every machine
    outcomes = np.asarray(correct, dtype=np.float64)[order]
    values, code = np.unique(scores[order], return_inverse=True)
    log_right, log_wrong = formulas.clipped_logs(values)
    bin_starts = first_of_each(bin_index(values, n_bins))
    plain = Layout(
        order=order,
        values=values,
        code=code,
        outcomes=outcomes,
        bin_starts=bin_starts,
        log_right=log_right,
        log_wrong=log_wrong,
        n_bins=n_bins,
        smoother=None,
    )
    if not len(values):
        return plain
    table = plain.table()
    residual = table.total * values - table.right
    # The width of the full sample serves every resample: fitting takes thirteen evaluations.
    return replace(plain, smoother=CosineSmoother.fit(values, residual, table.n))


def evaluate(rows: Layout, weights: FloatArray | None = None) -> FloatArray:
    """Every figure of `TABLE_METRICS`, in that order, NaN where undefined.

    Args:
        rows: from `layout`.
        weights: how often each row was drawn, in the layout's order, whole numbers of shape [n];
            None: once.
    """
    table = rows.table(weights)
    n = table.n
    if n == 0 or rows.smoother is None:
        return np.full(len(TABLE_METRICS), math.nan)
    means = formulas.means(table)
    bins = formulas.bins_of(table, rows.bin_starts)
    residual = table.total * table.values - table.right
    figures = [
        means.acc,
        means.mean_conf,
        formulas.overconfidence_gap(means.mean_conf, means.acc),
        float(formulas.ece(bins)),
        formulas.equal_mass_ece(table, rows.n_bins),
        formulas.debiased_ece(bins),
        rows.smoother.error(residual, n),
        formulas.mce(bins),
        means.brier,
        *formulas.brier_parts(bins, means),
        formulas.nll(table, rows.log_right, rows.log_wrong),
        *formulas.separation(table),
        *formulas.risk_coverage(table),
    ]
    return np.array(figures)
