"""The routers' figures and curves: of the sample, and of bootstrap resamples of its questions.

A draw is everything that is reported, under one weighting of the questions: the sample is the draw
in which each question counts once. Every router sees the same draws, so that differences between
routers are paired. Intervals are percentile intervals over the draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caopd_verl.cascade.routing import Cascade, Curve
from caopd_verl.evaluation.intervals.bootstrap import (
    defined_draws,
    percentile_interval,
    unanimous_interval,
)
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.metrics.inputs import BoolArray, FloatArray

SHARES = ("accuracy", "coverage", "small_accuracy", "large_accuracy")
LATENCIES = ("latency", "small_latency", "large_latency")
# The mean of nothing but 0s or nothing but 1s may miss its value by rounding.
_ROUNDING = 1e-12

Owner = str | tuple[str, str]
"""Whose figures they are: a router's, or those of a pair of routers that are compared."""


@dataclass(frozen=True)
class Band:
    """A curve over the common grid of costs: value and interval.

    Every array has shape [points] and is NaN where the router cannot have that cost.
    """

    value: FloatArray
    low: FloatArray
    high: FloatArray

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None instead of NaN."""
        return {name: _without_nan(values) for name, values in vars(self).items()}


@dataclass(frozen=True)
class Draw:
    """All figures and bands under one weighting of the questions; see `figures_of` and `Routers`.

    Attributes:
        figures: owner -> name -> value; NaN where it is undefined.
        bands: owner -> name -> heights over the grid of costs, shape [points].
    """

    figures: Mapping[Owner, Mapping[str, float]]
    bands: Mapping[Owner, Mapping[str, FloatArray]]


class Routers:
    """What is measured of one or more routers with fixed thresholds.

    Args:
        cascades: router -> the cascade of the test questions.
        thresholds: router -> the confidence from which it serves; None defers everything.
        grid: costs, shape [points], at which the bands are taken.
    """

    def __init__(
        self,
        cascades: Mapping[str, Cascade],
        thresholds: Mapping[str, float | None],
        grid: FloatArray,
    ):
        self.cascades, self.thresholds, self.grid = cascades, thresholds, grid
        self._reachable = {name: self._costs_of(cascade) for name, cascade in cascades.items()}

    def draw(self, weights: FloatArray | None) -> Draw:
        """Everything under `weights` (shape [questions]: how often each one was drawn).

        Bands of a router: `accuracy`, and `over_random`, its accuracy minus random routing's. Of a
        pair: `difference`, the first router's accuracy minus the other's.
        """
        figures: dict[Owner, dict[str, float]] = {}
        bands: dict[Owner, dict[str, FloatArray]] = {}
        curves: dict[str, Curve] = {}
        for name, cascade in self.cascades.items():
            threshold = self.thresholds[name]
            router, random = cascade.router(weights), cascade.random(weights)
            curves[name] = router
            figures[name] = figures_of(cascade, threshold, router, random, weights)
            heights = router.accuracy_at(self.grid)
            accuracy = np.where(self._reachable[name], heights, np.nan)
            over_random = accuracy - random.accuracy_at(self.grid)
            bands[name] = {"accuracy": accuracy, "over_random": over_random}
        # Not every pair: how many there are grows with the square of the routers.
        first, *others = self.cascades
        for other in others:
            pair = (first, other)
            figures[pair] = _differences(pair, curves, figures)
            difference = bands[first]["accuracy"] - bands[other]["accuracy"]
            bands[pair] = {"difference": difference}
        return Draw(figures, bands)

    def _costs_of(self, cascade: Cascade) -> BoolArray:
        """Where on the grid the router can be: no cascade costs less than always-small."""
        least = cascade.means()["small_cost"]
        # The grid begins at the cheapest router's least cost, which rounding must not cut off.
        return self.grid >= least * (1.0 - 1e-9)


def figures_of(
    cascade: Cascade,
    threshold: float | None,
    router: Curve,
    random: Curve,
    weights: FloatArray | None,
) -> dict[str, float]:
    """The figures of one router; a figure without a value is NaN.

    At the threshold: `accuracy`, `cost`, `cost_share` (of always-large's cost), `latency` and
    `coverage`. Those of always-small and always-large: `small_accuracy`, `large_cost`, ... For each
    X of `random`, `random_deferral` and `oracle`: `X_accuracy` at the threshold's cost, `over_X`
    (the threshold's accuracy minus that), and `gain_over_X`, the mean of the curve's accuracy minus
    X's over the costs from always-small's to always-large's. Over both models: `over_small` and
    `over_large`.

    Args:
        cascade: of the test questions.
        threshold: the confidence from which the small model is served; None defers everything.
        router, random: the cascade's curves under `weights`.
        weights: how often each question was drawn, shape [questions]; None is once.
    """
    means, chosen = cascade.means(weights), cascade.at(threshold, weights)
    low, high = means["small_cost"], means["large_cost"]
    cost = float(chosen.cost[0])
    accuracy = float(chosen.accuracy[0])
    figures = {
        "accuracy": accuracy,
        "cost": cost,
        "cost_share": cost / high if high > 0.0 else math.nan,
        "latency": float(chosen.latency[0]),
        "coverage": float(chosen.coverage[0]),
        **means,
        "over_small": accuracy - means["small_accuracy"],
        "over_large": accuracy - means["large_accuracy"],
    }
    baselines = {
        "random": random,
        "random_deferral": cascade.random_deferral(weights),
        "oracle": cascade.oracle(weights),
    }
    # A resample in which the small model costs more than the large one has no cost range to
    # compare over.
    comparable = low < high
    height = router.mean_accuracy(low, high) if comparable else math.nan
    for name, baseline in baselines.items():
        at_cost = float(baseline.accuracy_at(cost)) if comparable else math.nan
        mean = baseline.mean_accuracy(low, high) if comparable else math.nan
        figures[f"{name}_accuracy"] = at_cost
        figures[f"over_{name}"] = accuracy - at_cost
        figures[f"gain_over_{name}"] = height - mean
    return figures


def _differences(
    pair: tuple[str, str],
    curves: Mapping[str, Curve],
    figures: Mapping[Owner, Mapping[str, float]],
) -> dict[str, float]:
    """The figures of a pair of routers; `measure.Versus` says what they are."""
    first, other = (figures[name] for name in pair)
    # The small models may differ in cost: only what both can have is compared.
    low = max(first["small_cost"], other["small_cost"])
    high = min(first["large_cost"], other["large_cost"])
    accuracy = math.nan
    if low < high:
        heights = [curves[name].mean_accuracy(low, high) for name in pair]
        accuracy = heights[0] - heights[1]
    gain = first["gain_over_random"] - other["gain_over_random"]
    return {"accuracy_difference": accuracy, "gain_difference": gain}


class Intervals:
    """Estimates and bands from the sample and its resamples.

    Args:
        sample: each question counted once.
        resamples: may be empty; then there are no intervals.
        level: of the intervals, in (0, 1).
        n_questions: how many questions each draw has.
    """

    def __init__(self, sample: Draw, resamples: Sequence[Draw], *, level: float, n_questions: int):
        self.sample, self.resamples = sample, resamples
        self.level, self.n_questions = level, n_questions

    def figures(self, owner: Owner, n: int, no_latency: str | None = None) -> dict[str, Estimate]:
        """Each figure of `owner` with its interval.

        Args:
            owner: a router or a pair.
            n: rows that the figures rest on.
            no_latency: why the latencies are undefined, if they are.
        """
        found = {}
        for name, value in self.sample.figures[owner].items():
            if name in LATENCIES and no_latency is not None:
                found[name] = Estimate(None, None, None, n, reason=no_latency)
            else:
                found[name] = self._estimate(owner, name, float(value), n)
        return found

    def _estimate(self, owner: Owner, name: str, value: float, n: int) -> Estimate:
        if math.isnan(value):
            return Estimate(None, None, None, n, reason="there is no cost that both can have")
        if not self.resamples:
            return Estimate(value, None, None, n)
        nearest = round(value)
        if name in SHARES and nearest in (0, 1) and abs(value - nearest) < _ROUNDING:
            # A bootstrap of nothing but 0s or 1s has no width, which would claim certainty.
            low, high = unanimous_interval(nearest, self.n_questions, level=self.level)
            return Estimate(value, low, high, n)
        values = [draw.figures[owner][name] for draw in self.resamples]
        defined = defined_draws(np.array(values))
        if defined is None:
            return Estimate(value, None, None, n, reason="undefined in most resamples: no interval")
        ends = percentile_interval(defined, level=self.level)
        return Estimate(value, float(ends[0]), float(ends[1]), n)

    def band(self, owner: Owner, name: str) -> Band:
        """One band of `owner` with its interval, cost by cost."""
        value = self.sample.bands[owner][name]
        if not self.resamples:
            nowhere = np.full_like(value, np.nan)
            return Band(value, nowhere, nowhere)
        drawn = [draw.bands[owner][name] for draw in self.resamples]
        low, high = percentile_interval(np.array(drawn), level=self.level)
        return Band(value, low, high)


def _without_nan(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]
