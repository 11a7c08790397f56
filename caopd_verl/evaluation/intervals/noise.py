"""The noise floor: what ECE a perfectly calibrated model shows at this n, with these confidences.

The binned ECE of a finite sample is never 0: at 68 rows with spread confidences a perfectly
calibrated model shows about 0.12. So each outcome is drawn anew with its own confidence as
probability, many times; the mean and the 95th percentile of the ECE are what a reported ECE has to
be read against.

    python -c "from caopd_verl.evaluation.intervals.noise import noise_floor
    print(noise_floor([.9, .5, .1] * 20, n_bins=10, groups=None, n_simulations=500, seed=0))"
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from caopd_verl.config import Missing
from caopd_verl.evaluation.intervals.bootstrap import cluster_index
from caopd_verl.evaluation.metrics.formulas import Table, bin_index, bins_of, ece, first_of_each
from caopd_verl.evaluation.metrics.inputs import FloatArray, IntArray, check_bins, read_rows

_CELLS = 4_000_000  # simulated counts that are held at once: 32 MB
_PERCENTILE = 0.95


@dataclass(frozen=True)
class NoiseFloor:
    """ECE of a perfectly calibrated model: mean and 95th percentile over simulations.

    `clustered_mean` and `clustered_p95` are the same where the samples of a question succeed or
    fail together as far as their confidences allow (one uniform draw a question): an upper bound
    for samples that are not independent. None where every question has one sample.
    """

    n: int
    mean: float
    p95: float
    clustered_mean: float | None = None
    clustered_p95: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def noise_floor(
    confidence: Sequence[float | None],
    *,
    n_bins: int,
    groups: Sequence[Hashable] | None,
    n_simulations: int,
    seed: int,
) -> NoiseFloor | None:
    """The floor for the rows that carry a confidence; None where none does.

    Args:
        confidence: for each row a number in [0, 1], or None.
        n_bins: bins of the ECE.
        groups: the question of each row; None where every row is a question of its own.
        n_simulations, seed: of the simulation.

    Raises:
        DataError, ConfigError: as `calibration_metrics`.
    """
    check_bins(n_bins)
    no_verdicts = [False] * len(confidence)  # they are drawn below
    rows = read_rows(confidence, no_verdicts).scored(Missing.drop)
    values = rows.confidence
    n = len(values)
    if not n:
        return None
    rng = np.random.default_rng(seed)
    alone = _independent(rng, values, n_bins, n_simulations)
    mean, p95 = _mean_and_percentile(alone)
    clusters = cluster_index(groups, len(confidence))[rows.places]
    if len(np.unique(clusters)) == n:
        return NoiseFloor(n, mean, p95)
    together = _together(rng, values, clusters, n_bins, n_simulations)
    return NoiseFloor(n, mean, p95, *_mean_and_percentile(together))


def _independent(
    rng: np.random.Generator, values: FloatArray, n_bins: int, n_simulations: int
) -> FloatArray:
    """The ECE of each simulation (shape [simulations]) where every row is drawn by itself."""
    # Rows of one confidence are drawn together, as a binomial count: at two decimals there are at
    # most 101 of those, however many rows.
    distinct, counts = np.unique(values, return_counts=True)
    total = counts.astype(np.float64)
    starts = first_of_each(bin_index(distinct, n_bins))
    step = max(1, _CELLS // len(distinct))
    errors = []
    for first in range(0, n_simulations, step):
        size = min(step, n_simulations - first)
        right = rng.binomial(counts, distinct, size=(size, len(distinct)))
        table = Table(distinct, total, right.astype(np.float64))
        errors.append(ece(bins_of(table, starts)))
    return np.concatenate(errors)


def _together(
    rng: np.random.Generator,
    values: FloatArray,
    clusters: IntArray,
    n_bins: int,
    n_simulations: int,
) -> FloatArray:
    """The same where all rows of a cluster share one uniform draw."""
    _, compact = np.unique(clusters, return_inverse=True)
    order = np.argsort(values, kind="stable")
    # The table's entries are rows here, not distinct values: what is drawn belongs to a row.
    values, compact = values[order], compact[order]
    starts = first_of_each(bin_index(values, n_bins))
    ones = np.ones(len(values))
    errors = np.empty(n_simulations)
    for i in range(n_simulations):
        uniform = rng.random(compact.max() + 1)
        right = (uniform[compact] < values).astype(np.float64)
        errors[i] = ece(bins_of(Table(values, ones, right), starts))
    return errors


def _mean_and_percentile(errors: FloatArray) -> tuple[float, float]:
    return float(errors.mean()), float(np.quantile(errors, _PERCENTILE))
