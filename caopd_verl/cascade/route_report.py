"""The result of `caopd route` as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from caopd_verl.cascade.measure import Report, RouterResult, Versus
from caopd_verl.cascade.paired_rows import Aligned
from caopd_verl.cascade.routing_settings import Goal, Routing
from caopd_verl.evaluation.intervals.estimates import Estimate

# label -> the figures of one line of the table, in the order of `_WIDTHS`
_LINES: Mapping[str, tuple[str | None, ...]] = {
    "cascade": ("accuracy", "cost", "latency", "coverage"),
    "always small": ("small_accuracy", "small_cost", "small_latency", None),
    "always large": ("large_accuracy", "large_cost", "large_latency", None),
    "random routing, equal cost": ("random_accuracy", None, None, None),
    "random deferral, equal cost": ("random_deferral_accuracy", None, None, None),
    "oracle, equal cost": ("oracle_accuracy", None, None, None),
}
# column -> its characters; a cost may have many digits in front of the point, a latency behind it
_WIDTHS = {"accuracy": 22, "cost": 32, "latency, s": 28, "coverage": 22}
_GAINS = {
    "over_random": "cascade over random routing, at its cost",
    "over_small": "cascade over always small",
    "over_large": "cascade over always large",
    "gain_over_random": "curve over random routing, mean",
    "gain_over_random_deferral": "curve over random deferral, mean",
    "gain_over_oracle": "curve over the oracle, mean",
}
_VERSUS = {
    "accuracy_difference": "curve over curve, mean of the common costs",
    "gain_difference": "gain over random routing, difference",
}


def report_text(report: Report, aligned: Aligned, goal: Goal, routing: Routing) -> str:
    """The tables for the terminal."""
    counts = aligned.left_out.items()
    missing = [f"{n} of {name}" for name, n in counts if n]
    left_out = f"left out: {', '.join(missing)}" if missing else "none left out"
    questions = f"{len(aligned.questions)} common questions ({left_out})"
    split = (
        f"threshold chosen on {report.n_validation}, "
        f"everything below measured on the other {report.n_test}"
    )
    bootstrap = f"{routing.level:.0%} bootstrap over questions"
    rule = f"goal: {_goal_text(goal)}; score: {routing.readout} confidence; {bootstrap}"
    lines = [f"{questions}: {split}", rule]
    for name, result in report.routers.items():
        lines += ["", *_router_lines(name, result, aligned.no_latency.get(name))]
    first = next(iter(report.routers))
    for name, versus in report.versus.items():
        differences = _difference_lines(_VERSUS, versus.figures)
        lines += ["", f"{first} against {name}, paired", *differences]
    return "\n".join(lines)


def _router_lines(name: str, result: RouterResult, no_latency: str | None) -> list[str]:
    threshold = "none (everything deferred)"
    if result.threshold is not None:
        threshold = f"{result.threshold:.4g}"
    rows = f"{result.n_rows} test rows, {result.n_unscored} without a score (deferred)"
    lines = [f"{name}: threshold {threshold}; {rows}", _table_line("", _WIDTHS)]
    for label, keys in _LINES.items():
        figures = [None if key is None else result.figures[key] for key in keys]
        cells = ["" if figure is None else _text(figure) for figure in figures]
        lines.append(_table_line(label, cells))
    share = _text(result.figures["cost_share"])
    lines.append(f"  cost, share of always-large's: {share}")
    lines += _difference_lines(_GAINS, result.figures)
    if no_latency:
        lines.append(f"  no latency: {no_latency}")
    return lines


def _table_line(label: str, cells: Iterable[str]) -> str:
    line = f"  {label:28}"
    for cell, width in zip(cells, _WIDTHS.values(), strict=True):
        line += f"{cell:>{width}}"
    return line


def _difference_lines(labels: Mapping[str, str], figures: Mapping[str, Estimate]) -> list[str]:
    lines = []
    for key, label in labels.items():
        difference = _text(figures[key], signed=True)
        lines.append(f"  {label:48}{difference}")
    return lines


def _goal_text(goal: Goal) -> str:
    if goal.max_cost is not None:
        return f"best accuracy at no more than {goal.max_cost:g} of always-large's cost"
    return f"least cost that keeps {goal.min_accuracy:g} of the large model's accuracy"


def _text(figure: Estimate, *, signed: bool = False) -> str:
    if figure.value is None:
        return "none"
    form = _form(figure.value, signed=signed)
    if figure.low is None:
        return f"{figure.value:{form}}"
    return f"{figure.value:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def _form(value: float, *, signed: bool) -> str:
    """The number format: three decimals, unless that would show a price as 0 or overflow."""
    if signed:
        return "+.3f"
    if value == 0 or 0.01 <= abs(value) < 1000:
        return ".3f"
    return ".3g"


def report_dict(report: Report, aligned: Aligned) -> dict[str, Any]:
    """`route.json`, less its settings.

    Under `routers` by name: `threshold` (null: everything is deferred), `figures` with n and
    interval, `thresholds` (what each would give), and `bands` at the costs of `grid`.
    """
    questions = {
        "common": len(aligned.questions),
        "validation": report.n_validation,
        "test": report.n_test,
        "left_out": aligned.left_out,
    }
    routers = {name: _router_dict(result) for name, result in report.routers.items()}
    versus = {name: _versus_dict(pair) for name, pair in report.versus.items()}
    grid = [float(cost) for cost in report.grid]
    return {"questions": questions, "grid": grid, "routers": routers, "versus": versus}


def _versus_dict(versus: Versus) -> dict[str, Any]:
    return {"figures": _figures_dict(versus.figures), "band": versus.band.as_dict()}


def _figures_dict(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {key: figure.as_dict() for key, figure in figures.items()}


def _router_dict(result: RouterResult) -> dict[str, Any]:
    return {
        "threshold": result.threshold,
        "chosen_on": result.chosen_on,
        "n_rows": result.n_rows,
        "n_unscored": result.n_unscored,
        "figures": _figures_dict(result.figures),
        "bands": {what: band.as_dict() for what, band in result.bands.items()},
        "thresholds": _thresholds(result),
    }


def _thresholds(result: RouterResult) -> list[dict[str, float | None]]:
    """What each threshold would give on the test questions; the last one (None) defers all."""
    router = result.curves["router"]
    # The k-th point of the curve defers the first k scores, so it serves from the next one on.
    served_from = [*map(float, result.scores), None]
    points = zip(served_from, router.cost, router.accuracy, router.coverage, strict=True)
    found = []
    for score, cost, accuracy, coverage in points:
        # Rows without a score have the score -inf, which is no threshold that can be set.
        if score is None or score >= 0.0:
            point = {"cost": float(cost), "accuracy": float(accuracy), "coverage": float(coverage)}
            found.append({"threshold": score, **point})
    return found
