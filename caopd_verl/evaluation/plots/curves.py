"""Metrics over training steps, from a run's JSONL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from caopd_verl.errors import ConfigError, DataError
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

History = dict[str, dict[int, float]]
"""Metric -> training step -> value."""

_FEW_POINTS = 12  # so many are marked; more would hide the line
_SHOWN_NAMES = 40  # in the message about a metric that is not there


def training_curves(
    metrics_jsonl: str | Path,
    path: str | Path,
    *,
    panels: Mapping[str, Sequence[str]],
    title: str | None = None,
) -> Path:
    """Metrics over training steps, one panel under the other.

    Args:
        metrics_jsonl: one JSON object a line, `{"step": 3, "loss/total": 0.5, ...}` or, as verl's
            file logger writes, `{"step": 3, "data": {...}}`. A metric may be absent or null in some
            rows; of rows with one step the last one that holds the metric counts (a resumed run
            repeats steps).
        path: file to write.
        panels: panel title -> metric names drawn in it.
        title: of the figure.

    Raises:
        DataError: a line is no JSON object or has no integer `step`, naming `file:line`; the file
            can't be read; or a metric occurs in no row.
        ConfigError: no panels.
    """
    if not panels or not all(panels.values()):
        raise ConfigError(
            "there is nothing to draw",
            where="panels",
            expected="titles with at least one metric each",
        )
    history = _history(metrics_jsonl)
    _check_metrics(panels, history, metrics_jsonl)
    with rc_context(STYLE):
        height = 0.3 + 1.45 * len(panels)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, metrics) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, name, {metric: history[metric] for metric in metrics})
        grid[-1].set_xlabel("Training step")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if title:
            figure.suptitle(title, fontsize=9)
        return save(figure, path)


def _draw_panel(axes: Axes, name: str, metrics: History) -> None:
    for i, (metric, values) in enumerate(metrics.items()):
        place = i % len(PALETTE)
        steps = sorted(values)
        axes.plot(
            steps,
            [values[step] for step in steps],
            label=metric,
            color=PALETTE[place],
            ls=LINES[place],
            lw=1.1,
            marker=MARKERS[place] if len(steps) <= _FEW_POINTS else None,
            ms=3,
        )
    axes.set_title(name, loc="left")
    axes.grid(axis="y", color=LIGHT, lw=0.5)
    low, high = axes.get_ylim()
    if low < 0.0 < high:
        axes.axhline(0.0, color=GREY, lw=0.6, zorder=0)
    axes.legend(frameon=False, loc="best", handlelength=2.2)


def _check_metrics(panels: Mapping[str, Sequence[str]], history: History, path: str | Path) -> None:
    for metrics in panels.values():
        for metric in metrics:
            if metric not in history:
                known = sorted(history)[:_SHOWN_NAMES]
                raise DataError(
                    f"no row holds the metric {metric!r}",
                    where=str(path),
                    expected="one of " + ", ".join(known),
                )


def _history(path: str | Path) -> History:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the file can't be read ({error.strerror})", where=str(path)) from None
    history: History = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            step, metrics = _read_line(line)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"the line is no metrics row ({error})",
                where=f"{path}:{number}",
                expected='{"step": 3, "name": 0.5}',
            ) from None
        # By step, so that of a step that a resumed run repeats the later line counts.
        for metric, value in metrics.items():
            history.setdefault(metric, {})[step] = value
    return history


def _read_line(line: str) -> tuple[int, dict[str, float]]:
    """The step and the metrics of a line; raises whatever a line of another form leads to."""
    row = json.loads(line)
    step, data = row["step"], row.get("data", row)
    if not isinstance(step, int) or isinstance(step, bool) or not isinstance(data, dict):
        raise TypeError("no integer 'step'")
    metrics = {}
    for name, value in data.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name != "step" and is_number:
            metrics[name] = float(value)
    return step, metrics
