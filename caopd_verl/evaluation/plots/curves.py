"""Metrics over training steps, from a run's JSONL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
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


def training_curves(
    metrics_jsonl: str | Path,
    path: str | Path,
    *,
    panels: Mapping[str, Sequence[str]],
    title: str | None = None,
) -> Path:
    """Metrics over training steps, one panel under the other.

    Args:
        metrics_jsonl: one JSON object a line, `{"step": 3, "loss/total": 0.5, ...}` or, as verl's file logger writes,
            `{"step": 3, "data": {...}}`. A metric may be absent or null in some rows; of rows with one step the last
            one that holds the metric counts (a resumed run repeats steps).
        path: file to write.
        panels: panel title -> metric names drawn in it.

    Raises:
        DataError: a line is no JSON object or has no integer `step`, naming `file:line`; the file can't be read; or a
            metric occurs in no row.
        ConfigError: no panels.
    """
    if not panels or not all(panels.values()):
        raise ConfigError(
            "there is nothing to draw",
            where="panels",
            expected="titles with at least one metric each",
        )
    history = _history(metrics_jsonl)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 + 1.45 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, keys) in zip(grid, panels.items(), strict=True):
            for i, key in enumerate(keys):
                if key not in history:
                    raise DataError(
                        f"no row holds the metric {key!r}",
                        where=str(metrics_jsonl),
                        expected="one of " + ", ".join(sorted(history)[:40]),
                    )
                points = sorted(history[key].items())
                axes.plot(
                    *zip(*points, strict=True), label=key, color=PALETTE[i % 7], ls=LINES[i % 7], lw=1.1,
                    marker=MARKERS[i % 7] if len(points) <= 12 else None, ms=3,
                )  # fmt: skip
            axes.set_title(name, loc="left")
            axes.grid(axis="y", color=LIGHT, lw=0.5)
            low, high = axes.get_ylim()
            if low < 0.0 < high:
                axes.axhline(0.0, color=GREY, lw=0.6, zorder=0)
            axes.legend(frameon=False, loc="best", handlelength=2.2)
        grid[-1].set_xlabel("Training step")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if title:
            figure.suptitle(title, fontsize=9)
        return save(figure, path)


def _history(path: str | Path) -> dict[str, dict[int, float]]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the file can't be read ({error.strerror})", where=str(path)) from None
    history: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step, data = row["step"], row.get("data", row)
            if not isinstance(step, int) or isinstance(step, bool) or not isinstance(data, dict):
                raise TypeError("no integer 'step'")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"the line is no metrics row ({error})",
                where=f"{path}:{number}",
                expected='{"step": 3, "name": 0.5}',
            ) from None
        for key, value in data.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                history.setdefault(key, {})[step] = float(value)
    return history
