"""Plots over models: accuracy against mean confidence (the paper's Figure 1), reliability bars, risk-coverage.

Same look as `plots`: one column of 3.4 inches, 7-8 pt text, colours safe for colour-blind readers, markers and line
styles that differ too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.bootstrap import cluster_index, cluster_weights
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.metrics.calibration import FloatArray, reliability_bins
from caopd_verl.evaluation.metrics.inputs import read_rows
from caopd_verl.evaluation.plots.style import (
    GREY,
    LIGHT,
    LINES,
    MARKERS,
    PALETTE,
    STYLE,
    WIDTH,
    save,
)

Confidences = Sequence["float | None"]
Series = tuple[
    Confidences, Sequence[bool], "Sequence[Hashable] | None"
]  # confidence, correct, question


def accuracy_against_confidence(
    models: Mapping[str, tuple[Estimate, Estimate]], path: str | Path, *, title: str | None = None
) -> Path:
    """One point for each model: mean confidence and accuracy with their intervals; the overconfidence zone is shaded.

    Args:
        models: name -> (mean confidence, accuracy of the same rows).
        path: file to write.

    Raises:
        ConfigError: no models. DataError: a model without a confidence, naming it.
    """
    if not models:
        raise ConfigError("there is nothing to draw", where="models", expected="at least one model")
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2 + 0.13 * len(models)), layout="constrained")
        axes = figure.subplots()
        axes.fill_between([0, 1], [0, 1], color=PALETTE[1], alpha=0.10, lw=0)
        axes.text(0.97, 0.03, "overconfident", ha="right", color=GREY)
        axes.text(0.03, 0.95, "underconfident", va="top", color=GREY)
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 3)))
        for i, (name, (conf, acc)) in enumerate(models.items()):
            if conf.value is None or acc.value is None:
                raise DataError(f"{name} has no confidences to draw", where=str(path))
            colour = PALETTE[i % 7]
            face, edge = (colour, "white") if i < 7 else ("white", colour)
            axes.errorbar(
                conf.value, acc.value, xerr=_bars(conf), yerr=_bars(acc), fmt=MARKERS[i % 7], color=colour, ms=5,
                elinewidth=0.9, capsize=1.5, markerfacecolor=face, markeredgecolor=edge, label=name,
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Mean confidence", ylabel="Accuracy")
        axes.set_aspect("equal")
        if title:
            axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2 if len(models) > 1 else 1, frameon=False)
        return save(figure, path)


def reliability_bars(
    confidence: Confidences, correct: Sequence[bool], path: str | Path, *, title: str, n_bins: int
) -> Path:
    """Bars of the accuracy in each bin, with the gap to the bin's mean confidence hatched, rows above each bar.

    Raises:
        DataError: as `calibration_metrics`, and where no row carries a confidence.
    """
    bins = [
        b for b in reliability_bins(confidence, correct, n_bins=n_bins) if b.mean_conf is not None
    ]
    if not bins:
        raise DataError(f"none of the {len(confidence)} rows carries a confidence", where=str(path))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        left, width = np.array([b.low for b in bins]), 1.0 / n_bins
        acc, conf = (
            np.array([b.acc for b in bins], dtype=float),
            np.array([b.mean_conf for b in bins], dtype=float),
        )
        axes.bar(left, acc, 0.92 * width, align="edge", color=PALETTE[0], label="accuracy")
        axes.bar(
            left, np.abs(conf - acc), 0.92 * width, bottom=np.minimum(acc, conf), align="edge", color="none",
            edgecolor=PALETTE[1], hatch="////", lw=0.8, label="gap to the mean confidence",
        )  # fmt: skip
        for b, top in zip(bins, np.maximum(acc, conf), strict=True):
            axes.text(b.low + width / 2, min(top, 1.0) + 0.01, f"{b.n:,}", ha="center", fontsize=6)
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 3)))
        axes.set(
            xlim=(-0.01, 1.01), ylim=(0, 1.12), xlabel="Confidence", ylabel="Accuracy", title=title
        )
        axes.set_yticks(np.linspace(0, 1, 6))
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return save(figure, path)


def risk_coverage(
    series: Mapping[str, Series],
    path: str | Path,
    *,
    title: str | None = None,
    n_resamples: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> Path:
    """Error rate among the most confident rows against the share that is answered; ties in expectation.

    Bands are bootstrap intervals over questions; a dotted line is the error rate without any selection.

    Raises:
        ConfigError: no series. DataError: a series without confidences, naming it.
    """
    if not series:
        raise ConfigError(
            "there is nothing to draw", where="series", expected="at least one name with its rows"
        )
    grid = np.linspace(0.02, 1.0, 50)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        for i, (name, (confidence, correct, groups)) in enumerate(series.items()):
            rows = read_rows(confidence, correct)
            values, parsed, outcomes = rows.confidence, rows.parsed, rows.correct
            if not parsed.any():
                raise DataError(f"{name} has no confidences to draw", where=str(path))
            clusters = np.unique(cluster_index(groups, len(values))[parsed], return_inverse=True)[1]
            values, right = values[parsed], outcomes[parsed].astype(np.float64)
            rng = np.random.default_rng(seed)
            curve = _risks(values, right, np.ones(len(values)), grid)
            resampled = [
                _risks(values, right, cluster_weights(rng, int(clusters.max()) + 1)[clusters], grid)
                for _ in range(n_resamples)
            ]
            _draw_curve(axes, i, name, grid, curve, resampled, level)
        axes.set(
            xlim=(0, 1),
            ylim=(0, None),
            xlabel="Coverage (most confident first)",
            ylabel="Error rate",
        )
        if title:
            axes.set_title(title)
        axes.legend(frameon=False, loc="best", handlelength=2.6)
        return save(figure, path)


def _draw_curve(
    axes: Axes,
    i: int,
    name: str,
    grid: FloatArray,
    curve: FloatArray,
    resampled: list[FloatArray],
    level: float,
) -> None:
    colour = PALETTE[i % len(PALETTE)]
    if resampled:
        low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(grid, curve, color=colour, ls=LINES[i % len(LINES)], lw=1.2, label=name)
    axes.axhline(curve[-1], color=colour, lw=0.6, ls=":")
    axes.grid(axis="y", color=LIGHT, lw=0.5)


def _risks(
    values: FloatArray, right: FloatArray, weights: FloatArray, grid: FloatArray
) -> FloatArray:
    """Error rates among the share `grid` (shape [g]) of the most confident rows."""
    distinct, code = np.unique(-values, return_inverse=True)
    total = np.bincount(code, weights=weights, minlength=len(distinct))
    wrong = np.bincount(code, weights=weights * (1.0 - right), minlength=len(distinct))
    ranks = np.concatenate(([0.0], np.cumsum(total)))
    errors = np.concatenate(([0.0], np.cumsum(wrong)))
    wanted = grid * ranks[-1]
    return np.interp(wanted, ranks, errors) / wanted


def _bars(estimate: Estimate) -> list[list[float]] | None:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
