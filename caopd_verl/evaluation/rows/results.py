"""A run loaded from its folder, for plots, reports and cards: an evaluation or a training run."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caopd_verl.data.json_rows import read_json_lines
from caopd_verl.errors import DataError
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.metrics.columns import Columns, load_columns
from caopd_verl.evaluation.metrics.run_metrics import head_of, metrics_of_run
from caopd_verl.evaluation.rows.row import Row
from caopd_verl.evaluation.rows.store import iter_rows, read_settings, rows_path
from caopd_verl.evaluation.settings import Summary
from caopd_verl.run_files import METRICS, SAMPLES, VALIDATION, step_files

MAX_TEXT = 3000  # characters of a prompt or response that a page shows
# Responses of reasoning models have tens of thousands of characters, and a page shows dozens.
LONG_TEXTS = ("prompt", "response", "revised", "teacher_prompt")


@dataclass
class Result:
    """Rows and metrics of one run.

    Attributes:
        name: for plots and reports.
        folder: of the run.
        rows: the file that its rows are in.
        columns: the rows, without their texts.
        metrics: as `metrics.json` has them.
    """

    name: str
    folder: Path
    rows: Path
    columns: Columns
    metrics: dict[str, Any]

    def estimate(self, readout: str, metric: str) -> Estimate:
        """One figure of the metrics."""
        figure = self.metrics["readouts"][readout]["metrics"][metric]
        return Estimate(**{"reason": None, **figure})


def load_results(folders: Sequence[Path], settings: Summary) -> list[Result]:
    """The runs in `folders`, with names that differ.

    Args:
        folders: of evaluations and training runs.
        settings: what metrics are computed with where a run's `metrics.json` is not, or no longer,
            about its rows: the run goes on, was killed, or has validated since.

    Raises:
        DataError: a folder without rows, a broken row, or a `metrics.json` that is no JSON.
    """
    results: list[Result] = []
    for folder in folders:
        result = _load(folder, settings)
        if any(other.name == result.name for other in results):
            result.name = f"{result.name} ({folder})"
        results.append(result)
    return results


def run_name(folder: Path) -> str:
    """What plots and reports call a run: the last part of its name, or of its folder's.

    Raises:
        DataError: its `metrics.json` is no JSON.
    """
    folder_name = folder.resolve().name
    # A checkpoint's name is its path or its hub id: the last part is what tells runs apart.
    name = Path(str(_written_metrics(folder).get("name") or folder_name)).name
    return name or folder_name


def _load(folder: Path, settings: Summary) -> Result:
    rows = rows_path(folder)
    columns = load_columns(rows)
    name = run_name(folder)
    step = _step_of(rows)
    metrics = _written_metrics(folder)
    of_as_many_rows = metrics.get("n_rows") == len(columns.ids)
    of_this_step = metrics.get("step") == step
    if not (of_as_many_rows and of_this_step):
        run = metrics.get("run") or read_settings(folder)
        # `run.json` of a training run names its settings by config keys; good enough until the
        # run has written its own report.
        head = head_of(name, run, step=step)
        metrics = metrics_of_run(columns, folder, head, settings)
    return Result(name, folder, rows, columns, metrics)


def _step_of(rows: Path) -> int | None:
    """The training step of a validation's rows; None for an evaluation's."""
    if rows.parent.name != VALIDATION:
        return None
    for step, path in step_files(rows.parent).items():
        if path == rows:
            return step
    return None


def _written_metrics(folder: Path) -> dict[str, Any]:
    path = folder / METRICS
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"the metrics are no JSON ({error})",
            where=str(path),
            fix="remove the file: the metrics are computed anew from the rows",
        ) from None


# ---------------------------------------------------------------------- rows worth reading


@dataclass
class _Extreme:
    """The `n` rows with the largest keys of all that were offered, texts shortened.

    Only those are kept: a run's rows may be larger than memory.
    """

    n: int
    kept: list[tuple[float, int, Row]] = field(default_factory=list)

    def offer(self, key: float, place: int, row: Row) -> None:
        """Of rows with equal keys the one that comes first in the file stays."""
        # A heap: its first entry is the smallest of those kept, the one to give way.
        full = len(self.kept) == self.n
        if full and (not self.n or (key, -place) <= self.kept[0][:2]):
            return
        entry = (key, -place, _shortened(row))
        if full:
            heapq.heapreplace(self.kept, entry)
        else:
            heapq.heappush(self.kept, entry)

    def rows(self) -> list[Row]:
        """The largest key first."""
        ordered = sorted(self.kept, key=lambda entry: entry[:2], reverse=True)
        return [row for _, _, row in ordered]


def examples(rows: Path, *, n: int) -> dict[str, list[Row]]:
    """Rows worth reading, `n` of each kind, long texts shortened; one pass over the file.

    Kinds: wrong and most confident, correct and least confident, without a confidence.
    """
    wrong, unsure = _Extreme(n), _Extreme(n)
    unread: list[Row] = []
    for place, row in enumerate(iter_rows(rows)):
        confidence = row.get("confidence")
        if confidence is None:
            if len(unread) < n:
                unread.append(_shortened(row))
        elif row["correct"]:
            unsure.offer(-confidence, place, row)
        else:
            wrong.offer(confidence, place, row)
    return {
        "Confidently wrong": wrong.rows(),
        "Correct, least confident": unsure.rows(),
        "Without a readable confidence": unread,
    }


def training_samples(folder: Path, *, n: int) -> list[dict[str, Any]]:
    """A training run's newest sampled rollouts, at most `n`, long texts shortened.

    Empty where the run wrote none. Raises `DataError` for a broken line, naming `file:line`.
    """
    files = step_files(folder / SAMPLES)
    if not files:
        return []
    newest = files[max(files)]
    return [_shortened(sample) for sample in _first(n, newest)]


def _first(n: int, path: Path) -> Iterator[dict[str, Any]]:
    for place, (_, sample) in enumerate(read_json_lines(path)):
        if place >= n:
            return
        yield sample


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with long texts cut in the middle, so that answer and confidence stay."""
    out = dict(row)
    for key in LONG_TEXTS:
        text = out.get(key)
        if isinstance(text, str) and len(text) > MAX_TEXT:
            half = MAX_TEXT // 2
            cut = f"[... {len(text) - MAX_TEXT:,} characters ...]"
            head, tail = text[:half], text[-half:]
            out[key] = f"{head}\n{cut}\n{tail}"
    return out
