"""Risk-coverage: how many of the answers are wrong if only the most confident are given."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caopd_verl.config import Missing
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.bootstrap import (
    cluster_index,
    cluster_weights,
    percentile_interval,
)
from caopd_verl.evaluation.metrics.formulas import Table, accuracy_at
from caopd_verl.evaluation.metrics.inputs import FloatArray, read_rows
from caopd_verl.evaluation.plots.style import (
    LEVEL,
    LIGHT,
    LINES,
    PALETTE,
    SEED,
    STYLE,
    WIDTH,
    save,
)

Confidences = Sequence["float | None"]
Series = tuple[Confidences, Sequence[bool], "Sequence[Hashable] | None"]
"""For each row its confidence, verdict and question (None: every row is one of its own)."""

_GRID = np.linspace(0.02, 1.0, 50)  # coverages; below 2 % a handful of rows decide
_RESAMPLES = 300  # fewer than for figures: a band's edge is read to a line's width


def risk_coverage(
    series: Mapping[str, Series], path: str | Path, *, title: str | None = None
) -> Path:
    """Error rate among the most confident rows against the share that is answered.

    Ties count in expectation. Bands are bootstrap intervals over questions; a dotted line is the
    error rate without any selection.

    Args:
        series: name -> rows.
        path: file to write.
        title: of the figure.

    Raises:
        ConfigError: no series. DataError: a series without confidences, naming it.
    """
    if not series:
        raise ConfigError(
            "there is nothing to draw", where="series", expected="at least one name with its rows"
        )
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        for i, (name, rows) in enumerate(series.items()):
            risks = _risks(rows)
            if risks is None:
                raise DataError(f"{name} has no confidences to draw", where=str(path))
            _draw_curve(axes, i, name, *risks)
        axes.set(xlim=(0, 1), ylim=(0, None))
        axes.set(xlabel="Coverage (most confident first)", ylabel="Error rate")
        if title:
            axes.set_title(title)
        axes.legend(frameon=False, loc="best", handlelength=2.6)
        return save(figure, path)


def _risks(rows: Series) -> tuple[FloatArray, FloatArray] | None:
    """Error rates at `_GRID`, of the sample (shape [g]) and of resamples (shape [resamples, g])."""
    confidence, correct, groups = rows
    scored = read_rows(confidence, correct).scored(Missing.drop)
    if not len(scored.places):
        return None
    values, code = np.unique(scored.confidence, return_inverse=True)
    right = scored.correct.astype(np.float64)

    def risks(weights: FloatArray) -> FloatArray:
        total = np.bincount(code, weights=weights).astype(np.float64)
        hits = np.bincount(code, weights=weights * right).astype(np.float64)
        return 1.0 - accuracy_at(Table(values, total, hits), _GRID)

    own_clusters = cluster_index(groups, len(confidence))[scored.places]
    _, clusters = np.unique(own_clusters, return_inverse=True)
    n_clusters = int(clusters.max()) + 1
    # The same draws for every series, so that bands of one picture can be compared.
    rng = np.random.default_rng(SEED)
    resampled = []
    for _ in range(_RESAMPLES):
        weights = cluster_weights(rng, n_clusters)
        resampled.append(risks(weights[clusters]))
    return risks(np.ones(len(right))), np.array(resampled)


def _draw_curve(axes: Axes, i: int, name: str, curve: FloatArray, resampled: FloatArray) -> None:
    place = i % len(PALETTE)
    colour = PALETTE[place]
    low, high = percentile_interval(resampled, level=LEVEL)
    axes.fill_between(_GRID, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(_GRID, curve, color=colour, ls=LINES[place], lw=1.2, label=name)
    axes.axhline(curve[-1], color=colour, lw=0.6, ls=":")
    axes.grid(axis="y", color=LIGHT, lw=0.5)
