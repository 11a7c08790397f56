"""Calibration metrics of stated (or expected) confidences. NumPy only.

Definitions, for confidences c and outcomes y in {0, 1} of the rows that carry a confidence:

* `acc` = share of correct answers among ALL n rows; `acc_scored` = the same among the rows that the rest is about.
* `mean_conf` = mean c. `ocg` = mean c - mean y, the overconfidence gap (paper, section 5.1), both over the same rows.
* `ece` = sum over equal-width bins of n_b / n * |mean c - mean y|. Bins are closed on the left, the last one on both
  sides, and their edges are the decimal numbers i / n_bins: 0.3, 0.6 and 0.7 open their bins (trap T31; the reference
  code's float edges put them one bin lower). A value within 1e-9 of an edge counts as lying on it.
* `brier` = mean (c - y)^2.
* `spr` = P(c+ > c-) over all pairs of a correct and a wrong row; `tie_rate` = P(c+ = c-); `auroc` = spr + tie_rate / 2
  (trap T30: on a coarse grid ties are frequent, so SPR alone misleads). Sorting, no n x m table: O(n log n).
* `format_adherence` = share of the n rows with a parsable confidence.

A figure that is undefined is None, never 0: SPR, AUROC and tie rate where all rows are correct or all wrong (T30),
everything where there are no rows. So |ocg| <= ece holds for any result of this module; the paper's Tables 1 and 3
break it because they average over different rows.

Try it: `python -c "import caopd_verl.evaluation.metrics.calibration as m; print(m.reliability_bins([.9, .3], [1, 0], n_bins=5))"`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caopd_verl.errors import ConfigError, DataError

MISSING = ("drop", "zero", "worst")
Metrics = dict[str, "float | int | None"]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

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
_EDGE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram; the means are None where the bin is empty."""

    low: float
    high: float
    n: int
    mean_conf: float | None
    acc: float | None


def calibration_metrics(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_bins: int, missing: str
) -> Metrics:
    """All metrics of the module docstring, with the keys of `METRIC_NAMES`.

    Args:
        confidence: for each row, a number in [0, 1], or None where none could be parsed.
        correct: for each row, the verifier's verdict.
        n_bins: bins of the ECE, at least 1 (the paper's code uses 10).
        missing: what becomes of rows without a confidence. "drop": they count in `n`, `acc` and `format_adherence`
            only. "zero": confidence 0, as the paper's code does; this flatters a model whose wrong answers are the
            unparsable ones (T29). "worst": confidence 1 where wrong and 0 where correct, an upper bound of the harm.

    Raises:
        DataError: unequal lengths; a confidence that is NaN or outside [0, 1], naming its row.
        ConfigError: `n_bins` below 1, or an unknown `missing`.
    """
    _check_bins(n_bins)
    if missing not in MISSING:
        raise ConfigError(
            f"unknown policy {missing!r}", where="missing", expected="one of " + ", ".join(MISSING)
        )
    values, parsed, outcomes = _columns(confidence, correct)
    if missing == "drop":
        scored, scored_outcomes = values[parsed], outcomes[parsed]
    else:
        fill = np.zeros(len(values)) if missing == "zero" else np.where(outcomes, 0.0, 1.0)
        scored, scored_outcomes = np.where(parsed, values, fill), outcomes
    n = len(values)
    mean_conf, acc_scored = _mean(scored), _mean(scored_outcomes)
    metrics: Metrics = {
        "n": n,
        "n_parsed": int(parsed.sum()),
        "acc": _mean(outcomes),
        "acc_scored": acc_scored,
        "mean_conf": mean_conf,
        "ece": _ece(scored, scored_outcomes, n_bins),
        "brier": _mean((scored - scored_outcomes) ** 2),
        "ocg": None if mean_conf is None or acc_scored is None else mean_conf - acc_scored,
    }
    metrics.update(_separation(scored, scored_outcomes))
    metrics["format_adherence"] = _mean(parsed)
    return metrics


def metrics_with_parsed_only(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_bins: int, missing: str
) -> Metrics:
    """`calibration_metrics` under `missing`, plus the parsed-only figures under `parsed_only/<name>` (trap T29)."""
    metrics = calibration_metrics(confidence, correct, n_bins=n_bins, missing=missing)
    only = calibration_metrics(confidence, correct, n_bins=n_bins, missing="drop")
    keys = ("acc_scored", "mean_conf", "ece", "brier", "ocg", "spr", "auroc", "tie_rate")
    return {**metrics, **{f"parsed_only/{key}": only[key] for key in keys}}


def reliability_bins(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_bins: int
) -> list[Bin]:
    """The `n_bins` bins of the ECE over the rows that carry a confidence. Raises as `calibration_metrics`."""
    _check_bins(n_bins)
    values, parsed, outcomes = _columns(confidence, correct)
    values, outcomes = values[parsed], outcomes[parsed]
    index = bin_index(values, n_bins)
    counts, conf_sums, correct_sums = _bin_sums(values, outcomes, index, n_bins)
    return [
        Bin(
            low=i / n_bins,
            high=(i + 1) / n_bins,
            n=int(counts[i]),
            mean_conf=float(conf_sums[i] / counts[i]) if counts[i] else None,
            acc=float(correct_sums[i] / counts[i]) if counts[i] else None,
        )
        for i in range(n_bins)
    ]


def bin_index(values: FloatArray, n_bins: int) -> IntArray:
    """For values in [0, 1] (shape [n]), the bin of each (shape [n], 0 to n_bins - 1), with decimal edges (T31)."""
    index = np.floor(values * n_bins + _EDGE_TOLERANCE * n_bins).astype(np.int64)
    return np.clip(index, 0, n_bins - 1)


def check_confidence(value: float | None, where: str) -> float | None:
    """`value` itself if it is None or in [0, 1]; `DataError` naming `where` otherwise."""
    if value is None or (0.0 <= value <= 1.0):
        return value
    raise DataError(
        f"the confidence is {value!r}",
        where=where,
        expected="a number in [0, 1], or None where none could be parsed",
        fix="read confidences with caopd_verl.core.confidence.parse",
    )


def _columns(
    confidence: Sequence[float | None], correct: Sequence[bool]
) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Values (0 where missing), parsed mask and outcomes, each of shape [n]."""
    if len(confidence) != len(correct):
        raise DataError(
            f"{len(confidence)} confidences but {len(correct)} verdicts",
            expected="one of each a row",
        )
    values = np.array([math.nan if c is None else c for c in confidence], dtype=np.float64)
    parsed = np.array([c is not None for c in confidence], dtype=np.bool_)
    bad = parsed & ~((values >= 0.0) & (values <= 1.0))
    if bad.any():
        row = int(np.argmax(bad))
        check_confidence(float(values[row]), f"confidence of row {row}")
    outcomes = np.array(correct)
    if outcomes.size and not np.isin(outcomes, (0, 1)).all():
        raise DataError("a verdict is neither true nor false", where="correct", expected="booleans")
    return np.where(parsed, values, 0.0), parsed, outcomes.astype(np.bool_)


def _check_bins(n_bins: int) -> None:
    if n_bins < 1:
        raise ConfigError(f"{n_bins} bins", where="n_bins", expected="at least 1")


def _mean(values: FloatArray | BoolArray) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None


def _bin_sums(
    values: FloatArray, outcomes: BoolArray, index: IntArray, n_bins: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    counts = np.bincount(index, minlength=n_bins).astype(np.int64)
    conf_sums = np.bincount(index, weights=values, minlength=n_bins).astype(np.float64)
    correct_sums = np.bincount(index, weights=outcomes.astype(np.float64), minlength=n_bins).astype(
        np.float64
    )
    return counts, conf_sums, correct_sums


def _ece(values: FloatArray, outcomes: BoolArray, n_bins: int) -> float | None:
    if not len(values):
        return None
    _, conf_sums, correct_sums = _bin_sums(values, outcomes, bin_index(values, n_bins), n_bins)
    return float(np.abs(conf_sums - correct_sums).sum() / len(values))


def _separation(values: FloatArray, outcomes: BoolArray) -> Metrics:
    positive, negative = values[outcomes], np.sort(values[~outcomes])
    pairs = len(positive) * len(negative)
    if not pairs:
        return {"spr": None, "auroc": None, "tie_rate": None}
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    wins, ties = int(below.sum()), int((not_above - below).sum())
    return {"spr": wins / pairs, "auroc": (wins + ties / 2) / pairs, "tie_rate": ties / pairs}
