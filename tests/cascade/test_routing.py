"""Curves, baselines and thresholds, worked by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caopd_verl.cascade.routing import Cascade, Curve, Queries, choose_threshold
from caopd_verl.cascade.routing_settings import Goal
from caopd_verl.errors import ConfigError

INF = math.inf


def queries(score, small, large, *, small_cost=1.0, large_cost=10.0, question=None) -> Queries:
    n = len(score)

    def column(value):
        return np.broadcast_to(np.asarray(value, dtype=np.float64), (n,)).copy()

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


def points(curve: Curve) -> list[tuple[float, float]]:
    return [
        (round(float(x), 9), round(float(y), 9))
        for x, y in zip(curve.cost, curve.accuracy, strict=True)
    ]


# Four queries; deferring by rising score helps, does nothing, helps, hurts.
HAND = queries([0.1, 0.4, 0.6, 0.9], small=[0, 1, 0, 1], large=[1, 1, 1, 0])


def test_the_router_defers_by_rising_score_and_the_small_model_has_run_already():
    curve = Cascade(HAND).router()
    assert points(curve) == [(1.0, 0.5), (3.5, 0.75), (6.0, 0.75), (8.5, 1.0), (11.0, 0.75)]
    assert curve.coverage.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert curve.latency == pytest.approx([0.1, 0.6, 1.1, 1.6, 2.1])


def test_random_routing_does_not_run_the_small_model_and_random_deferral_does():
    cascade = Cascade(HAND)
    assert points(cascade.random()) == [(1.0, 0.5), (10.0, 0.75)]
    assert points(cascade.random_deferral()) == [(1.0, 0.5), (11.0, 0.75)]
    assert cascade.random().latency == pytest.approx([0.1, 2.0])


def test_the_oracle_defers_what_the_large_model_does_better_and_nothing_else():
    assert points(Cascade(HAND).oracle()) == [(1.0, 0.5), (3.5, 0.75), (6.0, 1.0)]
    dear = queries(
        [0.5] * 3, small=[0, 0, 0], large=[1.0, 0.5, 1.0], large_cost=[30, 3, 3]
    )  # gain per cost: 1/3 first
    assert points(Cascade(dear).oracle()) == [
        (1.0, 0.0),
        (2.0, round(1 / 3, 9)),
        (3.0, 0.5),
        (13.0, round(2.5 / 3, 9)),
    ]


def test_queries_of_one_score_are_deferred_in_expectation():
    tied = queries([0.2, 0.5, 0.5, 0.9], small=[0, 0, 1, 1], large=[1, 1, 1, 1])
    assert points(Cascade(tied).router()) == [(1.0, 0.5), (3.5, 0.75), (8.5, 1.0), (11.0, 1.0)]
    # Half of the tied pair: each of its two queries half of the time.
    assert Cascade(tied).router().accuracy_at(6.0) == pytest.approx((0.75 + 1.0) / 2)


def test_a_saturated_router_is_the_line_of_random_deferral():
    saturated = Cascade(
        queries([1.0] * 4, small=[0, 1, 0, 1], large=[1, 1, 1, 0], large_cost=[4, 8, 12, 16])
    )
    assert points(saturated.router()) == points(saturated.random_deferral())


def test_a_query_without_a_score_is_deferred_before_any_other():
    unscored = Cascade(queries([-INF, 0.1, -INF, 0.9], small=[1, 0, 1, 1], large=[0, 1, 1, 1]))
    assert points(unscored.router()) == [(1.0, 0.75), (6.0, 0.5), (8.5, 0.75), (11.0, 0.75)]
    assert float(unscored.at(0.0).coverage[0]) == 0.5
    assert (
        choose_threshold(unscored, Goal(max_cost=0.6)) == 0.1
    )  # 6.0 of 10: serves all that have a score
    with pytest.raises(ConfigError, match=r"at least 0\.600"):
        choose_threshold(unscored, Goal(max_cost=0.5))


def test_weights_are_as_good_as_copies_of_the_questions():
    rows = queries(
        [0.1, 0.4, 0.4, 0.9], small=[0, 1, 0, 1], large=[1, 0.5, 1, 0], question=[0, 0, 1, 2]
    )
    copied = rows.take(np.array([True] * 4))
    copied = Queries(
        **{k: np.concatenate((v, v[:2])) for k, v in vars(rows).items()}
    )  # question 0 twice, 2 stays
    weighted, plain = Cascade(rows), Cascade(copied)
    weights = np.array([2.0, 1.0, 1.0])
    for kind in ("router", "random", "random_deferral"):
        assert points(getattr(weighted, kind)(weights)) == points(getattr(plain, kind)())
    assert weighted.oracle(weights).accuracy_at(4.0) == pytest.approx(
        plain.oracle().accuracy_at(4.0)
    )
    assert weighted.means(weights) == pytest.approx(plain.means())


def test_the_mean_height_is_exact():
    curve = Curve(np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 0.0]), np.zeros(3), np.zeros(3))
    assert curve.mean_accuracy(0.0, 3.0) == pytest.approx(0.5)
    assert curve.mean_accuracy(0.5, 1.0) == pytest.approx(0.75)
    assert curve.mean_accuracy(2.0, 5.0) == pytest.approx(
        0.25 / 3
    )  # beyond its end a curve stays where it is


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
    assert (float(point.cost[0]), float(point.coverage[0])) == (11.0, 0.0)


@pytest.mark.parametrize(
    "goal",
    [
        Goal(max_cost=None),
        Goal(max_cost=0.5, min_accuracy=0.9),
        Goal(max_cost=0.0),
        Goal(max_cost=math.nan),
        Goal(max_cost=None, min_accuracy=1.1),
        Goal(max_cost=0.05),  # less than the small model costs
    ],
)
def test_impossible_goals_are_refused(goal):
    with pytest.raises(ConfigError):
        choose_threshold(Cascade(HAND), goal)


ROWS = st.lists(
    st.tuples(
        st.sampled_from([-INF, 0.0, 0.25, 0.5, 1.0]),
        st.booleans(),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.integers(1, 9),
        st.integers(10, 30),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_any_rows(rows):
    score, small, large, small_cost, large_cost = (
        list(column) for column in zip(*rows, strict=True)
    )
    cascade = Cascade(queries(score, small, large, small_cost=small_cost, large_cost=large_cost))
    router, oracle, means = cascade.router(), cascade.oracle(), cascade.means()
    assert np.all(np.diff(router.cost) > 0) and np.all(np.diff(router.coverage) < 0)
    assert router.coverage.min() >= 0 and router.coverage.max() <= 1
    assert router.accuracy[0] == pytest.approx(means["small_accuracy"])
    assert router.accuracy[-1] == pytest.approx(means["large_accuracy"])
    assert router.cost[-1] == pytest.approx(means["small_cost"] + means["large_cost"])
    assert np.all(oracle.accuracy_at(router.cost) >= router.accuracy - 1e-9)  # no score does better
    for threshold in [s for s in cascade.scores if s >= 0] + [None]:
        point = cascade.at(threshold)
        served = [s >= (INF if threshold is None else threshold) for s in score]
        expected = sum(
            Fraction(float(a if s else b)) for s, a, b in zip(served, small, large, strict=True)
        ) / len(rows)
        assert float(point.accuracy[0]) == pytest.approx(float(expected))
        assert any(abs(point.cost[0] - cost) < 1e-9 for cost in router.cost)
