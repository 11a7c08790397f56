"""What `caopd route` measures: alignment, costs, split, intervals, comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caopd_verl.cascade.measure import measure
from caopd_verl.cascade.paired_rows import align, load_model
from caopd_verl.cascade.prices import Price
from caopd_verl.cascade.routing_settings import DEFAULTS, Goal, Routing
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.metrics.posthoc import split_groups
from tests.cascade.folders import row, rows_of, simulated, write

ONE, TEN = Price("small", per_query=1.0), Price("large", per_query=10.0)
FAST = Routing(n_resamples=200)


def aligned(smalls, large, *, readout="stated", small_price=ONE, large_price=TEN):
    """The small models of some folders, aligned with the large one of another."""
    return align(
        [load_model(folder) for folder in smalls],
        load_model(large),
        readout=readout,
        price_small=small_price,
        price_large=large_price,
    )


def measured(smalls, large, routing=FAST):
    """The report on folders, for the default goal."""
    return measure(aligned(smalls, large), DEFAULTS.goal, routing)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of each kind, with 400 questions."""
    root = tmp_path_factory.mktemp("runs")
    seeds = {"knows": 1, "saturated": 2, "large": 3}
    for kind, seed in seeds.items():
        simulated(root / kind, n=400, kind=kind, seed=seed)
    return {kind: root / kind for kind in seeds}


@pytest.fixture
def pair(tmp_path):
    """A small and a large model with one question in common."""
    small = write(tmp_path / "small", [row(1, True, 0.9)])
    large = write(tmp_path / "large", [row(1, True)])
    return small, large


def test_rows_are_aligned_by_question_and_the_large_models_samples_averaged(tmp_path):
    # Not in the order of questions and samples, to which alignment must bring them.
    small_rows = [
        row("b", True, 0.9),
        row("a", False, None),
        row("b", False, 0.3, sample=1),
        row("x", True, 1),
    ]
    large_rows = [
        row("a", True),
        row("b", True),
        row("b", False, sample=1),
        row("y", True),
    ]
    result = aligned([write(tmp_path / "s", small_rows)], write(tmp_path / "l", large_rows))
    assert result.questions == ["a", "b"]
    assert result.left_out == {"s": 1, "l": 1}
    (queries,) = result.queries.values()
    assert queries.question.tolist() == [0, 1, 1]
    assert queries.score.tolist() == [-math.inf, 0.9, 0.3]
    assert queries.small_correct.tolist() == [0, 1, 0]
    assert queries.large_correct.tolist() == [1, 0.5, 0.5]
    assert result.no_latency == {"s": "3 of the 3 rows of s have no latency_s"}


def test_costs_come_from_tokens_and_prices(tmp_path):
    def told(n_tokens):
        return {"n_prompt_tokens": 100, "n_tokens": n_tokens, "latency_s": 0.5}

    small_rows = [row(1, True, 0.9, **told(20)), row(2, True, 0.9, **told(40))]
    large_rows = [
        row(1, True, **told(20)),
        row(1, True, sample=1, **told(60)),
        row(2, True, **told(20)),
    ]
    small, large = write(tmp_path / "s", small_rows), write(tmp_path / "l", large_rows)
    prices = {
        "small_price": Price("small", price_in=1.0, price_out=10.0),
        "large_price": Price("large", price_in=100.0, price_out=1000.0),
    }
    (queries,) = aligned([small], large, **prices).queries.values()
    assert queries.small_cost == pytest.approx([300e-6, 500e-6])
    # The first question's is the mean of 30e-3 and 70e-3.
    assert queries.large_cost == pytest.approx([50e-3, 30e-3])
    bare = write(tmp_path / "bare", [small_rows[0], row(2, True, 0.9)])
    with pytest.raises(DataError, match="1 of the 2 rows have no token counts"):
        aligned([bare], large, **prices)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"per_query": 1.0, "price_in": 1.0, "price_out": 1.0},
        {"price_in": 1.0},
        {"per_query": 1.0, "price_out": 1.0},
        {"per_query": -1.0},
        {"per_query": math.nan},
    ],
)
def test_unclear_costs_are_refused(kind):
    with pytest.raises(ConfigError):
        Price("small", **kind)


def test_results_that_do_not_belong_together_are_refused(tmp_path, pair):
    small, large = pair
    with pytest.raises(DataError, match="no question in common"):
        aligned([small], write(tmp_path / "other", [row(2, True)]))
    with pytest.raises(DataError, match="gold answer 'B' here and 'A'"):
        aligned([small], write(tmp_path / "gold", [row(1, True, gold="B")]))
    with pytest.raises(DataError, match="no evaluated rows"):
        aligned([small], tmp_path / "nothing")
    with pytest.raises(ConfigError, match="priced per query, the other per token"):
        by_tokens = Price("large", price_in=1.0, price_out=1.0)
        aligned([small], large, large_price=by_tokens)
    with pytest.raises(ConfigError, match="same name"):
        aligned([small, small], large)


def test_a_readout_that_is_unknown_absent_or_no_confidence_is_refused(tmp_path, pair):
    small, large = pair
    with pytest.raises(DataError, match="none of the 1 rows has a confidence of the kind"):
        aligned([small], large, readout="expected")
    with pytest.raises(ConfigError, match="no readout 'self_consistency'"):
        aligned([small], large, readout="self_consistency")
    with pytest.raises(DataError, match=r"confidence is 1\.5"):
        aligned([write(tmp_path / "bad", [row(1, True, 1.5)])], large)


def test_the_threshold_is_chosen_on_questions_that_nothing_is_reported_of(folders):
    result = aligned([folders["knows"]], folders["large"])
    report = measure(result, Goal(max_cost=0.5), FAST)
    validation = split_groups(result.questions, fraction=0.5, seed=0)
    assert report.n_validation == validation.sum()
    assert report.n_test == (~validation).sum()
    (router,) = report.routers.values()
    queries = result.queries["knows"]
    tested = ~validation[queries.question]
    served = queries.score >= router.threshold
    correct = np.where(served, queries.small_correct, queries.large_correct)
    cost = np.where(served, 1.0, 11.0)
    figures = router.figures
    assert figures["accuracy"].value == pytest.approx(correct[tested].mean())
    assert figures["coverage"].value == pytest.approx(served[tested].mean())
    assert figures["cost"].value == pytest.approx(cost[tested].mean())
    assert router.chosen_on["accuracy"] == pytest.approx(correct[~tested].mean())
    assert router.chosen_on["cost_share"] <= 0.5


def test_a_router_that_knows_beats_random_routing_and_a_saturated_one_does_not(folders):
    report = measured([folders["knows"], folders["saturated"]], folders["large"])
    knows = report.routers["knows"].figures
    saturated = report.routers["saturated"].figures
    assert knows["gain_over_random"].low > 0
    # It pays for the small model and learns nothing.
    assert saturated["gain_over_random"].high < 0
    assert saturated["gain_over_random_deferral"].value == pytest.approx(0, abs=1e-12)
    difference = report.versus["saturated"].figures["gain_difference"]
    gain = knows["gain_over_random"].value - saturated["gain_over_random"].value
    assert difference.value == pytest.approx(gain)
    assert difference.low > 0
    for result in report.routers.values():
        band = result.bands["accuracy"]
        assert np.all(band.low <= band.value + 1e-9)
        assert np.all(band.value <= band.high + 1e-9)


def test_the_same_router_twice_differs_by_exactly_nothing(folders, tmp_path):
    copy = write(tmp_path / "copy", rows_of(folders["knows"]))
    report = measured([folders["knows"], copy], folders["large"])
    for figure in report.versus["copy"].figures.values():
        assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0)


def test_intervals_resample_questions_not_rows(tmp_path):
    """Samples that only repeat each other must not make an interval narrower."""
    large = simulated(tmp_path / "large", n=150, kind="large", seed=5)
    once = simulated(tmp_path / "once", n=150, kind="knows")
    copies = [{**row, "sample": sample} for row in rows_of(once) for sample in range(5)]
    often = write(tmp_path / "often", copies, name="often")
    one = measured([once], large).routers["knows"].figures["accuracy"]
    five = measured([often], large).routers["often"].figures["accuracy"]
    assert one.low == pytest.approx(five.low)
    assert one.high == pytest.approx(five.high)


def test_without_latencies_there_is_no_latency_and_a_reason(tmp_path, folders):
    small = simulated(tmp_path / "small", n=400, kind="knows", latency=False)
    figures = measured([small], folders["large"]).routers["knows"].figures
    assert figures["latency"].value is None
    assert "400 of the 400 rows of knows have no latency_s" in figures["latency"].reason
    assert figures["accuracy"].value is not None


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"validation_fraction": 1.0}, "--validation-fraction"),
        ({"n_resamples": -1}, "resamples"),
        ({"level": 2.0}, "level"),
        ({"curve_points": 1}, "--curve-points"),
    ],
)
def test_bad_settings_are_refused(folders, change, where):
    routing = Routing(**{"n_resamples": 10, **change})
    with pytest.raises(ConfigError, match=where):
        measured([folders["knows"]], folders["large"], routing)


def test_too_few_questions_and_a_small_model_that_costs_more_are_refused(folders, pair):
    small, large = pair
    with pytest.raises(DataError, match="at least one of each"):
        measured([small], large)
    dear = aligned([folders["knows"]], folders["large"], small_price=Price("small", 20.0))
    with pytest.raises(ConfigError, match="nothing can be saved"):
        measure(dear, DEFAULTS.goal, FAST)


def test_a_bare_point_without_resamples(folders):
    report = measured([folders["knows"]], folders["large"], Routing(n_resamples=0))
    router = report.routers["knows"]
    assert router.figures["accuracy"].value is not None
    assert router.figures["accuracy"].low is None
    assert router.bands["accuracy"].as_dict()["low"][0] is None
