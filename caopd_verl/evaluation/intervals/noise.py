"""The noise floor: what ECE a perfectly calibrated model shows at this n and with these confidences.

The binned ECE of a finite sample is never 0: at 68 rows with spread confidences a perfectly calibrated model shows
about 0.12 (trap T31). So each outcome is drawn anew with its own confidence as probability, many times, and the mean
and the 95th percentile of the ECE are what a reported ECE has to be read against.

    python -c "from caopd_verl.evaluation.intervals.noise import noise_floor; print(noise_floor([.9, .5, .1] * 20, n_bins=10,
    groups=None, n_simulations=500, seed=0))"
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caopd_verl.evaluation.intervals.bootstrap import cluster_index
from caopd_verl.evaluation.metrics.calibration import (
    FloatArray,
    IntArray,
    _check_bins,
    _columns,
    bin_index,
)

_CELLS = 4_000_000


@dataclass(frozen=True)
class NoiseFloor:
    """ECE of a perfectly calibrated model: mean and 95th percentile over simulations.

    `clustered_mean` and `clustered_p95` are the same where the samples of a question succeed or fail together as far as
    their confidences allow (one uniform draw a question): an upper bound for samples that are not independent. None
    where every question has one sample.
    """

    n: int
    mean: float
    p95: float
    clustered_mean: float | None = None
    clustered_p95: float | None = None

    def as_dict(self) -> dict[str, Any]:
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

    Raises:
        DataError, ConfigError: as `metrics.calibration_metrics`.
    """
    _check_bins(n_bins)
    values, parsed, _ = _columns(confidence, [False] * len(confidence))
    values = values[parsed]
    if not len(values):
        return None
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    starts = np.unique(bin_index(distinct, n_bins), return_index=True)[1]
    step = max(1, _CELLS // len(distinct))
    errors = np.concatenate(
        [
            _ece(
                rng.binomial(counts, distinct, size=(min(step, n_simulations - i), len(distinct))),
                distinct,
                counts,
                starts,
            )
            for i in range(0, n_simulations, step)
        ]
    )
    floor = NoiseFloor(len(values), float(errors.mean()), float(np.quantile(errors, 0.95)))
    clusters = np.unique(cluster_index(groups, len(confidence))[parsed], return_inverse=True)[1]
    if groups is None or len(np.unique(clusters)) == len(values):
        return floor
    order = np.argsort(values, kind="stable")
    row_starts = np.unique(bin_index(values[order], n_bins), return_index=True)[1]
    together = np.empty(n_simulations)
    for i in range(n_simulations):
        right = rng.random(clusters.max() + 1)[clusters[order]] < values[order]
        together[i] = _ece(
            right[None].astype(np.float64), values[order], np.ones(len(values)), row_starts
        )[0]
    return NoiseFloor(
        floor.n, floor.mean, floor.p95, float(together.mean()), float(np.quantile(together, 0.95))
    )


def _ece(
    right: NDArray[Any], values: FloatArray, counts: NDArray[Any], starts: IntArray
) -> FloatArray:
    """The ECE of each simulation; `right` has shape [simulations, values], `starts` the bins' first columns."""
    excess = values * counts - right
    return np.abs(np.add.reduceat(excess, starts, axis=1)).sum(axis=1) / counts.sum()
