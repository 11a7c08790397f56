"""`caopd route`: alignment, costs, split, intervals, and what the command writes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from caopd_verl.cascade.measure import measure
from caopd_verl.cascade.paired_rows import Price, align, load_model
from caopd_verl.cascade.routing_settings import DEFAULTS, Goal, Routing
from caopd_verl.cli import BAD_INPUT, OK, main
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.metrics.posthoc import split_groups
from tests.cascade.folders import row, simulated, write

ONE, TEN = Price("small", per_query=1.0), Price("large", per_query=10.0)
FAST = Routing(n_resamples=200)


def aligned(smalls, large, *, readout="stated", small=ONE, big=TEN):
    models = [load_model(folder) for folder in smalls]
    return align(models, load_model(large), readout=readout, price_small=small, price_large=big)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    kinds = {"knows": 1, "saturated": 2, "large": 3}
    return {
        kind: simulated(root / kind, n=400, kind=kind, seed=seed) for kind, seed in kinds.items()
    }


def test_rows_are_aligned_by_question_and_the_large_models_samples_averaged(tmp_path):
    small = write(
        tmp_path / "s",
        [
            row("b", True, 0.9),
            row("a", False, None),
            row("b", False, 0.3, sample=1),
            row("x", True, 1),
        ],
    )
    large = write(
        tmp_path / "l", [row("a", True), row("b", True), row("b", False, sample=1), row("y", True)]
    )
    result = aligned([small], large)
    assert result.questions == ["a", "b"]
    assert result.left_out == {"s": 1, "l": 1}
    (queries,) = result.queries.values()
    assert queries.question.tolist() == [
        0,
        1,
        1,
    ]  # by question and sample, whatever the files' order is
    assert queries.score.tolist() == [-math.inf, 0.9, 0.3]
    assert queries.small_correct.tolist() == [0, 1, 0]
    assert queries.large_correct.tolist() == [1, 0.5, 0.5]
    assert result.no_latency == {"s": "3 of the 3 rows of s have no latency_s"}


def test_costs_come_from_tokens_and_prices(tmp_path):
    told = {"n_prompt_tokens": 100, "n_tokens": 20, "latency_s": 0.5}
    small = write(
        tmp_path / "s", [row(1, True, 0.9, **told), row(2, True, 0.9, **{**told, "n_tokens": 40})]
    )
    large = write(
        tmp_path / "l",
        [
            row(1, True, **told),
            row(1, True, sample=1, **{**told, "n_tokens": 60}),
            row(2, 1 > 0, **told),
        ],
    )
    prices = {"small": Price("small", None, 1.0, 10.0), "big": Price("large", None, 100.0, 1000.0)}
    (queries,) = aligned([small], large, **prices).queries.values()
    assert queries.small_cost == pytest.approx([300e-6, 500e-6])
    assert queries.large_cost == pytest.approx([(30e-3 + 70e-3) / 2, 30e-3])
    bare = write(tmp_path / "bare", [row(1, True, 0.9, **told), row(2, True, 0.9)])
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


def test_results_that_do_not_belong_together_are_refused(tmp_path):
    small = write(tmp_path / "s", [row(1, True, 0.9)])
    with pytest.raises(DataError, match="no question in common"):
        aligned([small], write(tmp_path / "other", [row(2, True)]))
    with pytest.raises(DataError, match="gold answer 'B' here and 'A'"):
        aligned([small], write(tmp_path / "gold", [row(1, True, gold="B")]))
    with pytest.raises(DataError, match="no evaluated rows"):
        aligned([small], tmp_path / "nothing")
    with pytest.raises(ConfigError, match="priced per query, the other per token"):
        aligned([small], small, big=Price("large", None, 1.0, 1.0))
    with pytest.raises(ConfigError, match="same name"):
        aligned([small, small], write(tmp_path / "l", [row(1, True)]))


def test_a_readout_that_is_unknown_absent_or_no_confidence_is_refused(tmp_path):
    small, large = write(tmp_path / "s", [row(1, True, 0.9)]), write(tmp_path / "l", [row(1, True)])
    with pytest.raises(
        DataError, match="none of the 1 rows has a confidence of the kind 'expected'"
    ):
        aligned([small], large, readout="expected")
    with pytest.raises(ConfigError, match="no readout 'self_consistency'"):
        aligned([small], large, readout="self_consistency")
    with pytest.raises(DataError, match=r"confidence is 1\.5"):
        aligned([write(tmp_path / "bad", [row(1, True, 1.5)])], large)


def test_the_threshold_is_chosen_on_questions_that_nothing_is_reported_of(folders):
    result = aligned([folders["knows"]], folders["large"])
    report = measure(result, Goal(max_cost=0.5), FAST)
    validation = split_groups(result.questions, fraction=0.5, seed=0)
    assert (report.n_validation, report.n_test) == (int(validation.sum()), int((~validation).sum()))
    (router,) = report.routers.values()
    queries = result.queries["knows"]
    tested = ~validation[queries.question]
    served = queries.score >= router.threshold
    outcome = np.where(served, queries.small_correct, queries.large_correct)
    assert router.figures["accuracy"].value == pytest.approx(outcome[tested].mean())
    assert router.figures["coverage"].value == pytest.approx(served[tested].mean())
    assert router.figures["cost"].value == pytest.approx(1 + 10 * (~served[tested]).mean())
    assert router.chosen_on["accuracy"] == pytest.approx(outcome[~tested].mean())
    assert router.chosen_on["cost_share"] <= 0.5


def test_a_router_that_knows_beats_random_routing_and_a_saturated_one_does_not(folders):
    report = measure(
        aligned([folders["knows"], folders["saturated"]], folders["large"]), DEFAULTS.goal, FAST
    )
    knows, saturated = report.routers.values()
    assert knows.figures["gain_over_random"].low > 0
    assert (
        saturated.figures["gain_over_random"].high < 0
    )  # it pays for the small model and learns nothing
    assert saturated.figures["gain_over_random_deferral"].value == pytest.approx(0, abs=1e-12)
    assert report.versus["saturated"].figures["gain_difference"].low > 0
    gains = [r.figures["gain_over_random"].value for r in (knows, saturated)]
    assert report.versus["saturated"].figures["gain_difference"].value == pytest.approx(
        gains[0] - gains[1]
    )
    for result in (knows, saturated):
        band = result.bands["accuracy"]
        assert np.all(band.low <= band.value + 1e-9) and np.all(band.value <= band.high + 1e-9)


def test_the_same_router_twice_differs_by_exactly_nothing(folders, tmp_path):
    copy = write(
        tmp_path / "copy", [json.loads(line) for line in (folders["knows"] / "rows.jsonl").open()]
    )
    report = measure(aligned([folders["knows"], copy], folders["large"]), DEFAULTS.goal, FAST)
    for figure in report.versus["copy"].figures.values():
        assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0)


def test_intervals_resample_questions_not_rows(tmp_path):
    """Samples that only repeat each other must not make an interval narrower."""
    once = simulated(tmp_path / "once", n=150, kind="knows")
    rows = [json.loads(line) for line in (once / "rows.jsonl").open()]
    often = write(
        tmp_path / "often", [{**r, "sample": s} for r in rows for s in range(5)], name="often"
    )
    large = simulated(tmp_path / "large", n=150, kind="large", seed=5)
    one, five = (
        measure(aligned([f], large), DEFAULTS.goal, FAST).routers[name].figures["accuracy"]
        for f, name in ((once, "knows"), (often, "often"))
    )
    assert (one.low, one.high) == pytest.approx((five.low, five.high))


def test_without_latencies_there_is_no_latency_and_a_reason(tmp_path, folders):
    small = simulated(tmp_path / "s", n=400, kind="knows", latency=False)
    figures = (
        measure(aligned([small], folders["large"]), DEFAULTS.goal, FAST).routers["knows"].figures
    )
    assert figures["latency"].value is None
    assert "400 of the 400 rows of knows have no latency_s" in figures["latency"].reason
    assert figures["accuracy"].value is not None


@pytest.mark.parametrize(
    "change",
    [{"validation_fraction": 1.0}, {"n_resamples": -1}, {"level": 2.0}, {"curve_points": 1}],
)
def test_bad_settings_are_refused(folders, change):
    with pytest.raises(ConfigError):
        measure(
            aligned([folders["knows"]], folders["large"]),
            DEFAULTS.goal,
            Routing(**{"n_resamples": 10, **change}),
        )


def test_too_few_questions_and_a_small_model_that_costs_more_are_refused(folders, tmp_path):
    small, large = write(tmp_path / "s", [row(1, True, 0.9)]), write(tmp_path / "l", [row(1, True)])
    with pytest.raises(DataError, match="at least one of each"):
        measure(aligned([small], large), DEFAULTS.goal, FAST)
    with pytest.raises(ConfigError, match="nothing can be saved"):
        measure(
            aligned([folders["knows"]], folders["large"], small=Price("small", 20.0)),
            DEFAULTS.goal,
            FAST,
        )


def test_a_bare_point_without_resamples(folders):
    report = measure(
        aligned([folders["knows"]], folders["large"]), DEFAULTS.goal, Routing(n_resamples=0)
    )
    figure = report.routers["knows"].figures["accuracy"]
    assert figure.value is not None and figure.low is None
    assert report.routers["knows"].bands["accuracy"].as_dict()["low"][0] is None


def route(folders, out, *more):
    costs = ["--cost-small", "1", "--cost-large", "10", "--n-resamples", "50"]
    small, large = str(folders["knows"]), str(folders["large"])
    return main(["route", "--small", small, "--large", large, "--output", str(out), *costs, *more])


def test_the_command_writes_json_and_plots(folders, tmp_path, capsys):
    assert route(folders, tmp_path, "--small", str(folders["saturated"]), "--max-cost", "0.6") == OK
    shown = capsys.readouterr().out
    assert (
        "400 common questions (none left out)" in shown
        and "knows against saturated, paired" in shown
    )
    written = json.loads((tmp_path / "route.json").read_text())
    assert written["settings"]["goal"] == {"max_cost": 0.6, "min_accuracy": None}
    router = written["routers"]["knows"]
    assert {"value", "low", "high", "n"} <= router["figures"]["gain_over_random"].keys()
    assert len(router["bands"]["accuracy"]["low"]) == len(written["grid"])
    assert router["thresholds"][-1] == {
        "threshold": None,
        "cost": pytest.approx(11),
        "accuracy": pytest.approx(router["figures"]["large_accuracy"]["value"]),
        "coverage": pytest.approx(0),
    }
    assert router["threshold"] in [point["threshold"] for point in router["thresholds"]]
    for kind in ("png", "svg"):
        assert (tmp_path / f"cost_accuracy.{kind}").stat().st_size > 5000


def test_the_commands_goal_is_one_of_two(folders, tmp_path, capsys):
    assert route(folders, tmp_path / "default") == OK
    goals = [json.loads((tmp_path / "default" / "route.json").read_text())["settings"]["goal"]]
    assert route(folders, tmp_path / "min", "--min-accuracy", "0.9", "--formats", "svg") == OK
    goals.append(json.loads((tmp_path / "min" / "route.json").read_text())["settings"]["goal"])
    assert goals == [
        {"max_cost": 0.5, "min_accuracy": None},
        {"max_cost": None, "min_accuracy": 0.9},
    ]
    with pytest.raises(SystemExit):
        route(folders, tmp_path, "--min-accuracy", "0.9", "--max-cost", "0.5")


def test_the_command_asks_for_costs_and_names(folders, tmp_path, capsys):
    small, large = str(folders["knows"]), str(folders["large"])
    args = ["route", "--small", small, "--large", large, "--output", str(tmp_path)]
    assert main(args) == BAD_INPUT
    assert "--cost-small" in capsys.readouterr().err
    assert route(folders, tmp_path, "--names", "a,b") == BAD_INPUT
    assert "2 names for 1 small models" in capsys.readouterr().err
    assert route(folders, tmp_path, "--formats", "gif") == BAD_INPUT
    assert "unknown format 'gif'" in capsys.readouterr().err
    assert route(folders, tmp_path, "--names", "mine", "--formats", "svg") == OK
    assert "mine: threshold" in capsys.readouterr().out
