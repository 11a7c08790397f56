"""Reliability diagrams: accuracy against mean confidence, bin by bin."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from caopd_verl.config import Missing
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.bootstrap import cluster_index, mean_interval
from caopd_verl.evaluation.metrics.calibration import (
    Metrics,
    calibration_metrics,
    reliability_bins,
)
from caopd_verl.evaluation.metrics.formulas import bin_index
from caopd_verl.evaluation.metrics.inputs import FloatArray, read_rows
from caopd_verl.evaluation.plots.style import (
    DASHES,
    GREY,
    LEVEL,
    LIGHT,
    MARKERS,
    NOTE_BOX,
    PALETTE,
    SEED,
    STYLE,
    WIDTH,
    require_rows,
    save,
)

Confidences = Sequence["float | None"]
Outcomes = Sequence[bool]

_RESAMPLES = 1000
_COLUMNS = 2  # small diagrams side by side
_MOST_LABELLED_BINS = 12  # the numbers of more bins would run into each other


def reliability_diagram(
    confidence: Confidences,
    correct: Outcomes,
    path: str | Path,
    *,
    title: str,
    n_bins: int,
    readout: str,
    groups: Sequence[Hashable] | None = None,
) -> Path:
    """Accuracy against mean confidence for each bin, with the rows of each bin below.

    Markers stand at a bin's mean confidence and accuracy, their area grows with its rows; bars are
    bootstrap intervals of the accuracy over questions; coloured strokes show the gap to the
    diagonal. Rows without a confidence are left out and counted in the note, which also gives n,
    ECE, Brier and the overconfidence gap.

    Args:
        confidence, correct: rows, as for `calibration_metrics`.
        path: file to write; folders are made.
        title: of the diagram.
        n_bins: equal-width bins, as in the ECE.
        readout: what the confidences are, for the axis ("Stated confidence").
        groups: for each row its question, where a question was sampled more than once.

    Raises:
        DataError: as `calibration_metrics`, and where no row carries a confidence.
    """
    metrics = _metrics(confidence, correct, n_bins, path)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
        _draw_zones(axes)
        points = _points(confidence, correct, n_bins, groups)
        # Gaps first, so that markers and error bars lie above them.
        _draw_gaps(axes, points)
        _draw_points(axes, points, PALETTE[0], MARKERS[0])
        _draw_counts(below, confidence, n_bins)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), ylabel="Accuracy")
        below.set_xlabel(readout)
        axes.set_title(title)
        note = f"{_note(metrics)}\nbars: {LEVEL:.0%} bootstrap"
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


def compare_reliability(
    rows: Mapping[str, tuple[Confidences, Outcomes]],
    path: str | Path,
    *,
    n_bins: int,
    readout: str,
    title: str | None = None,
) -> Path:
    """One small reliability diagram for each name on common axes: no series hides another.

    Args:
        rows: name -> (confidence, correct), at least one.
        path, n_bins, readout: as in `reliability_diagram`.
        title: of the figure.

    Raises:
        ConfigError: no rows. DataError: as `reliability_diagram`, naming the series.
    """
    if not rows:
        raise ConfigError(
            "there is nothing to compare", where="rows", expected="at least one name with its rows"
        )
    columns = min(_COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    # One alone is as large as a diagram of its own.
    height = WIDTH if columns == 1 else 0.4 + lines * (WIDTH / 2 + 0.1)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for i, (name, (confidence, correct)) in enumerate(rows.items()):
            metrics = _metrics(confidence, correct, n_bins, f"{path} ({name})")
            points = _points(confidence, correct, n_bins, None)
            _draw_small(grid.flat[i], i, name, points, metrics)
        for axes in grid.flat[len(rows) :]:
            axes.set_visible(False)
            # The diagram above the hole is the lowest of its column, and needs the numbers.
            grid[lines - 2][-1].tick_params(labelbottom=True)
        figure.supxlabel(readout, fontsize=8)
        figure.supylabel("Accuracy", fontsize=8)
        if title:
            figure.suptitle(title, fontsize=9)
        return save(figure, path)


def _metrics(confidence: Confidences, correct: Outcomes, n_bins: int, path: str | Path) -> Metrics:
    """The figures of the rows that carry a confidence, of which there must be one."""
    metrics = calibration_metrics(confidence, correct, n_bins=n_bins, missing=Missing.drop)
    n_parsed = int(metrics["n_parsed"] or 0)
    require_rows(n_parsed, len(confidence), path)
    return metrics


def _draw_small(axes: Axes, i: int, name: str, points: list[_Point], metrics: Metrics) -> None:
    place = i % len(PALETTE)
    _draw_zones(axes)
    _draw_points(axes, points, PALETTE[place], MARKERS[place])
    axes.set_title(name, fontsize=8)
    figures = [f"n = {metrics['n_parsed']:,}"]
    figures += [f"ECE {metrics['ece']:.2f}", f"OCG {metrics['ocg']:+.2f}"]
    note = "\n".join(figures)
    axes.text(0.03, 0.98, note, va="top", transform=axes.transAxes, bbox=NOTE_BOX, zorder=4)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.06))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])


@dataclass(frozen=True)
class _Point:
    """One bin that holds rows; `low` and `high` are the interval of its accuracy."""

    mean_conf: float
    acc: float
    low: float
    high: float
    n: int


def _points(
    confidence: Confidences,
    correct: Outcomes,
    n_bins: int,
    groups: Sequence[Hashable] | None,
) -> list[_Point]:
    rows = read_rows(confidence, correct).scored(Missing.drop)
    clusters = cluster_index(groups, len(confidence))[rows.places]
    index = bin_index(rows.confidence, n_bins)
    points = []
    for i, cell in enumerate(reliability_bins(confidence, correct, n_bins=n_bins)):
        if cell.acc is None or cell.mean_conf is None:
            continue
        inside = index == i
        outcomes, own_clusters = rows.correct[inside], clusters[inside]
        low, high = mean_interval(
            outcomes, own_clusters, n_resamples=_RESAMPLES, level=LEVEL, seed=SEED
        )
        # Percentiles need not hold the value itself, and an error bar has to.
        low = min(low, cell.acc)
        high = max(high, cell.acc)
        points.append(_Point(cell.mean_conf, cell.acc, low, high, cell.n))
    return points


def _column(points: list[_Point], name: str) -> FloatArray:
    return np.array([getattr(point, name) for point in points], dtype=np.float64)


def _draw_gaps(axes: Axes, points: list[_Point]) -> None:
    conf, acc = _column(points, "mean_conf"), _column(points, "acc")
    axes.vlines(conf, acc, conf, color=PALETTE[1], lw=5, alpha=0.30, zorder=1.5)
    label_place = axes.get_xaxis_transform()
    axes.text(0.98, 0.02, "overconfident", ha="right", color=GREY, transform=label_place)


def _draw_points(axes: Axes, points: list[_Point], colour: str, marker: str) -> None:
    conf, acc = _column(points, "mean_conf"), _column(points, "acc")
    below = acc - _column(points, "low")
    above = _column(points, "high") - acc
    n = _column(points, "n")
    areas = 10 + 50 * n / n.max()  # the smallest stays visible
    axes.errorbar(
        conf,
        acc,
        yerr=(below, above),
        fmt="none",
        ecolor=colour,
        elinewidth=1.0,
        capsize=2,
        zorder=2,
    )
    axes.plot(conf, acc, color=colour, lw=0.8, alpha=0.6, zorder=2)
    axes.scatter(
        conf,
        acc,
        s=areas,
        color=colour,
        marker=marker,
        edgecolor="white",
        linewidth=0.5,
        zorder=3,
    )


def _draw_zones(axes: Axes) -> None:
    """The diagonal, and a shade where the accuracy is below the confidence."""
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=DASHES, zorder=1)
    axes.fill_between([0, 1], [0, 1], color=LIGHT, alpha=0.45, lw=0, zorder=0)


def _draw_counts(axes: Axes, confidence: Confidences, n_bins: int) -> None:
    values = np.array([value for value in confidence if value is not None], dtype=np.float64)
    counts = np.bincount(bin_index(values, n_bins), minlength=n_bins)
    centres = (np.arange(n_bins) + 0.5) / n_bins
    axes.bar(centres, counts, 0.92 / n_bins, color=PALETTE[5])
    labelled = counts if n_bins <= _MOST_LABELLED_BINS else ()
    for centre, count in zip(centres, labelled, strict=False):
        if count:
            axes.annotate(
                f"{count:,}",
                (centre, count),
                (0, 1),
                textcoords="offset points",
                ha="center",
                fontsize=6,
            )
    axes.set_ylim(0, counts.max() * 1.25)  # room for the numbers above the bars
    axes.set_ylabel("Responses")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))


def _note(metrics: Metrics) -> str:
    """The figures that stand in the diagram."""
    n_parsed = int(metrics["n_parsed"] or 0)
    missing = int(metrics["n"] or 0) - n_parsed
    rows = f"n = {n_parsed:,}"
    if missing:
        rows += f" (+ {missing:,} unparsed)"
    ece = f"ECE {metrics['ece']:.3f}"
    brier = f"Brier {metrics['brier']:.3f}"
    ocg = f"OCG {metrics['ocg']:+.3f}"
    return "\n".join([rows, ece, brier, ocg])
