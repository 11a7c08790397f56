"""Cost-accuracy curves of a two-model cascade, and the choice of its threshold.

A query goes to the small model first. Its score (a confidence) decides: at or above the threshold
the small model's answer is served, below it the large model is asked too ("deferred"). A served
query costs c_s, a deferred one c_s + c_l, as the small model has run already; latencies add up
alike. Curves hold means over queries, from "none deferred" to "all deferred":

* Router: queries are deferred by rising score. Queries of one score are deferred in random order,
  in expectation, so the curve is a straight line across them, and a router that always states the
  same confidence is the line of random deferral. A query without a score has the score -inf: it is
  deferred before any other, at every threshold.
* Random: a share r of the queries is sent to the large model by chance, without running the small
  one first. Cost (1 - r) c_s + r c_l. It is the stronger of two baselines. Random deferral, the
  weaker one, asks the small model first and pays c_s + r c_l: what a cascade does whose score
  carries no information.
* Oracle: a cascade whose score knows the verdicts. It defers what the large model gets right more
  often, most gain for its cost first, and nothing else. No score can do better; not running the
  small model at all can (see random).

Source: the paper's Appendix F proposes the cascade; the baselines and the oracle are added here.

    caopd route --small outputs/small --large outputs/large \\
        --cost-small 1 --cost-large 10 --output outputs/route
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from caopd_verl.cascade.routing_settings import Goal
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.inputs import BoolArray, FloatArray, IntArray

_ROUNDING = 1e-9  # a goal that is met but for rounding is met


@dataclass(frozen=True)
class Queries:
    """One small model's rows beside what the large model does with the same question.

    Every array has shape [n].

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
        kept = {name: values[keep] for name, values in vars(self).items()}
        return Queries(**kept)


@dataclass(frozen=True)
class Curve:
    """Operating points from "none deferred" to "all deferred", with straight lines between them.

    Every array has shape [points].

    Attributes:
        cost: mean cost of a query, in the unit of the queries' costs.
        accuracy: share of the served answers that are right.
        latency: mean seconds of a query; NaN where not known.
        coverage: share of the queries whose answer is the small model's.
    """

    cost: FloatArray
    accuracy: FloatArray
    latency: FloatArray
    coverage: FloatArray

    def accuracy_at(self, cost: FloatArray | float) -> FloatArray:
        """Accuracy at mean costs (any shape); beyond the ends that of the end."""
        return np.asarray(np.interp(cost, self.cost, self.accuracy))

    def mean_accuracy(self, low: float, high: float) -> float:
        """The mean of `accuracy_at` over the costs from low to high, exactly."""
        inside = (self.cost > low) & (self.cost < high)
        first, last = self.accuracy_at(low), self.accuracy_at(high)
        x = np.concatenate(([low], self.cost[inside], [high]))
        y = np.concatenate(([first], self.accuracy[inside], [last]))
        # Between two points the curve is straight, so the mean of its ends is that of the piece.
        mean_heights = (y[1:] + y[:-1]) / 2.0
        area = mean_heights @ np.diff(x)
        return float(area / (high - low))


class Cascade:
    """The curves of `queries` (at least one) under any weights of the questions.

    Attributes:
        scores: the different scores, rising; the k-th point of `router` defers the first k of them.
    """

    scores: FloatArray

    def __init__(self, queries: Queries):
        self.queries = queries
        # Stable, so that equal scores keep the rows' order: sums are the same on every machine.
        self._by_score = np.argsort(queries.score, kind="stable")
        ordered = queries.score[self._by_score]
        self.scores = np.unique(ordered)
        after_each = np.searchsorted(ordered, self.scores, side="right")
        self._ends = np.concatenate(([0], after_each))
        gain = queries.large_correct - queries.small_correct
        worth = np.flatnonzero(gain > 0.0)
        # A large model that costs nothing gains infinitely much for its cost: it comes first.
        with np.errstate(divide="ignore"):
            gain_for_cost = gain[worth] / queries.large_cost[worth]
        self._by_gain = worth[np.argsort(-gain_for_cost, kind="stable")]

    def router(self, weights: FloatArray | None = None) -> Curve:
        """The router's curve; `weights` (shape [questions]): how often each question was drawn."""
        return self._curve(self._by_score, self._ends, weights)

    def oracle(self, weights: FloatArray | None = None) -> Curve:
        """The oracle's curve, ending where nothing is left to gain."""
        every_end = np.arange(len(self._by_gain) + 1)
        return self._curve(self._by_gain, every_end, weights)

    def random(self, weights: FloatArray | None = None) -> Curve:
        """Random routing that does not run the small model where it asks the large one."""
        return self._mixture(weights, runs_small=False)

    def random_deferral(self, weights: FloatArray | None = None) -> Curve:
        """Random deferral after the small model has run."""
        return self._mixture(weights, runs_small=True)

    def at(self, threshold: float | None, weights: FloatArray | None = None) -> Curve:
        """The one point at which scores of at least `threshold` are served; None defers all."""
        served_from = math.inf if threshold is None else threshold
        deferred = np.flatnonzero(self.queries.score < served_from)
        return self._curve(deferred, np.array([len(deferred)]), weights)

    def means(self, weights: FloatArray | None = None) -> dict[str, float]:
        """Accuracy, cost and latency of always-small and always-large.

        Keys: `small_accuracy`, `small_cost`, `small_latency`, and the same with `large_`.
        """
        queries = self.queries
        columns = {
            "small_accuracy": queries.small_correct,
            "small_cost": queries.small_cost,
            "small_latency": queries.small_latency,
            "large_accuracy": queries.large_correct,
            "large_cost": queries.large_cost,
            "large_latency": queries.large_latency,
        }
        row_weights = self._row_weights(weights)
        return {name: float(row_weights @ column) for name, column in columns.items()}

    def _row_weights(self, weights: FloatArray | None) -> FloatArray:
        """Weight of each row (shape [n]), summing to 1."""
        rows = np.ones(len(self.queries))
        if weights is not None:
            rows = weights[self.queries.question]
        return rows / rows.sum()

    def _curve(self, order: IntArray, ends: IntArray, weights: FloatArray | None) -> Curve:
        """The points at which the first `ends[k]` rows of `order` are deferred."""
        queries = self.queries
        none_deferred = self.means(weights)
        deferred_weights = self._row_weights(weights)[order]

        def total(column: FloatArray) -> FloatArray:
            """Weighted sum of `column` over the deferred rows at each point."""
            running = np.cumsum(deferred_weights * column[order])
            return np.concatenate(([0.0], running))[ends]

        gain = queries.large_correct - queries.small_correct
        cost = none_deferred["small_cost"] + total(queries.large_cost)
        accuracy = none_deferred["small_accuracy"] + total(gain)
        latency = none_deferred["small_latency"] + total(queries.large_latency)
        served_share = 1.0 - total(np.ones(len(queries)))
        # Rounding may leave -1e-16 where nothing is served.
        coverage = np.clip(served_share, 0.0, 1.0)
        return Curve(cost, accuracy, latency, coverage)

    def _mixture(self, weights: FloatArray | None, *, runs_small: bool) -> Curve:
        """The line from always-small to everything asked of the large model."""
        means = self.means(weights)
        cost, latency = means["large_cost"], means["large_latency"]
        if runs_small:
            cost += means["small_cost"]
            latency += means["small_latency"]
        return Curve(
            cost=np.array([means["small_cost"], cost]),
            accuracy=np.array([means["small_accuracy"], means["large_accuracy"]]),
            latency=np.array([means["small_latency"], latency]),
            coverage=np.array([1.0, 0.0]),
        )


def choose_threshold(cascade: Cascade, goal: Goal) -> float | None:
    """The threshold among the scores of these (validation) queries that serves `goal` best.

    `max_cost` takes the most accurate of those that are cheap enough, `min_accuracy` the cheapest
    of those that are accurate enough; the other figure breaks ties. None defers everything.
    Queries without a score are deferred even when everything from the lowest score on is served.

    Raises:
        ConfigError: not exactly one goal, a goal outside its range, or one that no threshold meets.
    """
    _check_goal(goal)
    curve, means = cascade.router(), cascade.means()
    # The k-th point of the curve defers the first k scores, so it serves from the next one on;
    # -inf stands for no score, and is no threshold that can be set.
    served_from = [*cascade.scores, None]
    usable = [k for k, score in enumerate(served_from) if score != -math.inf]
    cost, accuracy = curve.cost[usable], curve.accuracy[usable]
    if goal.max_cost is not None:
        budget = goal.max_cost * means["large_cost"]
        meets = cost <= budget * (1.0 + _ROUNDING)
        best_first = np.lexsort((cost, -accuracy))
    else:
        assert goal.min_accuracy is not None
        wanted = goal.min_accuracy * means["large_accuracy"]
        meets = accuracy >= wanted * (1.0 - _ROUNDING)
        best_first = np.lexsort((-accuracy, cost))
    chosen = [k for k in best_first if meets[k]]
    if not chosen:
        cheapest = cost.min() / means["large_cost"]
        limits = f"at least {cheapest:.3f} of always-large's cost"
        limits += f", or at most the accuracy {accuracy.max():.3f}"
        raise ConfigError(
            f"no threshold meets the goal on the {len(cascade.queries)} validation rows",
            where="--max-cost" if goal.max_cost is not None else "--min-accuracy",
            expected=limits,
        )
    score = served_from[usable[chosen[0]]]
    return None if score is None else float(score)


def _check_goal(goal: Goal) -> None:
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
