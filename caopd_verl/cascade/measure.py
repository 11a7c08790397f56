"""What a cascade is worth on questions that its threshold was not chosen on, with intervals.

The questions are split by a hash of their id. The threshold comes from the validation part; everything that is reported
is of the test part. Intervals are percentile intervals of a bootstrap over the test questions, the same draws for every
router, so that differences between routers are paired. The threshold stays fixed: the intervals are those of the
chosen router, not of the way it was chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from caopd_verl.cascade.paired_rows import Aligned
from caopd_verl.cascade.routing import Cascade, Curve, choose_threshold
from caopd_verl.cascade.routing_settings import Goal, Routing
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.bootstrap import cluster_weights, unanimous_interval
from caopd_verl.evaluation.intervals.estimates import Estimate, check_bootstrap
from caopd_verl.evaluation.metrics.calibration import BoolArray, FloatArray
from caopd_verl.evaluation.metrics.posthoc import split_groups

SHARES = ("accuracy", "coverage", "small_accuracy", "large_accuracy")
LATENCIES = ("latency", "small_latency", "large_latency")
_MIN_DEFINED = 0.5


@dataclass(frozen=True)
class Band:
    """A curve over the common grid of costs: value and interval, shape [points], NaN where the router can't be."""

    value: FloatArray
    low: FloatArray
    high: FloatArray

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None instead of NaN."""
        return {
            key: [None if math.isnan(x) else float(x) for x in values]
            for key, values in vars(self).items()
        }


@dataclass(frozen=True)
class RouterResult:
    """One small model as router, on the test questions.

    Attributes:
        threshold: from the validation questions; None defers everything.
        chosen_on: cost (as a share of always-large's), accuracy and coverage of that threshold on the validation rows.
        figures: see `_figures`.
        bands: `accuracy` and `over_random` (accuracy minus random routing's) at the costs of `Report.grid`.
        curves: the full curves `router`, `random`, `random_deferral` and `oracle`.
    """

    threshold: float | None
    chosen_on: dict[str, float]
    n_rows: int
    n_unscored: int
    figures: dict[str, Estimate]
    bands: dict[str, Band]
    curves: dict[str, Curve]
    scores: FloatArray


@dataclass(frozen=True)
class Versus:
    """The first router against another one: `accuracy_difference` is the mean height of its curve above the other's
    over the costs that both can have, `gain_difference` the difference of their `gain_over_random`, which leaves out
    what the small models know and keeps what their scores tell; `band` the difference of the curves cost by cost.
    """

    figures: dict[str, Estimate]
    band: Band


@dataclass(frozen=True)
class Report:
    """All routers on one grid of mean costs per query, shape [points]."""

    grid: FloatArray
    routers: dict[str, RouterResult]
    versus: dict[str, Versus]
    n_validation: int
    n_test: int


def measure(aligned: Aligned, goal: Goal, routing: Routing) -> Report:
    """Choose each router's threshold on the validation questions and measure all of them on the test questions.

    Raises:
        ConfigError: bad settings, a goal that can't be met, or a small model that costs as much as the large one.
        DataError: a split without validation or without test questions.
    """
    check_bootstrap(routing.n_resamples, routing.level)
    if routing.curve_points < 2:
        raise ConfigError(
            f"{routing.curve_points} points make no curve", where="--curve-points", expected=">= 2"
        )
    validation = split_groups(
        aligned.questions, fraction=routing.validation_fraction, seed=routing.split_seed
    )
    test = np.flatnonzero(~validation)
    if not validation.any() or not len(test):
        raise DataError(
            f"the {len(aligned.questions)} common questions give {int(validation.sum())} to choose the threshold on "
            f"and {len(test)} to test it on",
            expected="at least one of each",
            fix="evaluate more questions, or change --validation-fraction or --split-seed",
        )
    chosen_on, tested = (_cascades(aligned, part) for part in (validation, ~validation))
    for name, cascade in tested.items():
        _check_costs(name, cascade)
    thresholds = {name: choose_threshold(cascade, goal) for name, cascade in chosen_on.items()}
    grid, rows = _grid(tested, routing.curve_points), _Rows(tested, thresholds)
    rng = np.random.default_rng(routing.bootstrap_seed)
    drawn = []
    for _ in range(routing.n_resamples):
        weights = np.zeros(len(aligned.questions))
        weights[test] = cluster_weights(rng, len(test))
        drawn.append(rows.at(grid, weights))
    point = rows.at(grid, None)
    stacked = {key: np.array([one[key] for one in drawn]) for key in point} if drawn else {}
    summary = _Summary(point, stacked, routing.level, len(test))
    routers = {
        name: _result(
            name, chosen_on[name], tested[name], threshold, summary, aligned.no_latency.get(name)
        )
        for name, threshold in thresholds.items()
    }
    first, *others = tested
    n = len(tested[first].queries)
    versus = {
        other: Versus(
            summary.estimates((first, other), n, None), summary.band((first, other), "difference")
        )
        for other in others
    }
    return Report(grid, routers, versus, n_validation=int(validation.sum()), n_test=len(test))


def _cascades(aligned: Aligned, part: BoolArray) -> dict[str, Cascade]:
    """Each router's cascade on the questions where `part` (shape [questions]) holds."""
    return {
        name: Cascade(q.take(part[q.question]), len(part)) for name, q in aligned.queries.items()
    }


def _result(
    name: str,
    chosen_on: Cascade,
    tested: Cascade,
    threshold: float | None,
    summary: _Summary,
    no_latency: str | None,
) -> RouterResult:
    n = len(tested.queries)
    return RouterResult(
        threshold=threshold,
        chosen_on=_chosen_on(chosen_on, threshold),
        n_rows=n,
        n_unscored=int(np.isneginf(tested.queries.score).sum()),
        figures=summary.estimates(name, n, no_latency),
        bands={what: summary.band(name, what) for what in ("accuracy", "over_random")},
        curves={
            "router": tested.router(),
            "random": tested.random(),
            "random_deferral": tested.random_deferral(),
            "oracle": tested.oracle(),
        },
        scores=tested.scores,
    )


def _check_costs(name: str, cascade: Cascade) -> None:
    means = cascade.means()
    if means["small_cost"] >= means["large_cost"]:
        raise ConfigError(
            f"a query costs {name} {means['small_cost']:.4g} and the large model {means['large_cost']:.4g}",
            where="--cost-small",
            expected="a small model that costs less: otherwise nothing can be saved",
        )


def _chosen_on(cascade: Cascade, threshold: float | None) -> dict[str, float]:
    point, large = cascade.at(threshold), cascade.means()["large_cost"]
    return {
        "cost_share": float(point.cost[0] / large),
        "accuracy": float(point.accuracy[0]),
        "coverage": float(point.coverage[0]),
    }


def _grid(cascades: dict[str, Cascade], points: int) -> FloatArray:
    """Costs from the cheapest always-small to the dearest "everything deferred"."""
    means = [cascade.means() for cascade in cascades.values()]
    low = min(m["small_cost"] for m in means)
    return np.linspace(low, max(m["small_cost"] + m["large_cost"] for m in means), points)


class _Rows:
    """All figures and curves under given weights, as flat arrays: what is the same for sample and resamples."""

    def __init__(self, cascades: dict[str, Cascade], thresholds: dict[str, float | None]):
        self.cascades, self.thresholds = cascades, thresholds
        self.starts = {name: cascade.means()["small_cost"] for name, cascade in cascades.items()}

    def at(self, grid: FloatArray, weights: FloatArray | None) -> dict[Any, Any]:
        """(router or pair of routers, figure) -> float, or an array of shape [points] for the bands."""
        out: dict[Any, Any] = {}
        curves = {}
        for name, cascade in self.cascades.items():
            curves[name] = router, random = cascade.router(weights), cascade.random(weights)
            figures = _figures(cascade, self.thresholds[name], router, random, weights)
            out |= {(name, key): value for key, value in figures.items()}
            reachable = np.where(grid >= self.starts[name] * (1.0 - 1e-9), 0.0, np.nan)
            out[name, "band accuracy"] = router.accuracy_at(grid) + reachable
            out[name, "band over_random"] = out[name, "band accuracy"] - random.accuracy_at(grid)
        first, *others = self.cascades
        for other in others:
            low, high = (
                pick(curves[first][1].cost[end], curves[other][1].cost[end])
                for pick, end in ((max, 0), (min, 1))
            )
            heights = [
                curves[name][0].mean_accuracy(low, high) if low < high else math.nan
                for name in (first, other)
            ]
            pair = (first, other)
            out[pair, "accuracy_difference"] = heights[0] - heights[1]
            out[pair, "gain_difference"] = (
                out[first, "gain_over_random"] - out[other, "gain_over_random"]
            )
            out[pair, "band difference"] = out[first, "band accuracy"] - out[other, "band accuracy"]
        return out


def _figures(
    cascade: Cascade,
    threshold: float | None,
    router: Curve,
    random: Curve,
    weights: FloatArray | None,
) -> dict[str, float]:
    """Figures of one router: `accuracy`, `cost`, `cost_share` (of always-large's), `latency` and `coverage` at the
    threshold; those of always-small and always-large; accuracy of the random lines and of the oracle at the same cost,
    and the threshold's accuracy over each of them and over both models; `gain_*`: mean of the curve's accuracy minus
    the other's over the costs from always-small's to always-large's.
    """
    means, chosen = cascade.means(weights), cascade.at(threshold, weights)
    low, high = means["small_cost"], means["large_cost"]
    cost, accuracy = float(chosen.cost[0]), float(chosen.accuracy[0])
    others = {
        "random": random,
        "random_deferral": cascade.random_deferral(weights),
        "oracle": cascade.oracle(weights),
    }
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
    height = router.mean_accuracy(low, high) if low < high else math.nan
    for name, curve in others.items():
        # A resample in which the small model costs more than the large one has no cost range to compare over.
        at_cost = float(curve.accuracy_at(cost)) if low < high else math.nan
        figures[f"{name}_accuracy"] = at_cost
        figures[f"over_{name}"] = accuracy - at_cost
        figures[f"gain_over_{name}"] = (
            height - curve.mean_accuracy(low, high) if low < high else math.nan
        )
    return figures


class _Summary:
    """Estimates and bands from the sample and the stacked resamples."""

    def __init__(
        self, point: dict[Any, Any], drawn: dict[Any, FloatArray], level: float, n_questions: int
    ):
        self.point, self.drawn, self.level, self.n_questions = point, drawn, level, n_questions

    def estimates(self, owner: Any, n: int, no_latency: str | None) -> dict[str, Estimate]:
        names = [key for who, key in self.point if who == owner and not key.startswith("band ")]
        return {name: self._estimate(owner, name, n, no_latency) for name in names}

    def _estimate(self, owner: Any, name: str, n: int, no_latency: str | None) -> Estimate:
        if name in LATENCIES and no_latency is not None:
            return Estimate(None, None, None, n, reason=no_latency)
        value = float(self.point[owner, name])
        if math.isnan(value):
            return Estimate(None, None, None, n, reason="there is no cost that both can have")
        if not self.drawn:
            return Estimate(value, None, None, n)
        # A share that is 0 or 1 in the sample has no width in a bootstrap, which would claim certainty.
        if name in SHARES and min(abs(value), abs(value - 1.0)) < 1e-12:
            return Estimate(
                value, *unanimous_interval(round(value), self.n_questions, level=self.level), n
            )
        sampled = self.drawn[owner, name]
        defined = sampled[~np.isnan(sampled)]
        if len(defined) < _MIN_DEFINED * len(sampled):
            return Estimate(value, None, None, n, reason="undefined in most resamples: no interval")
        low, high = np.quantile(defined, self._tails())
        return Estimate(value, float(low), float(high), n)

    def band(self, owner: Any, what: str) -> Band:
        value = self.point[owner, f"band {what}"]
        if not self.drawn:
            return Band(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
        low, high = np.quantile(self.drawn[owner, f"band {what}"], self._tails(), axis=0)
        return Band(value, low, high)

    def _tails(self) -> list[float]:
        return [(1.0 - self.level) / 2.0, (1.0 + self.level) / 2.0]
