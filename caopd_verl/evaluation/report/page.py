"""`caopd report`: one self-contained HTML page with the figures, the plots and rows worth reading.

Everything is inside the file (plots as SVG data), nothing is loaded from elsewhere, and every text
of a model or data set is escaped. A training run's page also shows a few of its sampled rollouts:
what was sampled, what it was revised to, what the teacher was shown.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.compare import Comparison
from caopd_verl.evaluation.metrics.summary import POSTHOC_METRICS, compare_columns
from caopd_verl.evaluation.plots.draw import draw_comparison, draw_result
from caopd_verl.evaluation.readouts.names import COMPARED_READOUTS
from caopd_verl.evaluation.report.console import (
    SHOWN,
    compat_text,
    counts_text,
    difference_text,
    label_of,
    number,
    plain,
)
from caopd_verl.evaluation.rows.results import Result, examples, training_samples
from caopd_verl.evaluation.rows.row import Row
from caopd_verl.evaluation.settings import Summary

TEMPLATE = "report.html.j2"
OVERVIEW = ("acc", "mean_conf", "ocg", "ece", "brier", "spr", "auroc", "format_adherence")
PARSED_ONLY = ("ocg", "ece", "brier", "spr", "auroc")
# What is shown in full, below the one line that holds the other fields.
EXAMPLE_TEXTS = ("prompt", "response")
SAMPLE_TEXTS = ("prompt", "response", "revised", "teacher_prompt")


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
    if not results:
        raise ConfigError(
            "there is nothing to report", where="caopd report", expected="at least one result"
        )
    sections, overview = _drawn(results, n_examples)
    page = _template().render(
        title=title,
        sections=sections,
        overview=overview,
        table=_models_table(results),
        comparisons=list(_comparisons(results, settings)),
        labels=SHOWN,
        parsed_only=PARSED_ONLY,
        posthoc_metrics=POSTHOC_METRICS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # StrictUndefined: a misspelt name in the template is an error, not an empty cell
    assets = files("caopd_verl") / "assets"
    environment = Environment(
        loader=FileSystemLoader(str(assets)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    environment.filters["spaced"] = _spaced
    return environment.get_template(TEMPLATE)


def _drawn(
    results: Sequence[Result], n_examples: int
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """A section for each result, and the plots over several of them."""
    # matplotlib draws into files; the page holds what is in them
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sections = []
        for place, result in enumerate(results):
            sections.append(_section(result, folder / str(place), n_examples))
        overview = []
        if len(results) > 1:
            overview = list(_overview(results, folder / "all"))
    return sections, overview


def _section(result: Result, folder: Path, n_examples: int) -> dict[str, Any]:
    metrics = result.metrics
    sampled = training_samples(result.folder, n=n_examples)
    section: dict[str, Any] = {
        "name": result.name,
        "metrics": metrics,
        "counts": counts_text(metrics["counts"]),
        "plots": _plots(result, folder),
        "posthoc": list(_posthoc(metrics["posthoc"])),
    }
    section["cells"] = {metric: _cells(metrics["readouts"], metric) for metric in SHOWN}
    section["compat"] = compat_text(metrics["compat"]) if "compat" in metrics else None
    section["examples"] = _examples(result, n_examples)
    section["samples"] = [_sample(row) for row in sampled]
    return section


def _examples(result: Result, n_examples: int) -> dict[str, list[dict[str, Any]]]:
    shown = {}
    for kind, rows in examples(result.rows, n=n_examples).items():
        shown[kind] = [_example(row) for row in rows]
    return shown


def _example(row: Row) -> dict[str, Any]:
    stated, expected = row["confidence"], row["expected_confidence"]
    answer = row["reason"] if row["answer"] is None else row["answer"]
    title = f"{row['id']}, sample {row['sample']}: stated "
    title += row["confidence_status"] if stated is None else str(stated)
    if expected is not None:
        title += f", expected {expected:.2f}"
    title += f"; answer {answer}, gold {row['gold']}"
    return {"title": title, "texts": _texts(row, EXAMPLE_TEXTS), "labelled": False}


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sampled rollout; fields that are not there are left out."""
    parts = []
    for name, value in sample.items():
        if value is not None and name not in SAMPLE_TEXTS:
            parts.append(f"{_spaced(name)} {value}")
    texts = _texts(sample, SAMPLE_TEXTS)
    return {"title": ", ".join(parts), "texts": texts, "labelled": True}


def _texts(row: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, row[name]) for name in names if row.get(name)]


def _cells(readouts: Mapping[str, Any], metric: str) -> dict[str, str]:
    cells = {}
    for name, readout in readouts.items():
        cells[name] = number(readout["metrics"][metric], metric)
    return cells


def _plots(result: Result, folder: Path) -> dict[str, str]:
    """Plot name -> data URI."""
    plots = {}
    for name, path in draw_result(result, folder, formats=("svg",)).items():
        if not name.startswith("bars_"):  # the reliability diagram shows the same, with intervals
            plots[name] = _data_uri(path)
    return plots


def _posthoc(posthoc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for method, figures in posthoc["methods"].items():
        if "reason" in figures:  # it could not be fitted
            yield {"method": method, "reason": figures["reason"], "cells": []}
        else:
            cells = [number(figure, metric) for metric, figure in figures.items()]
            yield {"method": method, "reason": None, "cells": cells}


def _overview(results: Sequence[Result], folder: Path) -> Iterator[tuple[str, str]]:
    """Caption and data URI of each plot over the results."""
    for readout in COMPARED_READOUTS:
        plots = draw_comparison(results, folder, formats=("svg",), readout=readout)
        for name, path in plots.items():
            yield f"{_spaced(name)}, {readout} confidence", _data_uri(path)


def _models_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    rows = []
    for result in results:
        for readout in COMPARED_READOUTS:
            if readout not in result.metrics["readouts"]:
                continue
            figures = result.metrics["readouts"][readout]["metrics"]
            cells = {metric: number(figures[metric], metric) for metric in OVERVIEW}
            row = {"name": result.name, "readout": readout, "n": result.metrics["n_rows"]}
            rows.append({**row, "cells": cells})
    return rows


def _comparisons(results: Sequence[Result], settings: Summary) -> Iterator[dict[str, Any]]:
    """Each further result against the first, then each one's expected readout against stated."""
    first = results[0]
    for result in results[1:]:
        yield _comparison(first, "stated", result, "stated", settings)
    for result in results:
        if "expected" in result.columns.present():
            yield _comparison(result, "stated", result, "expected", settings)


def _comparison(
    old: Result, old_readout: str, new: Result, new_readout: str, settings: Summary
) -> dict[str, Any]:
    # A page may hold results of several tasks: no error, as it is for `caopd compare`.
    if not set(old.columns.ids) & set(new.columns.ids):
        title = f"{new.name} and {old.name} have no question in common"
        return {"title": title, "rows": []}
    old_column = old.columns.column(old_readout)
    new_column = new.columns.column(new_readout)
    found = compare_columns(old_column, new_column, settings)
    title = f"{new.name}, {new_readout}, against {old.name}, {old_readout}"
    return {
        "title": f"{title} ({found.n_questions} common questions)",
        "rows": list(_difference_rows(found)),
    }


def _difference_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    for metric, found in comparison.metrics.items():
        yield {
            "label": _spaced(label_of(metric)),
            "old": plain(found.old),
            "new": plain(found.new),
            "difference": difference_text(found),
            "verdict": found.verdict or "",
        }


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _data_uri(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f"data:image/svg+xml;base64,{encoded}"
