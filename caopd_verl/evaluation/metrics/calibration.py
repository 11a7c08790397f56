"""The calibration metrics of stated (or expected) confidences, without intervals. NumPy only.

The figures that training's validation logs and that other tools ask for; `formulas` defines each of
them, `intervals.estimates` adds the rest, with intervals. A figure that is undefined is None.

    python -c "import caopd_verl.evaluation.metrics.calibration as m
    print(m.reliability_bins([.9, .3], [1, 0], n_bins=5))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from caopd_verl.config import Missing
from caopd_verl.evaluation.metrics import formulas
from caopd_verl.evaluation.metrics.formulas import (
    Table,
    bin_index,
    first_of_each,
    share,
    table_of,
)
from caopd_verl.evaluation.metrics.inputs import check_bins, read_rows

Metrics = dict[str, "float | int | None"]

METRIC_NAMES = (
    "n",
    "n_parsed",
    "acc",
    "acc_scored",
    "mean_conf",
    "ece",
    "brier",
    "ocg",
    "spr",
    "auroc",
    "tie_rate",
    "format_adherence",
)


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram; the means are None where the bin is empty."""

    low: float
    high: float
    n: int
    mean_conf: float | None
    acc: float | None


def calibration_metrics(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_bins: int, missing: Missing
) -> Metrics:
    """The figures of `METRIC_NAMES`.

    `n` and `acc` are about all rows, `n_parsed` and `format_adherence` are the number and the share
    of those with a readable confidence, and the others are about the rows that `missing` scores,
    whose accuracy is `acc_scored`.

    Args:
        confidence: for each row a number in [0, 1], or None where none could be parsed.
        correct: for each row the verifier's verdict.
        n_bins: bins of the ECE, at least 1 (the paper's code uses 10).
        missing: what becomes of rows without a confidence. "drop": they are not scored. "zero":
            confidence 0, as in the paper's code; this flatters a model whose wrong answers are the
            unparsable ones. "worst": confidence 1 where wrong and 0 where correct, an upper bound
            of the harm.

    Raises:
        DataError: unequal lengths; a confidence that is NaN or outside [0, 1], naming its row.
        ConfigError: `n_bins` below 1, or an unknown `missing`.
    """
    check_bins(n_bins)
    rows = read_rows(confidence, correct)
    scored = rows.scored(missing)
    table = table_of(scored.confidence, scored.correct)
    n = len(rows.parsed)
    n_parsed = int(rows.parsed.sum())
    n_correct = int(rows.correct.sum())
    means = formulas.means(table)
    ece = math.nan
    if table.n:
        starts = first_of_each(bin_index(table.values, n_bins))
        ece = float(formulas.ece(formulas.bins_of(table, starts)))
    metrics: Metrics = {"n": n, "n_parsed": n_parsed}
    figures = {
        "acc": share(n_correct, n),
        "acc_scored": means.acc,
        "mean_conf": means.mean_conf,
        "ece": ece,
        "brier": means.brier,
        "ocg": formulas.overconfidence_gap(means.mean_conf, means.acc),
        **formulas.separation(table)._asdict(),
        "format_adherence": share(n_parsed, n),
    }
    # None, since JSON has no NaN, and a 0 would be read as a result.
    for name, value in figures.items():
        metrics[name] = None if math.isnan(value) else value
    return metrics


def reliability_bins(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_bins: int
) -> list[Bin]:
    """The `n_bins` bins of the ECE over the rows that carry a confidence.

    Raises:
        DataError, ConfigError: as `calibration_metrics`.
    """
    check_bins(n_bins)
    scored = read_rows(confidence, correct).scored(Missing.drop)
    table = table_of(scored.confidence, scored.correct)
    filled = _filled_bins(table, n_bins)
    cells = []
    for i in range(n_bins):
        n, mean_conf, acc = filled.get(i, (0, None, None))
        low, high = i / n_bins, (i + 1) / n_bins
        cells.append(Bin(low, high, n, mean_conf, acc))
    return cells


def _filled_bins(table: Table, n_bins: int) -> dict[int, tuple[int, float, float]]:
    """Number of a bin that holds a row -> its rows, mean confidence and accuracy."""
    if not table.n:
        return {}
    index = bin_index(table.values, n_bins)
    starts = first_of_each(index)
    bins = formulas.bins_of(table, starts)
    numbers = index[starts].tolist()
    n_rows = bins.n.astype(int).tolist()
    cells = zip(n_rows, bins.mean_conf.tolist(), bins.acc.tolist(), strict=True)
    return dict(zip(numbers, cells, strict=True))
