"""A few rows of each file task, and copies of them with something changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from caopd_verl.data import load_task
from caopd_verl.types import Example

ROWS = Path(__file__).parent / "rows"
SCIENCE, TOOL, OWN = "sciknoweval", "toolalpaca", "jsonl"
FILES = {
    SCIENCE: ROWS / "sciknoweval.json",
    TOOL: ROWS / "tooluse.json",
    OWN: ROWS / "own.jsonl",
}
EVALUATION_FILE = ROWS / "toolalpaca_eval.json"


def load(name: str, path: Path | None, **options: Any) -> list[Example]:
    """All examples of a file."""
    return load_task(name, path=path, seed=0, n=None, split="test", **options)


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows as they stand in the file."""
    return [json.loads(line) for line in FILES[name].read_text().splitlines()]


def edited(folder: Path, name: str, line: int, **changes: Any) -> Path:
    """A copy of a task's rows with keys of one line changed; `...` as value removes the key."""
    rows = read_rows(name)
    row = rows[line - 1]
    row.update(changes)
    for key in [key for key, value in row.items() if value is ...]:
        del row[key]
    path = folder / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
