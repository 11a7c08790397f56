"""A finished evaluation, loaded from its folder: for plots and reports."""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caopd_verl.errors import DataError
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.metrics.summary import Columns, load_columns
from caopd_verl.evaluation.rows.store import ROWS, iter_rows

METRICS = "metrics.json"
MAX_TEXT = 3000


@dataclass
class Result:
    """Rows and metrics of one `caopd eval` run."""

    name: str
    folder: Path
    columns: Columns
    metrics: dict[str, Any]

    def estimate(self, readout: str, metric: str) -> Estimate:
        """One figure of `metrics.json`."""
        return Estimate(**{"reason": None, **self.metrics["readouts"][readout]["metrics"][metric]})


def load_results(folders: list[Path]) -> list[Result]:
    """The results of `folders`, with names that differ.

    Raises:
        DataError: a folder without `metrics.json` or rows.
    """
    results: list[Result] = []
    for folder in folders:
        path = folder / METRICS
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"there are no metrics ({type(error).__name__})",
                where=str(path),
                expected="the folder of a caopd eval run",
            ) from None
        if "readouts" not in metrics:
            raise DataError("the run has no finished rows", where=str(path))
        name = str(metrics.get("name") or folder.name)
        name = Path(name).name or name
        if any(result.name == name for result in results):
            name = f"{name} ({folder.name})"
        results.append(Result(name, folder, load_columns(folder), metrics))
    return results


def examples(folder: Path, *, n: int) -> dict[str, list[dict[str, Any]]]:
    """Rows worth reading, `n` of each kind, texts shortened; one pass, only those rows are kept.

    Kinds: wrong and most confident, correct and least confident, without a confidence.
    """
    wrong: list[tuple[float, int, dict[str, Any]]] = []
    unsure: list[tuple[float, int, dict[str, Any]]] = []
    unparsed: list[dict[str, Any]] = []
    for i, row in enumerate(iter_rows(folder / ROWS)):
        value = row.get("confidence")
        if value is None:
            if len(unparsed) < n:
                unparsed.append(_shortened(row))
        elif row["correct"]:
            _keep(unsure, (-value, -i, row), n)
        else:
            _keep(wrong, (value, -i, row), n)
    return {
        "Confidently wrong": [row for _, _, row in sorted(wrong, key=lambda e: (-e[0], -e[1]))],
        "Correct, least confident": [
            row for _, _, row in sorted(unsure, key=lambda e: (-e[0], -e[1]))
        ],
        "Without a readable confidence": unparsed,
    }


def _keep(
    heap: list[tuple[float, int, dict[str, Any]]], entry: tuple[float, int, dict[str, Any]], n: int
) -> None:
    if len(heap) == n and entry[:2] <= heap[0][:2]:
        return
    entry = (*entry[:2], _shortened(entry[2]))
    if len(heap) < n:
        heapq.heappush(heap, entry)
    else:
        heapq.heapreplace(heap, entry)


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with long texts cut in the middle, so that answer and confidence stay."""
    out = dict(row)
    for key in ("prompt", "response"):
        text = out.get(key)
        if isinstance(text, str) and len(text) > MAX_TEXT:
            half = MAX_TEXT // 2
            out[key] = (
                f"{text[:half]}\n[... {len(text) - MAX_TEXT:,} characters ...]\n{text[-half:]}"
            )
    return out
