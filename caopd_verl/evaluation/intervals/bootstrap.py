"""Bootstrap intervals: draws of clusters, and the interval from what the draws give.

Resampling is over clusters (questions), because samples of one question are not independent: eight
equal answers to one question carry no more than one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.inputs import BoolArray, FloatArray, IntArray

MIN_DEFINED = 0.5
"""Where fewer of the resamples define a figure, an interval would describe those few alone."""

_CELLS = 2_000_000  # numbers that are drawn at once: 16 MB


def cluster_index(groups: Sequence[Hashable] | None, n: int) -> IntArray:
    """For each of n rows the number of its cluster, 0, 1, ..., shape [n].

    Args:
        groups: the question of each row; None where every row is a cluster of its own.
        n: rows.

    Raises:
        ConfigError: another number of groups than rows.
    """
    if groups is None:
        return np.arange(n, dtype=np.int64)
    if len(groups) != n:
        raise ConfigError(
            f"{len(groups)} groups for {n} rows", where="groups", expected="one group a row"
        )
    # By first appearance: the order of a set of strings differs from one process to the next.
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    return np.array(index, dtype=np.int64)


def cluster_weights(rng: np.random.Generator, n_clusters: int) -> FloatArray:
    """How often each cluster is drawn when `n_clusters` are drawn with replacement, same shape."""
    drawn = rng.integers(0, n_clusters, size=n_clusters, dtype=np.int32)
    return np.bincount(drawn, minlength=n_clusters).astype(np.float64)


def percentile_interval(draws: FloatArray, *, level: float) -> tuple[FloatArray, FloatArray]:
    """Low and high end of the interval that holds the middle `level` of the draws.

    Args:
        draws: shape [resamples, ...], without NaN.
        level: such as 0.95.

    Returns:
        Two arrays of the shape of one draw.
    """
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    return low, high


def defined_draws(draws: FloatArray) -> FloatArray | None:
    """The draws (shape [resamples]) that are not NaN; None where they are too few to go by."""
    defined = draws[~np.isnan(draws)]
    if not len(defined) or len(defined) < MIN_DEFINED * len(draws):
        return None
    return defined


def unanimous_interval(value: float, n_clusters: int, *, level: float) -> tuple[float, float]:
    """The interval of a share that is 0 or 1 in the sample: exact for `n_clusters` trials.

    A bootstrap of nothing but 0s or 1s has no width, which would claim certainty. One-sided, with
    (1 - level) / 2 of error.
    """
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
    """Percentile interval of the mean of `outcomes`, clusters resampled.

    Where all outcomes are 0 or all are 1 it is that of `unanimous_interval`.

    Args:
        outcomes: values in [0, 1], shape [n].
        clusters: the number of each row's cluster, shape [n].
        n_resamples, level, seed: of the bootstrap.

    Raises:
        ConfigError: no outcomes, `n_resamples` below 1, or `level` outside (0, 1).
    """
    if not len(outcomes) or n_resamples < 1 or not 0.0 < level < 1.0:
        raise ConfigError(
            f"no interval for {len(outcomes)} rows, {n_resamples} resamples, level {level}",
            expected="at least one row and one resample, a level in (0, 1)",
        )
    values = np.asarray(outcomes, dtype=np.float64)
    # The rows may be those of one bin: clusters without a row there are not to be drawn.
    _, compact = np.unique(clusters, return_inverse=True)
    sums = np.bincount(compact, weights=values)
    counts = np.bincount(compact)
    n_clusters = len(sums)
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest and lowest in (0.0, 1.0):
        return unanimous_interval(lowest, n_clusters, level=level)
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, _CELLS // n_clusters)
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        drawn = rng.integers(0, n_clusters, size=(size, n_clusters))
        drawn_sums = sums[drawn].sum(axis=1)
        drawn_counts = counts[drawn].sum(axis=1)
        means[start : start + size] = drawn_sums / drawn_counts
    low, high = percentile_interval(means, level=level)
    return float(low), float(high)
