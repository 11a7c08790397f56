"""Accuracy against mean confidence over models (the paper's Figure 1), and reliability as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.metrics.calibration import reliability_bins
from caopd_verl.evaluation.plots.style import (
    DASHES,
    GREY,
    MARKERS,
    PALETTE,
    STYLE,
    WIDTH,
    save,
)

Confidences = Sequence["float | None"]


def accuracy_against_confidence(
    models: Mapping[str, tuple[Estimate, Estimate]], path: str | Path, *, title: str | None = None
) -> Path:
    """One point for each model: mean confidence and accuracy with their intervals.

    The zone of overconfidence is shaded.

    Args:
        models: name -> (mean confidence, accuracy of the same rows).
        path: file to write.
        title: of the figure.

    Raises:
        ConfigError: no models. DataError: a model without a confidence, naming it.
    """
    if not models:
        raise ConfigError("there is nothing to draw", where="models", expected="at least one model")
    with rc_context(STYLE):
        height = 3.2 + 0.13 * len(models)  # room for the legend, which grows with them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.fill_between([0, 1], [0, 1], color=PALETTE[1], alpha=0.10, lw=0)
        axes.text(0.97, 0.03, "overconfident", ha="right", color=GREY)
        axes.text(0.03, 0.95, "underconfident", va="top", color=GREY)
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=DASHES)
        for i, (name, (conf, acc)) in enumerate(models.items()):
            if conf.value is None or acc.value is None:
                raise DataError(f"{name} has no confidences to draw", where=str(path))
            x, y = conf.value, acc.value
            x_bars, y_bars = _bars(conf), _bars(acc)
            axes.errorbar(x, y, xerr=x_bars, yerr=y_bars, label=name, **_look(i))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Mean confidence", ylabel="Accuracy")
        axes.set_aspect("equal")
        if title:
            axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2 if len(models) > 1 else 1, frameon=False)
        return save(figure, path)


def _look(i: int) -> dict[str, Any]:
    """Marker and colour of the i-th model, as arguments of `errorbar`."""
    n_colours = len(PALETTE)
    colour = PALETTE[i % n_colours]
    # Beyond the palette the markers are hollow, so that no two models look alike.
    face, edge = (colour, "white") if i < n_colours else ("white", colour)
    return {
        "fmt": MARKERS[i % n_colours],
        "color": colour,
        "ms": 5,
        "elinewidth": 0.9,
        "capsize": 1.5,
        "markerfacecolor": face,
        "markeredgecolor": edge,
    }


def _bars(estimate: Estimate) -> list[list[float]] | None:
    """Lengths of the error bar below and above the value; None where there is no interval."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None:
        return None
    # An interval without bias need not hold the value, and matplotlib refuses negative lengths.
    below, above = max(0.0, value - low), max(0.0, high - value)
    return [[below], [above]]


def reliability_bars(
    confidence: Confidences, correct: Sequence[bool], path: str | Path, *, title: str, n_bins: int
) -> Path:
    """Bars of the accuracy in each bin, the gap to the bin's mean confidence hatched.

    Numbers above the bars are rows.

    Args:
        confidence, correct: rows, as for `calibration_metrics`.
        path: file to write.
        title: of the figure.
        n_bins: equal-width bins, as in the ECE.

    Raises:
        DataError: as `calibration_metrics`, and where no row carries a confidence.
    """
    bins = [cell for cell in reliability_bins(confidence, correct, n_bins=n_bins) if cell.n]
    if not bins:
        raise DataError(f"none of the {len(confidence)} rows carries a confidence", where=str(path))
    low = np.array([cell.low for cell in bins])
    acc = np.array([cell.acc for cell in bins], dtype=np.float64)
    conf = np.array([cell.mean_conf for cell in bins], dtype=np.float64)
    width = 1.0 / n_bins
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.bar(low, acc, 0.92 * width, align="edge", color=PALETTE[0], label="accuracy")
        axes.bar(
            low,
            np.abs(conf - acc),
            0.92 * width,
            align="edge",
            bottom=np.minimum(acc, conf),
            color="none",
            edgecolor=PALETTE[1],
            hatch="////",
            lw=0.8,
            label="gap to the mean confidence",
        )
        for cell, top in zip(bins, np.maximum(acc, conf).tolist(), strict=True):
            middle = cell.low + width / 2
            above = min(top, 1.0) + 0.01
            axes.text(middle, above, f"{cell.n:,}", ha="center", fontsize=6)
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=DASHES)
        axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.12))
        axes.set(xlabel="Confidence", ylabel="Accuracy", title=title)
        axes.set_yticks(np.linspace(0, 1, 6))
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return save(figure, path)
