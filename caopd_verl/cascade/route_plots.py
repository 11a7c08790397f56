"""The cost-accuracy curve of one or more routers, in the look of the other plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caopd_verl.cascade.measure import Report, RouterResult
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.plots.style import GREY, LIGHT, MARKERS, PALETTE, STYLE, WIDTH, save

# Plain dashes and plain dots are the baselines', so no router has them.
ROUTER_LINES = (
    "-",
    "-.",
    (0, (7, 1)),
    (0, (3, 1, 1, 1)),
    (0, (7, 1, 1, 1)),
    (0, (4, 1, 2, 1)),
    "-",
)
RANDOM_LINE, ORACLE_LINE = "--", ":"
_HEIGHT, _HEIGHT_PER_ROUTER = 2.9, 0.13  # inches; each router needs room in the legend


def cost_accuracy(report: Report, path: str | Path, *, title: str | None = None) -> Path:
    """Accuracy against mean cost (always-large = 1), one curve with its band for each router.

    The open marker is always-small, the filled one the chosen threshold, the black star
    always-large; dashed is random routing, dotted the oracle. Costs beyond 1 are those of a cascade
    that asks both models for nearly all.

    Args:
        report: with at least one router.
        path: of the file; its ending is the format.
        title: above the axes; None for none.

    Raises:
        ConfigError: no routers.
    """
    if not report.routers:
        raise ConfigError("there is nothing to draw", where="routers", expected="at least one")
    with rc_context(STYLE):
        height = _HEIGHT + _HEIGHT_PER_ROUTER * len(report.routers)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for number, (name, result) in enumerate(report.routers.items()):
            _draw_router(axes, number, name, report, result)
        # All routers share the large model, so the first one's figure is everybody's.
        first = next(iter(report.routers.values()))
        _draw_always_large(axes, first.figures["large_accuracy"])
        _draw_legend_entries(axes)
        axes.set(xlabel="Cost of a query (always large = 1)", ylabel="Accuracy", xlim=(0, None))
        axes.grid(axis="y", color=LIGHT, lw=0.5)
        if title:
            axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return save(figure, path)


def draw(report: Report, folder: Path, *, formats: Sequence[str], title: str | None) -> list[Path]:
    """The cost-accuracy curve in each of `formats`; returns the files."""
    paths = [folder / f"cost_accuracy.{kind}" for kind in formats]
    return [cost_accuracy(report, path, title=title) for path in paths]


def _draw_router(axes: Axes, number: int, name: str, report: Report, result: RouterResult) -> None:
    colour = PALETTE[number % len(PALETTE)]
    line = ROUTER_LINES[number % len(ROUTER_LINES)]
    marker = MARKERS[number % len(MARKERS)]
    unit = _value(result.figures["large_cost"])
    router = result.curves["router"]
    end = router.cost[-1]
    _draw_band(axes, report, result, colour)
    for kind, style in (("random", RANDOM_LINE), ("oracle", ORACLE_LINE)):
        curve = result.curves[kind]
        # Carried on to the router's end, where all curves can be compared.
        cost = np.append(curve.cost, end)
        accuracy = np.append(curve.accuracy, curve.accuracy[-1])
        axes.plot(cost / unit, accuracy, color=colour, ls=style, lw=0.8, alpha=0.8)
    cost = router.cost / unit
    axes.plot(cost, router.accuracy, color=colour, ls=line, lw=1.3, label=name)
    for point, face in (("small_", "white"), ("", colour)):
        x = _value(result.figures[f"{point}cost"]) / unit
        y = _value(result.figures[f"{point}accuracy"])
        axes.plot(x, y, marker=marker, color=colour, mfc=face, ms=4.5, ls="", zorder=5)


def _draw_band(axes: Axes, report: Report, result: RouterResult, colour: str) -> None:
    unit = _value(result.figures["large_cost"])
    band = result.bands["accuracy"]
    end = result.curves["router"].cost[-1]
    # The grid is common: it goes on to the dearest router's end.
    reached = report.grid <= end * (1.0 + 1e-9)
    shown = ~np.isnan(band.low) & reached
    if shown.any():
        cost = report.grid[shown] / unit
        low, high = band.low[shown], band.high[shown]
        axes.fill_between(cost, low, high, color=colour, alpha=0.15, lw=0)


def _draw_always_large(axes: Axes, accuracy: Estimate) -> None:
    height = _value(accuracy)
    bars = None
    if accuracy.low is not None and accuracy.high is not None:
        bars = [[height - accuracy.low], [accuracy.high - height]]
    axes.errorbar(
        1.0,
        height,
        yerr=bars,
        fmt="*",
        color="black",
        ms=6,
        elinewidth=0.8,
        label="always large",
    )


def _draw_legend_entries(axes: Axes) -> None:
    """Entries for what each router draws in its own colour."""
    axes.plot([], [], color=GREY, ls=RANDOM_LINE, lw=0.8, label="random routing")
    axes.plot([], [], color=GREY, ls=ORACLE_LINE, lw=0.9, label="oracle")
    axes.plot([], [], color=GREY, ls="", marker="o", mfc="none", ms=4, label="always small")
    axes.plot([], [], color=GREY, ls="", marker="o", ms=4.5, label="chosen threshold")


def _value(figure: Estimate) -> float:
    assert figure.value is not None, figure.reason
    return figure.value
