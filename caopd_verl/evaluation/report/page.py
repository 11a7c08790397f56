"""`caopd report`: one self-contained HTML page with the figures, the plots and rows worth reading.

Everything is inside the file (plots as SVG data), nothing is loaded from elsewhere, and every text of a model or data
set is escaped.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.compare import Comparison, compare
from caopd_verl.evaluation.plots.draw import READOUTS, draw_comparison, draw_result
from caopd_verl.evaluation.report.console import SHOWN, counts_text, number
from caopd_verl.evaluation.rows.results import Result, examples
from caopd_verl.evaluation.settings import Summary

TEMPLATE = "report.html.j2"


def write_report(
    results: Sequence[Result], path: Path, *, title: str, n_examples: int, settings: Summary
) -> Path:
    """Write the page; returns its path.

    Args:
        results: in the order of the page; each further one is compared with the first.
        path: of the HTML file; folders are made.
        title: of the page.
        n_examples: rows of each kind that are shown.
        settings: of the comparisons.

    Raises:
        ConfigError: no results.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not results:
        raise ConfigError(
            "there is nothing to report", where="caopd report", expected="at least one result"
        )
    folder = str(files("caopd_verl") / "assets")
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        sections = [
            _section(result, Path(folder) / str(i), n_examples) for i, result in enumerate(results)
        ]
        overview = _overview(results, Path(folder) / "all") if len(results) > 1 else []
    page = environment.get_template(TEMPLATE).render(
        title=title,
        sections=sections,
        overview=overview,
        table=_models_table(results),
        comparisons=_comparisons(results, settings),
        labels=SHOWN,
        readouts=READOUTS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _section(result: Result, folder: Path, n_examples: int) -> dict[str, Any]:
    plots = draw_result(result, folder, formats=("svg",))
    metrics = result.metrics
    return {
        "name": result.name,
        "metrics": metrics,
        "counts": counts_text(metrics["counts"]),
        "cells": {
            metric: {
                name: number(r["metrics"][metric], metric)
                for name, r in metrics["readouts"].items()
            }
            for metric in SHOWN
        },
        "plots": {
            name: _data_uri(path) for name, path in plots.items() if not name.startswith("bars_")
        },
        "examples": examples(result.folder, n=n_examples),
        "posthoc": _posthoc(metrics["posthoc"]),
    }


def _posthoc(posthoc: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for method, figures in posthoc["methods"].items():
        if "reason" in figures and "ece" not in figures:
            rows.append({"method": method, "reason": figures["reason"], "cells": {}})
        else:
            rows.append(
                {
                    "method": method,
                    "reason": None,
                    "cells": {k: number(v, k) for k, v in figures.items()},
                }
            )
    return rows


def _overview(results: Sequence[Result], folder: Path) -> list[tuple[str, str]]:
    out = []
    for readout in ("stated", "expected"):
        for name, path in draw_comparison(
            results, folder, formats=("svg",), readout=readout
        ).items():
            out.append((f"{name.replace('_', ' ')}, {readout} confidence", _data_uri(path)))
    return out


def _models_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    keys = ("acc", "mean_conf", "ocg", "ece", "brier", "spr", "auroc", "format_adherence")
    return [
        {
            "name": result.name,
            "readout": readout,
            "n": result.metrics["n_rows"],
            "cells": {key: number(figures["metrics"][key], key) for key in keys},
        }
        for result in results
        for readout, figures in result.metrics["readouts"].items()
        if readout in ("stated", "expected")
    ]


def _comparisons(results: Sequence[Result], settings: Summary) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    pairs = [(results[0], "stated", r, "stated") for r in results[1:]]
    pairs += [(r, "stated", r, "expected") for r in results if "expected" in r.columns.present()]
    for old, old_readout, new, new_readout in pairs:
        if not set(old.columns.ids) & set(new.columns.ids):
            out.append(
                {"title": f"{new.name} and {old.name} have no question in common", "rows": []}
            )
            continue
        result = compare(
            old.columns.column(old_readout), new.columns.column(new_readout), n_bins=settings.n_bins,
            missing=settings.missing, n_resamples=settings.n_resamples, level=settings.level, seed=settings.seed,
        )  # fmt: skip
        title = f"{new.name}, {new_readout}, against {old.name}, {old_readout}"
        out.append(
            {
                "title": f"{title} ({result.n_questions} common questions)",
                "rows": _difference_rows(result),
            }
        )
    return out


def _difference_rows(result: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "label": SHOWN.get(name, "|OCG|" if name == "abs_ocg" else name.replace("_", " ")),
            "old": "undefined" if d.old is None else f"{d.old:.3f}",
            "new": "undefined" if d.new is None else f"{d.new:.3f}",
            "difference": "undefined"
            if d.difference is None
            else f"{d.difference:+.3f}"
            + ("" if d.low is None else f" [{d.low:+.3f}, {d.high:+.3f}]"),
            "verdict": d.verdict or "",
        }
        for name, d in result.metrics.items()
    ]


def _data_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
