"""Plots of calibration and of training, as PNG (or whatever the path's ending asks of matplotlib).

All are drawn for a column of 3.4 inches (8.6 cm) at 300 dpi with 7-8 pt text, in the Okabe-Ito palette, which is safe
for colour-blind readers; series differ in marker and line style as well. Every plot returns the path it wrote.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from caopd_verl.config import Missing
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.bootstrap import cluster_index, mean_interval
from caopd_verl.evaluation.metrics.calibration import calibration_metrics, reliability_bins
from caopd_verl.evaluation.metrics.formulas import bin_index
from caopd_verl.evaluation.plots.curves import training_curves
from caopd_verl.evaluation.plots.style import (
    GREY,
    LIGHT,
    MARKERS,
    NOTE_BOX,
    PALETTE,
    STYLE,
    WIDTH,
    save,
)

__all__ = ["compare_reliability", "confidence_histogram", "reliability_diagram", "training_curves"]

Confidences = Sequence["float | None"]
Outcomes = Sequence[bool]


def reliability_diagram(
    confidence: Confidences,
    correct: Outcomes,
    path: str | Path,
    *,
    title: str,
    n_bins: int,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
    readout: str = "Stated confidence",
) -> Path:
    """Accuracy against mean confidence for each bin, with the share of rows below.

    Markers stand at a bin's mean confidence and accuracy, their area grows with its rows; bars are bootstrap
    intervals of the accuracy over `groups` (questions); coloured strokes show the gap to the diagonal. Rows without a
    confidence are left out and counted in the note, which also gives n, ECE, Brier and the overconfidence gap.

    Args:
        confidence, correct: rows, as for `calibration_metrics`.
        path: file to write; folders are made.
        title: of the diagram.
        n_bins: equal-width bins, as in the ECE.
        n_resamples, level, seed: of the bootstrap.
        groups: for each row its question, where a question was sampled more than once.
        readout: what the confidences are, for the axis ("Stated confidence", "Expected confidence").

    Raises:
        DataError: as `calibration_metrics`, and where no row carries a confidence.
    """
    _require_rows(confidence, path)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
        _diagonal(axes)
        points = _points(confidence, correct, n_bins, n_resamples, level, seed, groups)
        _draw_points(axes, points, PALETTE[0], MARKERS[0], gaps=True)
        _count_bars(below, confidence, n_bins)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), ylabel="Accuracy")
        below.set_xlabel(readout)
        axes.set_title(title)
        note = f"{_summary(confidence, correct, n_bins)}\nbars: {level:.0%} bootstrap"
        axes.text(
            0.02,
            0.99,
            note,
            va="top",
            color="black",
            transform=axes.transAxes,
            bbox=NOTE_BOX,
            zorder=4,
        )
        return save(figure, path)


def confidence_histogram(
    confidence: Confidences,
    correct: Outcomes,
    path: str | Path,
    *,
    title: str,
    n_bins: int = 20,
    readout: str = "Stated confidence",
) -> Path:
    """Histogram of the confidences, correct and wrong answers stacked, with mean confidence and accuracy marked.

    Rows without a confidence are left out and counted in the title line. Raises as `reliability_diagram`.
    """
    _require_rows(confidence, path)
    values, outcomes = _parsed(confidence, correct)
    index = bin_index(values, n_bins)
    right = np.bincount(index[outcomes], minlength=n_bins)
    wrong = np.bincount(index[~outcomes], minlength=n_bins)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        edges, width = np.arange(n_bins) / n_bins, 0.92 / n_bins
        axes.bar(
            edges, right, width, align="edge", color=PALETTE[0], label=f"correct ({right.sum():,})"
        )
        axes.bar(
            edges, wrong, width, align="edge", bottom=right, color=PALETTE[4], hatch="////", edgecolor="white",
            linewidth=0, label=f"wrong ({wrong.sum():,})",
        )  # fmt: skip
        axes.axvline(
            values.mean(), color="black", lw=1.2, label=f"mean confidence {values.mean():.2f}"
        )
        axes.axvline(
            outcomes.mean(), color="black", lw=1.2, ls=":", label=f"accuracy {outcomes.mean():.2f}"
        )
        axes.set(xlim=(-0.02, 1.02), xlabel=readout, ylabel="Responses")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        missing = len(confidence) - len(values)
        axes.set_title(
            f"{title}\nn = {len(confidence):,}"
            + (f", {missing:,} without a confidence" if missing else "")
        )
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return save(figure, path)


def compare_reliability(
    rows: Mapping[str, tuple[Confidences, Outcomes]],
    path: str | Path,
    *,
    n_bins: int,
    title: str | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    columns: int = 2,
    readout: str = "Stated confidence",
) -> Path:
    """One small reliability diagram for each name on common axes, so that no series hides another.

    Args:
        rows: name -> (confidence, correct), at least one.
        columns: diagrams side by side; the figure is one text column wide up to two of them, then grows.

    Raises:
        ConfigError: no rows. DataError: as `reliability_diagram`, naming the series.
    """
    if not rows:
        raise ConfigError(
            "there is nothing to compare", where="rows", expected="at least one name with its rows"
        )
    columns = min(columns, len(rows))
    lines = -(-len(rows) // columns)
    with rc_context(STYLE):
        size = (WIDTH * max(1.0, columns / 2), lines * (WIDTH / max(columns, 2) + 0.1) + 0.4)
        figure = Figure(figsize=size if columns > 1 else (WIDTH, WIDTH), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for i, (name, (confidence, correct)) in enumerate(rows.items()):
            _require_rows(confidence, f"{path} ({name})")
            axes = grid[i // columns][i % columns]
            _diagonal(axes)
            points = _points(confidence, correct, n_bins, n_resamples, level, seed, None)
            _draw_points(
                axes, points, PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], gaps=False
            )
            metrics = calibration_metrics(confidence, correct, n_bins=n_bins, missing=Missing.drop)
            axes.set_title(name, fontsize=8)
            note = (
                f"n = {metrics['n_parsed']:,}\nECE {metrics['ece']:.2f}\nOCG {metrics['ocg']:+.2f}"
            )
            axes.text(0.03, 0.98, note, va="top", transform=axes.transAxes, bbox=NOTE_BOX, zorder=4)
            axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.06))
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        for axes in grid.flat[len(rows) :]:
            axes.set_visible(False)
            grid[lines - 2][-1].tick_params(labelbottom=True)
        figure.supxlabel(readout, fontsize=8)
        figure.supylabel("Accuracy", fontsize=8)
        if title:
            figure.suptitle(title, fontsize=9)
        return save(figure, path)


Point = tuple[
    float, float, float, float, int
]  # mean confidence, accuracy, interval's low and high end, rows


def _points(
    confidence: Confidences,
    correct: Outcomes,
    n_bins: int,
    n_resamples: int,
    level: float,
    seed: int,
    groups: Sequence[Hashable] | None,
) -> list[Point]:
    values, outcomes = _parsed(confidence, correct)
    mask = np.array([c is not None for c in confidence], dtype=np.bool_)
    clusters = cluster_index(groups, len(confidence))[mask]
    index = bin_index(values, n_bins)
    points = []
    for i, cell in enumerate(reliability_bins(confidence, correct, n_bins=n_bins)):
        if cell.acc is None or cell.mean_conf is None:
            continue
        inside = index == i
        low, high = mean_interval(
            outcomes[inside], clusters[inside], n_resamples=n_resamples, level=level, seed=seed
        )
        points.append((cell.mean_conf, cell.acc, min(low, cell.acc), max(high, cell.acc), cell.n))
    return points


def _draw_points(axes: Axes, points: list[Point], colour: str, marker: str, *, gaps: bool) -> None:
    x, y, low, high, n = (
        np.array(column, dtype=np.float64) for column in zip(*points, strict=True)
    )
    if gaps:
        axes.vlines(x, y, x, color=PALETTE[1], lw=5, alpha=0.30, zorder=1.5)
        axes.text(
            0.98,
            0.02,
            "overconfident",
            ha="right",
            color=GREY,
            transform=axes.get_xaxis_transform(),
        )
    axes.errorbar(
        x,
        y,
        yerr=(y - low, high - y),
        fmt="none",
        ecolor=colour,
        elinewidth=1.0,
        capsize=2,
        zorder=2,
    )
    axes.plot(x, y, color=colour, lw=0.8, alpha=0.6, zorder=2)
    axes.scatter(
        x,
        y,
        s=10 + 50 * n / n.max(),
        color=colour,
        marker=marker,
        edgecolor="white",
        linewidth=0.5,
        zorder=3,
    )


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.fill_between(
        [0, 1], [0, 1], color=LIGHT, alpha=0.45, lw=0, zorder=0
    )  # overconfident: accuracy below


def _count_bars(axes: Axes, confidence: Confidences, n_bins: int) -> None:
    values = np.array([c for c in confidence if c is not None], dtype=np.float64)
    counts = np.bincount(bin_index(values, n_bins), minlength=n_bins)
    centres = (np.arange(n_bins) + 0.5) / n_bins
    axes.bar(centres, counts, 0.92 / n_bins, color=PALETTE[5])
    if n_bins <= 12:
        for centre, count in zip(centres, counts, strict=True):
            if count:
                axes.annotate(
                    f"{count:,}",
                    (centre, count),
                    (0, 1),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                )
    axes.set_ylim(0, counts.max() * 1.25)
    axes.set_ylabel("Responses")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))


def _summary(confidence: Confidences, correct: Outcomes, n_bins: int) -> str:
    metrics = calibration_metrics(confidence, correct, n_bins=n_bins, missing=Missing.drop)
    missing = len(confidence) - int(metrics["n_parsed"] or 0)
    parts = [f"n = {metrics['n_parsed']:,}" + (f" (+ {missing:,} unparsed)" if missing else "")]
    parts += [
        f"ECE {metrics['ece']:.3f}",
        f"Brier {metrics['brier']:.3f}",
        f"OCG {metrics['ocg']:+.3f}",
    ]
    return "\n".join(parts)


def _parsed(confidence: Confidences, correct: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(c, bool(y)) for c, y in zip(confidence, correct, strict=True) if c is not None]
    return np.array([c for c, _ in pairs], dtype=np.float64), np.array(
        [y for _, y in pairs], dtype=np.bool_
    )


def _require_rows(confidence: Confidences, path: str | Path) -> None:
    if all(c is None for c in confidence):
        raise DataError(
            f"none of the {len(confidence)} rows carries a confidence: there is nothing to draw",
            where=str(path),
        )
