"""What a cascade is worth on questions that its threshold was not chosen on, with intervals.

The questions are split by a hash of their id. The threshold comes from the validation questions;
everything that is reported is of the test questions. Intervals are percentile intervals of a
bootstrap over the test questions, the same draws for every router, so that differences between
routers are paired. The threshold stays fixed: the intervals are those of the chosen router, not of
the way it was chosen.

    caopd route --small outputs/small --large outputs/large \\
        --cost-small 1 --cost-large 10 --output outputs/route
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from caopd_verl.cascade.paired_rows import Aligned
from caopd_verl.cascade.resampling import Band, Draw, Intervals, Routers
from caopd_verl.cascade.routing import Cascade, Curve, choose_threshold
from caopd_verl.cascade.routing_settings import Goal, Routing
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.bootstrap import cluster_weights
from caopd_verl.evaluation.intervals.estimates import Estimate, check_bootstrap
from caopd_verl.evaluation.metrics.inputs import BoolArray, FloatArray
from caopd_verl.evaluation.metrics.posthoc import split_groups


@dataclass(frozen=True)
class RouterResult:
    """One small model as router, on the test questions.

    Attributes:
        threshold: from the validation questions; None defers everything.
        chosen_on: that threshold's `cost_share` (of always-large's), `accuracy` and `coverage` on
            the validation questions.
        n_rows: rows of the small model.
        n_unscored: how many of them have no score, and so are deferred.
        figures: see `resampling.figures_of`.
        bands: `accuracy` and `over_random` (accuracy minus random routing's) at the costs of
            `Report.grid`.
        curves: the full curves `router`, `random`, `random_deferral` and `oracle`.
        scores: the different scores, rising: the router's curve has a point for each.
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
    """The first router against another one.

    Attributes:
        figures: `accuracy_difference`, the mean height of its curve above the other's over the
            costs that both can have, and `gain_difference`, the difference of their
            `gain_over_random`. The latter leaves out what the small models know and keeps what
            their scores tell.
        band: the difference of the curves, cost by cost.
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
    """Choose each router's threshold on the validation questions, measure all on the others.

    Raises:
        ConfigError: bad settings, a goal that can't be met, or a small model that costs as much as
            the large one.
        DataError: a split without validation or without test questions.
    """
    _check_settings(routing)
    validation = _validation_questions(aligned, routing)
    cascades = _cascades(aligned, ~validation)
    for name, cascade in cascades.items():
        _check_costs(name, cascade)
    on_validation = _cascades(aligned, validation)
    thresholds = {name: choose_threshold(cascade, goal) for name, cascade in on_validation.items()}
    grid = _grid(cascades, routing.curve_points)
    routers = Routers(cascades, thresholds, grid)
    n_test = int((~validation).sum())
    sample = routers.draw(None)
    resamples = _resamples(routers, ~validation, routing)
    intervals = Intervals(sample, resamples, level=routing.level, n_questions=n_test)
    results = {}
    for name, threshold in thresholds.items():
        chosen_on = _operating_point(on_validation[name], threshold)
        n_rows = len(cascades[name].queries)
        figures = intervals.figures(name, n_rows, aligned.no_latency.get(name))
        bands = {band: intervals.band(name, band) for band in ("accuracy", "over_random")}
        results[name] = _result(cascades[name], threshold, chosen_on, figures, bands)
    versus = _versus(cascades, intervals)
    n_validation = len(validation) - n_test
    return Report(grid, results, versus, n_validation=n_validation, n_test=n_test)


def _check_settings(routing: Routing) -> None:
    check_bootstrap(routing.n_resamples, routing.level)
    if routing.curve_points < 2:
        raise ConfigError(
            f"{routing.curve_points} points make no curve", where="--curve-points", expected=">= 2"
        )
    # `split_groups` checks it too, but its error would name another command's option.
    if not 0.0 < routing.validation_fraction < 1.0:
        raise ConfigError(
            f"{routing.validation_fraction} is no share of the questions",
            where="--validation-fraction",
            expected="a number in (0, 1)",
        )


def _validation_questions(aligned: Aligned, routing: Routing) -> BoolArray:
    """True for the questions (shape [questions]) that the thresholds are chosen on."""
    chosen = split_groups(
        aligned.questions, fraction=routing.validation_fraction, seed=routing.split_seed
    )
    n_chosen = int(chosen.sum())
    n_others = len(chosen) - n_chosen
    if not n_chosen or not n_others:
        raise DataError(
            f"the {len(chosen)} common questions give {n_chosen} to choose the threshold on "
            f"and {n_others} to test it on",
            expected="at least one of each",
            fix="evaluate more questions, or change --validation-fraction or --split-seed",
        )
    return chosen


def _cascades(aligned: Aligned, part: BoolArray) -> dict[str, Cascade]:
    """Each router's cascade on the questions where `part` (shape [questions]) holds."""
    cascades = {}
    for name, queries in aligned.queries.items():
        rows = part[queries.question]
        cascades[name] = Cascade(queries.take(rows))
    return cascades


def _check_costs(name: str, cascade: Cascade) -> None:
    means = cascade.means()
    small, large = means["small_cost"], means["large_cost"]
    if small >= large:
        raise ConfigError(
            f"a query costs {name} {small:.4g} and the large model {large:.4g}",
            where="--cost-small",
            expected="a small model that costs less: otherwise nothing can be saved",
        )


def _grid(cascades: Mapping[str, Cascade], points: int) -> FloatArray:
    """Costs from the cheapest always-small to the dearest "everything deferred"."""
    means = [cascade.means() for cascade in cascades.values()]
    cheapest = min(mean["small_cost"] for mean in means)
    dearest = max(mean["small_cost"] + mean["large_cost"] for mean in means)
    return np.linspace(cheapest, dearest, points)


def _resamples(routers: Routers, tested: BoolArray, routing: Routing) -> list[Draw]:
    """Draws of the test questions (`tested`, shape [questions]), as many as there are of them."""
    rng = np.random.default_rng(routing.bootstrap_seed)
    numbers = np.flatnonzero(tested)
    draws = []
    for _ in range(routing.n_resamples):
        # As long as all questions are, since `Queries.question` counts all of them.
        weights = np.zeros(len(tested))
        weights[numbers] = cluster_weights(rng, len(numbers))
        draws.append(routers.draw(weights))
    return draws


def _operating_point(cascade: Cascade, threshold: float | None) -> dict[str, float]:
    point = cascade.at(threshold)
    always_large = cascade.means()["large_cost"]
    return {
        "cost_share": float(point.cost[0] / always_large),
        "accuracy": float(point.accuracy[0]),
        "coverage": float(point.coverage[0]),
    }


def _result(
    cascade: Cascade,
    threshold: float | None,
    chosen_on: dict[str, float],
    figures: dict[str, Estimate],
    bands: dict[str, Band],
) -> RouterResult:
    curves = {
        "router": cascade.router(),
        "random": cascade.random(),
        "random_deferral": cascade.random_deferral(),
        "oracle": cascade.oracle(),
    }
    unscored = np.isneginf(cascade.queries.score)
    return RouterResult(
        threshold=threshold,
        chosen_on=chosen_on,
        n_rows=len(cascade.queries),
        n_unscored=int(unscored.sum()),
        figures=figures,
        bands=bands,
        curves=curves,
        scores=cascade.scores,
    )


def _versus(cascades: Mapping[str, Cascade], intervals: Intervals) -> dict[str, Versus]:
    """The first router against each of the others."""
    first, *others = cascades
    n_rows = len(cascades[first].queries)
    found = {}
    for other in others:
        pair = (first, other)
        figures = intervals.figures(pair, n_rows)
        found[other] = Versus(figures, intervals.band(pair, "difference"))
    return found
