"""Curves, baselines and thresholds, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caopd_verl.cascade.routing import Cascade, Curve, Queries, choose_threshold
from caopd_verl.cascade.routing_settings import Goal
from caopd_verl.errors import ConfigError

INF = math.inf


def queries(score, small, large, *, small_cost=1.0, large_cost=10.0, question=None) -> Queries:
    """One query a score; what is one number for all is repeated."""
    n = len(score)

    def column(value):
        values = np.asarray(value, dtype=np.float64)
        return np.broadcast_to(values, (n,)).copy()

    return Queries(
        question=np.arange(n) if question is None else np.asarray(question),
        score=column(score),
        small_correct=column(small),
        small_cost=column(small_cost),
        small_latency=column(0.1),
        large_correct=column(large),
        large_cost=column(large_cost),
        large_latency=column(2.0),
    )


def cost_and_accuracy(curve: Curve) -> list[tuple[float, float]]:
    """The curve's points, without the rounding of sums."""
    pairs = zip(curve.cost.round(9), curve.accuracy.round(9), strict=True)
    return [(float(cost), float(accuracy)) for cost, accuracy in pairs]


# Four queries; deferring by rising score helps, does nothing, helps, hurts.
HAND = queries([0.1, 0.4, 0.6, 0.9], small=[0, 1, 0, 1], large=[1, 1, 1, 0])
HAND_POINTS = [(1.0, 0.5), (3.5, 0.75), (6.0, 0.75), (8.5, 1.0), (11.0, 0.75)]


def test_the_router_defers_by_rising_score_and_the_small_model_has_run_already():
    curve = Cascade(HAND).router()
    assert cost_and_accuracy(curve) == HAND_POINTS
    assert curve.coverage.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert curve.latency == pytest.approx([0.1, 0.6, 1.1, 1.6, 2.1])


def test_random_routing_does_not_run_the_small_model_and_random_deferral_does():
    cascade = Cascade(HAND)
    assert cost_and_accuracy(cascade.random()) == [(1.0, 0.5), (10.0, 0.75)]
    assert cost_and_accuracy(cascade.random_deferral()) == [(1.0, 0.5), (11.0, 0.75)]
    assert cascade.random().latency == pytest.approx([0.1, 2.0])
    assert cascade.random_deferral().latency == pytest.approx([0.1, 2.1])


def test_the_oracle_defers_what_the_large_model_does_better_and_nothing_else():
    oracle = Cascade(HAND).oracle()
    assert cost_and_accuracy(oracle) == [(1.0, 0.5), (3.5, 0.75), (6.0, 1.0)]


def test_the_oracle_takes_the_most_gain_for_its_cost_first():
    # Gains for a cost of 1: 1/30, 1/6, 1/3.
    dear = queries([0.5] * 3, small=0, large=[1.0, 0.5, 1.0], large_cost=[30, 3, 3])
    oracle = Cascade(dear).oracle()
    assert oracle.cost == pytest.approx([1, 2, 3, 13])
    assert oracle.accuracy == pytest.approx([0, 1 / 3, 1.5 / 3, 2.5 / 3])


def test_queries_of_one_score_are_deferred_in_expectation():
    tied = queries([0.2, 0.5, 0.5, 0.9], small=[0, 0, 1, 1], large=1)
    router = Cascade(tied).router()
    assert cost_and_accuracy(router) == [(1.0, 0.5), (3.5, 0.75), (8.5, 1.0), (11.0, 1.0)]
    # Half of the tied pair: each of its two queries half of the time.
    assert router.accuracy_at(6.0) == pytest.approx(0.875)


def test_a_saturated_router_is_the_line_of_random_deferral():
    saturated = queries(
        [1.0] * 4, small=[0, 1, 0, 1], large=[1, 1, 1, 0], large_cost=[4, 8, 12, 16]
    )
    cascade = Cascade(saturated)
    line = cost_and_accuracy(cascade.random_deferral())
    assert cost_and_accuracy(cascade.router()) == line


def test_a_query_without_a_score_is_deferred_before_any_other():
    unscored = queries([-INF, 0.1, -INF, 0.9], small=[1, 0, 1, 1], large=[0, 1, 1, 1])
    cascade = Cascade(unscored)
    points = cost_and_accuracy(cascade.router())
    assert points == [(1.0, 0.75), (6.0, 0.5), (8.5, 0.75), (11.0, 0.75)]
    assert cascade.at(0.0).coverage.tolist() == [0.5]
    # The least that can be had costs 6 of the large model's 10: all that have a score are served.
    assert choose_threshold(cascade, Goal(max_cost=0.6)) == 0.1
    with pytest.raises(ConfigError, match=r"at least 0\.600"):
        choose_threshold(cascade, Goal(max_cost=0.5))


@pytest.mark.parametrize("kind", ["router", "random", "random_deferral", "oracle"])
def test_weights_are_as_good_as_copies_of_the_questions(kind):
    columns = {"score": [0.1, 0.4, 0.4, 0.9], "small": [0, 1, 0, 1], "large": [1, 0.5, 1, 0]}
    rows = queries(**columns, question=[0, 0, 1, 2])
    # Question 0, which has the first two rows, once more.
    copied = queries(**{name: values + values[:2] for name, values in columns.items()})
    weighted, plain = Cascade(rows), Cascade(copied)
    weights = np.array([2.0, 1.0, 1.0])
    costs = np.linspace(1.0, 11.0, 41)
    curve = getattr(weighted, kind)(weights)
    expected = getattr(plain, kind)()
    assert curve.accuracy_at(costs) == pytest.approx(expected.accuracy_at(costs))
    assert weighted.means(weights) == pytest.approx(plain.means())


def test_the_mean_height_is_exact():
    nothing = np.zeros(3)
    curve = Curve(np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 0.0]), nothing, nothing)
    assert curve.mean_accuracy(0.0, 3.0) == pytest.approx(0.5)
    assert curve.mean_accuracy(0.5, 1.0) == pytest.approx(0.75)
    # Beyond its end a curve stays where it is, here at 0.
    assert curve.mean_accuracy(2.0, 5.0) == pytest.approx(0.25 / 3)


@pytest.mark.parametrize(
    ("goal", "threshold"),
    [
        (Goal(max_cost=0.35), 0.4),
        (Goal(max_cost=0.849), 0.4),  # 0.75 is to be had for 3.5 or 6.0: the cheaper
        (Goal(max_cost=0.85), 0.9),
        (Goal(max_cost=5.0), 0.9),
        (Goal(max_cost=0.1), 0.1),  # everything is served
        (Goal(max_cost=None, min_accuracy=1.0), 0.4),  # of 0.75
        (Goal(max_cost=None, min_accuracy=0.5), 0.1),
    ],
)
def test_the_threshold_meets_the_goal_at_least_cost_or_best_accuracy(goal, threshold):
    assert choose_threshold(Cascade(HAND), goal) == threshold


def test_where_the_large_model_is_needed_everywhere_everything_is_deferred():
    never = Cascade(queries([0.5, 0.9], small=[0, 0], large=[1, 1]))
    assert choose_threshold(never, Goal(max_cost=None, min_accuracy=1.0)) is None
    point = never.at(None)
    assert point.cost.tolist() == [11.0]
    assert point.coverage.tolist() == [0.0]


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(max_cost=None), "one goal is needed"),
        (Goal(max_cost=0.5, min_accuracy=0.9), "one goal is needed"),
        (Goal(max_cost=0.0), "no budget"),
        (Goal(max_cost=math.nan), "no budget"),
        (Goal(max_cost=None, min_accuracy=1.1), "no share"),
        (Goal(max_cost=0.05), "no threshold meets"),  # less than the small model costs
    ],
)
def test_impossible_goals_are_refused(goal, said):
    with pytest.raises(ConfigError, match=said):
        choose_threshold(Cascade(HAND), goal)


SCORES = st.sampled_from([-INF, 0.0, 0.25, 0.5, 1.0])
LARGE_OUTCOMES = st.sampled_from([0.0, 0.5, 1.0])
SMALL_COSTS, LARGE_COSTS = st.integers(1, 9), st.integers(10, 30)
ROW = st.tuples(SCORES, st.booleans(), LARGE_OUTCOMES, SMALL_COSTS, LARGE_COSTS)
ROWS = st.lists(ROW, min_size=1, max_size=12)


def cascade_of(rows) -> Cascade:
    """The cascade of made-up rows (score, small correct, large correct, small cost, large cost)."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    score, small, large, small_cost, large_cost = columns
    return Cascade(queries(score, small, large, small_cost=small_cost, large_cost=large_cost))


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_any_router_goes_from_always_small_to_both_and_never_beats_the_oracle(rows):
    cascade = cascade_of(rows)
    router, oracle, means = cascade.router(), cascade.oracle(), cascade.means()
    both_cost = means["small_cost"] + means["large_cost"]
    assert router.cost[[0, -1]] == pytest.approx([means["small_cost"], both_cost])
    ends = [means["small_accuracy"], means["large_accuracy"]]
    assert router.accuracy[[0, -1]] == pytest.approx(ends)
    assert router.coverage[[0, -1]] == pytest.approx([1.0, 0.0])
    assert np.all(np.diff(router.cost) > 0)
    assert np.all(np.diff(router.coverage) < 0)
    assert router.coverage.min() >= 0
    best = oracle.accuracy_at(router.cost)
    assert np.all(best >= router.accuracy - 1e-9)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_any_threshold_gives_a_point_of_the_curve_and_the_accuracy_of_what_it_serves(rows):
    cascade = cascade_of(rows)
    thresholds = [score for score in cascade.scores if score >= 0]
    for threshold in [*thresholds, None]:
        point = cascade.at(threshold)
        lowest = INF if threshold is None else threshold
        outcomes = [small if score >= lowest else large for score, small, large, _, _ in rows]
        mean = sum(map(float, outcomes)) / len(rows)
        assert point.accuracy.tolist() == [pytest.approx(mean)]
        distances = np.abs(cascade.router().cost - point.cost)
        assert distances.min() < 1e-9
