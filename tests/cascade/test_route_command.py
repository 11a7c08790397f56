"""`caopd route`: what the command takes, prints and writes."""

from __future__ import annotations

import json

import pytest

from caopd_verl.cli import BAD_INPUT, OK, main
from tests.cascade.folders import simulated


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of each kind, with 400 questions."""
    root = tmp_path_factory.mktemp("runs")
    seeds = {"knows": 1, "saturated": 2, "large": 3}
    for kind, seed in seeds.items():
        simulated(root / kind, n=400, kind=kind, seed=seed)
    return {kind: str(root / kind) for kind in seeds}


def route(folders, out, *more):
    """The command on the router that knows; returns its exit status."""
    models = ["--small", folders["knows"], "--large", folders["large"]]
    costs = ["--cost-small", "1", "--cost-large", "10"]
    options = ["--n-resamples", "50", "--output", str(out)]
    return main(["route", *models, *costs, *options, *more])


def written(out):
    """What the command wrote."""
    return json.loads((out / "route.json").read_text())


def test_the_command_writes_json_and_plots(folders, tmp_path, capsys):
    status = route(folders, tmp_path, "--small", folders["saturated"], "--max-cost", "0.6")
    assert status == OK
    shown = capsys.readouterr().out
    assert "400 common questions (none left out)" in shown
    assert "knows against saturated, paired" in shown
    content = written(tmp_path)
    assert content["settings"]["goal"] == {"max_cost": 0.6, "min_accuracy": None}
    router = content["routers"]["knows"]
    assert {"value", "low", "high", "n"} <= router["figures"]["gain_over_random"].keys()
    assert len(router["bands"]["accuracy"]["low"]) == len(content["grid"])
    for kind in ("png", "svg"):
        assert (tmp_path / f"cost_accuracy.{kind}").stat().st_size > 5000


def test_every_thresholds_operating_point_is_written(folders, tmp_path):
    assert route(folders, tmp_path, "--formats", "svg") == OK
    router = written(tmp_path)["routers"]["knows"]
    *others, last = router["thresholds"]
    assert router["threshold"] in [point["threshold"] for point in others]
    # The last one defers everything.
    assert last["threshold"] is None
    assert last["cost"] == pytest.approx(11)
    assert last["coverage"] == pytest.approx(0)
    assert last["accuracy"] == pytest.approx(router["figures"]["large_accuracy"]["value"])


@pytest.mark.parametrize(
    ("given", "goal"),
    [
        ([], {"max_cost": 0.5, "min_accuracy": None}),
        (["--min-accuracy", "0.9"], {"max_cost": None, "min_accuracy": 0.9}),
    ],
)
def test_the_goal_is_the_one_that_is_given(folders, tmp_path, given, goal):
    assert route(folders, tmp_path, "--formats", "svg", *given) == OK
    assert written(tmp_path)["settings"]["goal"] == goal


def test_two_goals_are_refused(folders, tmp_path):
    with pytest.raises(SystemExit):
        route(folders, tmp_path, "--min-accuracy", "0.9", "--max-cost", "0.5")


def test_costs_are_asked_for(folders, tmp_path, capsys):
    models = ["--small", folders["knows"], "--large", folders["large"]]
    assert main(["route", *models, "--output", str(tmp_path)]) == BAD_INPUT
    assert "--cost-small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--names", "a,b"], "2 names for 1 small models"),
        (["--formats", "gif"], "unknown format 'gif'"),
    ],
)
def test_names_and_formats_are_checked(folders, tmp_path, capsys, given, said):
    assert route(folders, tmp_path, *given) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_the_models_can_be_named(folders, tmp_path, capsys):
    assert route(folders, tmp_path, "--names", "mine", "--formats", "svg") == OK
    assert "mine: threshold" in capsys.readouterr().out
