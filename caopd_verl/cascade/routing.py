"""Cost-accuracy curves of a two-model cascade, and the choice of its threshold.

A query goes to the small model first. Its score (a confidence) decides: at or above the threshold its answer is served,
below it the large model is asked too. A served query costs c_s, a deferred one c_s + c_l, as the small model has run
already; latencies add up alike. Curves hold means over queries, from "none deferred" to "all deferred":

* Router: queries are deferred by rising score. Queries of one score are deferred in random order, in expectation, so
  the curve is a straight line across them, and a router that always says the same is the line of random deferral.
  A query without a score has the score -inf: it is deferred before any other, at every threshold.
* Random: a share r of the queries is sent to the large model by chance, without running the small one first. Cost
  (1 - r) c_s + r c_l. It is the stronger of two baselines. Random deferral, the weaker one, asks the small model
  first and pays c_s + r c_l: what a cascade with a score of no information does.
* Oracle: a cascade whose score knows the verdicts. It defers what the large model gets right more often, most gain for
  its cost first, and nothing else. No score can do better; not running the small model at all can (see random).

    python -c "from caopd_verl.cascade.routing import *; import numpy as np; o = np.ones(2); print(Cascade(Queries(
    np.arange(2), np.array([.9, .2]), np.array([1., 0.]), o, 0 * o, o, 9 * o, 0 * o)).router())"
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from caopd_verl.cascade.routing_settings import Goal
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.calibration import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Queries:
    """One small model's rows beside what the large model does with the same question; every array has shape [n].

    Attributes:
        question: number of the row's question; rows of one question are resampled together.
        score: what the row is routed by; -inf where it has none.
        small_correct, large_correct: outcome in [0, 1] (the large one a mean over its samples).
        small_cost, large_cost: of one answer, in any one unit.
        small_latency, large_latency: seconds; NaN where not known.
    """

    question: IntArray
    score: FloatArray
    small_correct: FloatArray
    small_cost: FloatArray
    small_latency: FloatArray
    large_correct: FloatArray
    large_cost: FloatArray
    large_latency: FloatArray

    def __len__(self) -> int:
        return len(self.score)

    def take(self, keep: BoolArray) -> Queries:
        """The rows where `keep` (shape [n]) holds."""
        return Queries(**{name: values[keep] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Curve:
    """Operating points from "none deferred" to "all deferred", shape [points] each; straight lines between them.

    `coverage` is the share that the small model serves, `cost` the mean cost of a query.
    """

    cost: FloatArray
    accuracy: FloatArray
    latency: FloatArray
    coverage: FloatArray

    def accuracy_at(self, cost: FloatArray | float) -> FloatArray:
        """Accuracy at mean costs (any shape); beyond the ends that of the end."""
        return np.asarray(np.interp(cost, self.cost, self.accuracy))

    def mean_accuracy(self, low: float, high: float) -> float:
        """The mean of `accuracy_at` over the costs from low to high (exact: a sum of trapezoids)."""
        inside = (self.cost > low) & (self.cost < high)
        x = np.concatenate(([low], self.cost[inside], [high]))
        y = np.concatenate(
            ([self.accuracy_at(low)], self.accuracy[inside], [self.accuracy_at(high)])
        )
        return float(((y[1:] + y[:-1]) / 2.0) @ np.diff(x) / (high - low))


class Cascade:
    """The curves of `queries` under any weights of the questions.

    Args:
        queries: at least one.
        n_questions: how many questions the numbers in `queries.question` run over.
    """

    def __init__(self, queries: Queries, n_questions: int | None = None):
        self.queries = queries
        self.n_questions = int(queries.question.max()) + 1 if n_questions is None else n_questions
        self._by_score = np.argsort(queries.score, kind="stable")
        ordered = queries.score[self._by_score]
        self.scores: FloatArray = np.unique(
            ordered
        )  # rising; the k-th point of `router` defers the first k of them
        self._ends = np.concatenate(([0], np.searchsorted(ordered, self.scores, side="right")))
        gain = queries.large_correct - queries.small_correct
        worth = np.flatnonzero(gain > 0.0)
        with np.errstate(divide="ignore"):
            self._by_gain = worth[
                np.argsort(-gain[worth] / queries.large_cost[worth], kind="stable")
            ]

    def router(self, weights: FloatArray | None = None) -> Curve:
        """The router's curve; `weights` (shape [n_questions]) is how often each question was drawn."""
        return self._curve(self._by_score, self._ends, weights)

    def oracle(self, weights: FloatArray | None = None) -> Curve:
        """The oracle's curve, ending where nothing is left to gain."""
        return self._curve(self._by_gain, np.arange(len(self._by_gain) + 1), weights)

    def random(self, weights: FloatArray | None = None) -> Curve:
        """Random routing that does not run the small model where it asks the large one."""
        return self._mixture(weights, runs_small=False)

    def random_deferral(self, weights: FloatArray | None = None) -> Curve:
        """Random deferral after the small model has run."""
        return self._mixture(weights, runs_small=True)

    def at(self, threshold: float | None, weights: FloatArray | None = None) -> Curve:
        """The one point at which scores of at least `threshold` are served; None defers everything."""
        deferred = self.queries.score < (math.inf if threshold is None else threshold)
        point = self._curve(np.flatnonzero(deferred), np.array([int(deferred.sum())]), weights)
        return point

    def means(self, weights: FloatArray | None = None) -> dict[str, float]:
        """Accuracy, cost and latency of always-small and always-large: `small_accuracy`, `large_cost`, ..."""
        rows = self._rows(weights)
        names = [
            f"{model}_{what}"
            for model in ("small", "large")
            for what in ("accuracy", "cost", "latency")
        ]
        q = self.queries
        columns = (
            q.small_correct,
            q.small_cost,
            q.small_latency,
            q.large_correct,
            q.large_cost,
            q.large_latency,
        )
        return {name: float(rows @ column) for name, column in zip(names, columns, strict=True)}

    def _rows(self, weights: FloatArray | None) -> FloatArray:
        """Weight of each row, summing to 1."""
        rows = np.ones(len(self.queries)) if weights is None else weights[self.queries.question]
        return rows / rows.sum()

    def _curve(self, order: IntArray, ends: IntArray, weights: FloatArray | None) -> Curve:
        """The points at which the first `ends[k]` rows of `order` are deferred."""
        rows, q = self._rows(weights), self.queries
        served, deferred = self.means(weights), rows[order]

        def total(column: FloatArray) -> FloatArray:
            return np.concatenate(([0.0], np.cumsum(deferred * column[order])))[ends]

        return Curve(
            cost=served["small_cost"] + total(q.large_cost),
            accuracy=served["small_accuracy"] + total(q.large_correct - q.small_correct),
            latency=served["small_latency"] + total(q.large_latency),
            coverage=np.clip(1.0 - total(np.ones(len(q))), 0.0, 1.0),  # rounding may leave -1e-16
        )

    def _mixture(self, weights: FloatArray | None, *, runs_small: bool) -> Curve:
        m = self.means(weights)
        ends = {
            what: (m[f"small_{what}"], m[f"large_{what}"])
            for what in ("cost", "accuracy", "latency")
        }
        also = {what: ends[what][0] if runs_small and what != "accuracy" else 0.0 for what in ends}
        points = {what: np.array([low, high + also[what]]) for what, (low, high) in ends.items()}
        return Curve(**points, coverage=np.array([1.0, 0.0]))


def choose_threshold(cascade: Cascade, goal: Goal) -> float | None:
    """The threshold among the scores of these (validation) queries that serves `goal` best; None: defer everything.

    `max_cost` takes the most accurate of those that are cheap enough, `min_accuracy` the cheapest of those that are
    accurate enough; the other figure breaks ties. Serving from the lowest score on still defers queries without one.

    Raises:
        ConfigError: not exactly one goal, a goal outside its range, or one that no threshold meets.
    """
    check_goal(goal)
    curve, large = cascade.router(), cascade.means()
    served_from = [*cascade.scores, None]  # the k-th point defers the first k scores
    usable = [k for k, score in enumerate(served_from) if score is None or math.isfinite(score)]
    cost, accuracy = curve.cost[usable], curve.accuracy[usable]
    slack = 1e-9  # a goal that is met but for rounding is met
    if goal.max_cost is not None:
        meets = cost <= goal.max_cost * large["large_cost"] * (1.0 + slack)
        order = np.lexsort((cost, -accuracy))
    else:
        assert goal.min_accuracy is not None
        meets = accuracy >= goal.min_accuracy * large["large_accuracy"] * (1.0 - slack)
        order = np.lexsort((-accuracy, cost))
    chosen = [k for k in order if meets[k]]
    if not chosen:
        cheapest, best = cost.min() / large["large_cost"], accuracy.max()
        raise ConfigError(
            f"no threshold meets the goal on the {len(cascade.queries)} validation rows",
            where="--max-cost" if goal.max_cost is not None else "--min-accuracy",
            expected=f"at least {cheapest:.3f} of always-large's cost, or at most the accuracy {best:.3f}",
        )
    score = served_from[usable[chosen[0]]]
    return None if score is None else float(score)


def check_goal(goal: Goal) -> None:
    """Raise `ConfigError` unless exactly one goal is set and can be met by some router."""
    if (goal.max_cost is None) == (goal.min_accuracy is None):
        raise ConfigError(
            "one goal is needed", where="--max-cost", expected="either --max-cost or --min-accuracy"
        )
    if goal.max_cost is not None and not (math.isfinite(goal.max_cost) and goal.max_cost > 0.0):
        raise ConfigError(
            f"{goal.max_cost} is no budget",
            where="--max-cost",
            expected="a share of the large's cost",
        )
    if goal.min_accuracy is not None and not 0.0 < goal.min_accuracy <= 1.0:
        raise ConfigError(
            f"{goal.min_accuracy} is no share",
            where="--min-accuracy",
            expected="a number in (0, 1]",
        )
