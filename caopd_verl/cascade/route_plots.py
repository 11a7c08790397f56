"""The cost-accuracy curve of one or more routers, in the look of the other plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caopd_verl.cascade.measure import Report, RouterResult
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.plots.style import GREY, LIGHT, MARKERS, PALETTE, STYLE, WIDTH, save

# Dashes and dots are the baselines'.
ROUTER_LINES = (
    "-",
    "-.",
    (0, (7, 1)),
    (0, (3, 1, 1, 1)),
    (0, (7, 1, 1, 1)),
    (0, (4, 1, 2, 1)),
    "-",
)


def cost_accuracy(report: Report, path: str | Path, *, title: str | None = None) -> Path:
    """Accuracy against mean cost (always-large = 1), one curve with its band for each router.

    The open marker is always-small, the filled one the chosen threshold, the black star always-large; dashed is
    random routing, dotted the oracle. Costs beyond 1 are those of a cascade that asks both models for nearly all.

    Raises:
        ConfigError: no routers.
    """
    if not report.routers:
        raise ConfigError("there is nothing to draw", where="routers", expected="at least one")
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9 + 0.13 * len(report.routers)), layout="constrained")
        axes = figure.subplots()
        for i, (name, result) in enumerate(report.routers.items()):
            _draw_router(axes, i, name, report, result)
        first = next(iter(report.routers.values()))
        large = first.figures["large_accuracy"]
        height = _value(large)
        bars = None
        if large.low is not None and large.high is not None:
            bars = [[height - large.low], [large.high - height]]
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
        axes.plot([], [], color=GREY, ls="--", lw=0.8, label="random routing")
        axes.plot([], [], color=GREY, ls=":", lw=0.9, label="oracle")
        axes.plot([], [], color=GREY, ls="", marker="o", mfc="none", ms=4, label="always small")
        axes.plot([], [], color=GREY, ls="", marker="o", ms=4.5, label="chosen threshold")
        axes.set(xlabel="Cost of a query (always large = 1)", ylabel="Accuracy", xlim=(0, None))
        axes.grid(axis="y", color=LIGHT, lw=0.5)
        if title:
            axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return save(figure, path)


def _draw_router(axes: Axes, i: int, name: str, report: Report, result: RouterResult) -> None:
    colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
    values = {
        key: _value(result.figures[key])
        for key in ("large_cost", "small_cost", "small_accuracy", "accuracy", "cost")
    }
    unit = values["large_cost"]
    band = result.bands["accuracy"]
    end = result.curves["router"].cost[-1]
    shown = ~np.isnan(band.low) & (report.grid <= end * (1.0 + 1e-9))
    if shown.any():
        axes.fill_between(
            report.grid[shown] / unit,
            band.low[shown],
            band.high[shown],
            color=colour,
            alpha=0.15,
            lw=0,
        )
    for kind, style in (("random", "--"), ("oracle", ":")):
        curve = result.curves[kind]
        cost, accuracy = np.append(curve.cost, end), np.append(curve.accuracy, curve.accuracy[-1])
        axes.plot(cost / unit, accuracy, color=colour, ls=style, lw=0.8, alpha=0.8)
    router = result.curves["router"]
    axes.plot(
        router.cost / unit,
        router.accuracy,
        color=colour,
        ls=ROUTER_LINES[i % len(ROUTER_LINES)],
        lw=1.3,
        label=name,
    )
    points = (
        (values["small_cost"], values["small_accuracy"], "white"),
        (values["cost"], values["accuracy"], colour),
    )
    for x, y, face in points:
        axes.plot(x / unit, y, marker=marker, color=colour, mfc=face, ms=4.5, ls="", zorder=5)


def _value(figure: Estimate) -> float:
    assert figure.value is not None, figure.reason
    return figure.value
