"""Which confidences a model states, for its correct and its wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from caopd_verl.config import Missing
from caopd_verl.evaluation.metrics.formulas import bin_index
from caopd_verl.evaluation.metrics.inputs import read_rows
from caopd_verl.evaluation.plots.style import PALETTE, STYLE, WIDTH, require_rows, save

_BINS = 20  # finer than the ECE's ten: round numbers such as 0.95 stand out


def confidence_histogram(
    confidence: Sequence[float | None],
    correct: Sequence[bool],
    path: str | Path,
    *,
    title: str,
    readout: str,
) -> Path:
    """Histogram of the confidences, correct and wrong answers stacked.

    Mean confidence and accuracy are marked. Rows without a confidence are left out and counted in
    the title line.

    Args:
        confidence, correct: rows, as for `calibration_metrics`.
        path: file to write.
        title: of the figure.
        readout: what the confidences are, for the axis.

    Raises:
        DataError: as `calibration_metrics`, and where no row carries a confidence.
    """
    rows = read_rows(confidence, correct).scored(Missing.drop)
    require_rows(len(rows.places), len(confidence), path)
    values, outcomes = rows.confidence, rows.correct
    index = bin_index(values, _BINS)
    right = np.bincount(index[outcomes], minlength=_BINS)
    wrong = np.bincount(index[~outcomes], minlength=_BINS)
    mean, accuracy = float(values.mean()), float(outcomes.mean())
    n = len(confidence)
    missing = n - len(values)
    counts = f"n = {n:,}"
    if missing:
        counts += f", {missing:,} without a confidence"
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        edges, width = np.arange(_BINS) / _BINS, 0.92 / _BINS
        correct_label = f"correct ({right.sum():,})"
        axes.bar(edges, right, width, align="edge", color=PALETTE[0], label=correct_label)
        axes.bar(
            edges,
            wrong,
            width,
            align="edge",
            bottom=right,
            color=PALETTE[4],
            hatch="////",
            edgecolor="white",
            linewidth=0,
            label=f"wrong ({wrong.sum():,})",
        )
        axes.axvline(mean, color="black", lw=1.2, label=f"mean confidence {mean:.2f}")
        axes.axvline(accuracy, color="black", lw=1.2, ls=":", label=f"accuracy {accuracy:.2f}")
        axes.set(xlim=(-0.02, 1.02), xlabel=readout, ylabel="Responses")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_title(f"{title}\n{counts}")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return save(figure, path)
