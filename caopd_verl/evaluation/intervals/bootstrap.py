"""Bootstrap intervals. Resampling is over clusters (questions), as samples of one question are not independent."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.calibration import BoolArray, FloatArray, IntArray


def cluster_index(groups: Sequence[Hashable] | None, n: int) -> IntArray:
    """For each of n rows the number of its cluster (shape [n], 0, 1, ...); one cluster a row where `groups` is None."""
    if groups is None:
        return np.arange(n, dtype=np.int64)
    if len(groups) != n:
        raise ConfigError(
            f"{len(groups)} groups for {n} rows", where="groups", expected="one group a row"
        )
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def cluster_weights(rng: np.random.Generator, n_clusters: int) -> FloatArray:
    """How often each of the clusters is drawn when `n_clusters` are drawn with replacement (shape [n_clusters])."""
    drawn = rng.integers(0, n_clusters, size=n_clusters, dtype=np.int32)
    return np.bincount(drawn, minlength=n_clusters).astype(np.float64)


def unanimous_interval(value: float, n_clusters: int, *, level: float) -> tuple[float, float]:
    """The interval of a share that is 0 or 1 in the sample: exact one-sided bound for `n_clusters` trials."""
    bound = ((1.0 - level) / 2.0) ** (1.0 / n_clusters)
    return (bound, 1.0) if value == 1.0 else (0.0, 1.0 - bound)


def mean_interval(
    outcomes: BoolArray | FloatArray,
    clusters: IntArray,
    *,
    n_resamples: int,
    level: float,
    seed: int,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `outcomes` (shape [n], values in [0, 1]), clusters resampled.

    Where all outcomes are 0 or all are 1 the bootstrap has no width, which would claim certainty; the interval is then
    the exact one-sided bound for as many independent trials as there are clusters ((1 - level) / 2 of error).

    Raises:
        ConfigError: no outcomes, `n_resamples` below 1, or `level` outside (0, 1).
    """
    if not len(outcomes) or n_resamples < 1 or not 0.0 < level < 1.0:
        raise ConfigError(
            f"no interval for {len(outcomes)} rows, {n_resamples} resamples, level {level}",
            expected="at least one row and one resample, a level in (0, 1)",
        )
    values = np.asarray(outcomes, dtype=np.float64)
    _, compact = np.unique(clusters, return_inverse=True)
    sums = np.bincount(compact, weights=values)
    counts = np.bincount(compact)
    tail = (1.0 - level) / 2.0
    if values.min() == values.max() and values.min() in (0.0, 1.0):
        return unanimous_interval(float(values.min()), len(sums), level=level)
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, 2_000_000 // len(sums))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        drawn = rng.integers(0, len(sums), size=(size, len(sums)))
        means[start : start + size] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
