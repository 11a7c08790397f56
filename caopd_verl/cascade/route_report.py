"""The result of `caopd route` as text, as JSON and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caopd_verl.cascade.measure import Report, RouterResult
from caopd_verl.cascade.paired_rows import Aligned
from caopd_verl.cascade.route_plots import cost_accuracy
from caopd_verl.cascade.routing_settings import Goal, Routing
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.estimates import Estimate

FORMATS = ("png", "svg", "pdf")
# label -> the figures of one line of the table: accuracy, cost, latency, coverage
_LINES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("cascade", ("accuracy", "cost", "latency", "coverage")),
    ("always small", ("small_accuracy", "small_cost", "small_latency", None)),
    ("always large", ("large_accuracy", "large_cost", "large_latency", None)),
    ("random routing, equal cost", ("random_accuracy", None, None, None)),
    ("random deferral, equal cost", ("random_deferral_accuracy", None, None, None)),
    ("oracle, equal cost", ("oracle_accuracy", None, None, None)),
)
_WIDTHS = (22, 32, 24, 22)
_GAINS = {
    "over_random": "cascade over random routing, at its cost",
    "over_small": "cascade over always small",
    "over_large": "cascade over always large",
    "gain_over_random": "curve over random routing, mean",
    "gain_over_random_deferral": "curve over random deferral, mean",
    "gain_over_oracle": "curve over the oracle, mean",
}


def report_text(report: Report, aligned: Aligned, goal: Goal, routing: Routing) -> str:
    """The tables for the terminal."""
    left_out = ", ".join(f"{n} of {name}" for name, n in aligned.left_out.items() if n)
    lines = [
        f"{len(aligned.questions)} common questions ({'left out: ' + left_out if left_out else 'none left out'}): "
        f"threshold chosen on {report.n_validation}, everything below measured on the other {report.n_test}",
        f"goal: {_goal_text(goal)}; score: {routing.readout} confidence; {routing.level:.0%} bootstrap over questions",
    ]
    for name, result in report.routers.items():
        lines += ["", *_router_lines(name, result, aligned)]
    first = next(iter(report.routers))
    for name, versus in report.versus.items():
        accuracy, gain = versus.figures["accuracy_difference"], versus.figures["gain_difference"]
        lines += ["", f"{first} against {name}, paired"]
        lines.append(
            f"  curve over curve, mean of the common costs      {_text(accuracy, signed=True)}"
        )
        lines.append(f"  gain over random routing, {'difference':22}{_text(gain, signed=True)}")
    return "\n".join(lines)


def _router_lines(name: str, result: RouterResult, aligned: Aligned) -> list[str]:
    threshold = (
        "none (everything deferred)" if result.threshold is None else f"{result.threshold:.4g}"
    )
    lines = [
        f"{name}: threshold {threshold}; {result.n_rows} test rows, {result.n_unscored} without a score (deferred)",
        f"  {'':28}{'accuracy':>22}{'cost':>32}{'latency, s':>24}{'coverage':>22}",
    ]
    for label, keys in _LINES:
        cells = ["" if key is None else _text(result.figures[key]) for key in keys]
        lines.append(
            f"  {label:28}" + "".join(f"{c:>{w}}" for c, w in zip(cells, _WIDTHS, strict=True))
        )
    share = result.figures["cost_share"]
    lines.append(f"  cost, share of always-large's: {_text(share)}")
    lines += [
        f"  {label:48}{_text(result.figures[key], signed=True)}" for key, label in _GAINS.items()
    ]
    if reason := aligned.no_latency.get(name):
        lines.append(f"  no latency: {reason}")
    return lines


def _goal_text(goal: Goal) -> str:
    if goal.max_cost is not None:
        return f"best accuracy at no more than {goal.max_cost:g} of always-large's cost"
    return f"least cost that keeps {goal.min_accuracy:g} of the large model's accuracy"


def _text(figure: Estimate, *, signed: bool = False) -> str:
    if figure.value is None:
        return "none"
    form = (
        "+.3f"
        if signed
        else ".3f"
        if 0.01 <= abs(figure.value) < 1000 or figure.value == 0
        else ".3g"
    )
    if figure.low is None:
        return f"{figure.value:{form}}"
    return f"{figure.value:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def report_dict(report: Report, aligned: Aligned) -> dict[str, Any]:
    """`route.json`, less its settings. Under `routers` by name: `threshold` (null: everything is deferred), `figures`
    with n and interval, `thresholds` (what each would give), and `bands` at the costs of `grid`."""
    return {
        "questions": {
            "common": len(aligned.questions),
            "validation": report.n_validation,
            "test": report.n_test,
            "left_out": aligned.left_out,
        },
        "grid": [float(cost) for cost in report.grid],
        "routers": {name: _router_dict(result) for name, result in report.routers.items()},
        "versus": {
            name: {
                "figures": {key: figure.as_dict() for key, figure in versus.figures.items()},
                "band": versus.band.as_dict(),
            }
            for name, versus in report.versus.items()
        },
    }


def _router_dict(result: RouterResult) -> dict[str, Any]:
    router = result.curves["router"]
    served_from = [
        *(float(score) for score in result.scores),
        None,
    ]  # the k-th point defers the first k scores
    points = zip(served_from, router.cost, router.accuracy, router.coverage, strict=True)
    return {
        "threshold": result.threshold,
        "chosen_on": result.chosen_on,
        "n_rows": result.n_rows,
        "n_unscored": result.n_unscored,
        "figures": {key: figure.as_dict() for key, figure in result.figures.items()},
        "bands": {what: band.as_dict() for what, band in result.bands.items()},
        "thresholds": [
            {
                "threshold": score,
                "cost": float(cost),
                "accuracy": float(accuracy),
                "coverage": float(coverage),
            }
            for score, cost, accuracy, coverage in points
            if score is None or score >= 0.0
        ],
    }


def draw(report: Report, folder: Path, *, formats: Sequence[str], title: str | None) -> list[Path]:
    """The cost-accuracy curve in each of `formats`."""
    return [
        cost_accuracy(report, folder / f"cost_accuracy.{kind}", title=title) for kind in formats
    ]


def check_formats(text: str) -> list[str]:
    """The formats of a comma-separated list.

    Raises:
        ConfigError: one that is none of `FORMATS`.
    """
    formats = text.split(",")
    for kind in formats:
        if kind not in FORMATS:
            raise ConfigError(
                f"unknown format {kind!r}",
                where="--formats",
                expected="some of " + ", ".join(FORMATS),
            )
    return formats
