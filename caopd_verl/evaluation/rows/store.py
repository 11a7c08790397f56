"""`rows.jsonl`: every finished row is on disk before the next is asked for, and no row twice.

A folder holds one run: `run.json` (the settings that a row depends on), `rows.jsonl` (one line for
each finished row, append only, synced to disk) and `failures.jsonl` (what went wrong with the
others, kept apart so that `rows.jsonl` has exactly one line for a key). A lock file that the
operating system frees when the process dies, however it dies, keeps a second writer out. A line
that a crash cut off can only be the last one; it is removed when the run is resumed, and its row
asked for again.

A training run's rows are in its folder too, one file for each validation: `rows_path` finds both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from caopd_verl.data.json_rows import read_json_lines
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.rows.row import Key, Row
from caopd_verl.run_files import (
    FAILURES,
    LOCK,
    ROWS,
    SETTINGS,
    VALIDATION,
    step_file,
    step_files,
)

_BLOCK = 1 << 20  # bytes that are read at once, in search of the last line break
OTHER_FOLDER = "choose another --output, or start over with --fresh"


class RowStore:
    """The rows of one run; use as a context manager.

    Args:
        folder: of the run; made if it does not exist.
        settings: what the rows depend on, JSON values. A folder that was begun with others is
            refused.
        fresh: throw rows of an earlier run away instead of continuing it.

    Raises:
        ConfigError: another process writes here, or the folder was begun with other settings.
        DataError: a line of `rows.jsonl` other than the last one is broken.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], *, fresh: bool = False):
        self.folder = Path(folder)
        self.settings = settings
        self.fresh = fresh
        self.done: dict[Key, str | None] = {}
        self.repaired_bytes = 0
        self._rows: BinaryIO | None = None
        self._failures: BinaryIO | None = None

    def __enter__(self) -> RowStore:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _acquire(self.folder)
        try:
            self._open()
        except BaseException:  # Ctrl-C too: `__exit__` is not called where `__enter__` raises
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._failures):
            if file is not None:
                file.close()
        self._lock.release()

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows and wait until they are on disk."""
        assert self._rows is not None, "the store is not open"
        rows = list(rows)
        _append(self._rows, rows)
        self._note(rows)

    def append_failures(self, failures: Iterable[dict[str, Any]]) -> None:
        """Write what became of rows that could not be finished."""
        assert self._failures is not None, "the store is not open"
        _append(self._failures, failures)

    def _open(self) -> None:
        rows, failures = self.folder / ROWS, self.folder / FAILURES
        if self.fresh:
            # not `metrics.json`, which is replaced when the new rows are there
            for path in (rows, failures, self.folder / SETTINGS):
                path.unlink(missing_ok=True)
        self._check_settings()
        self.repaired_bytes = _cut_torn_line(rows)
        self._note(iter_rows(rows))
        _cut_torn_line(failures)
        self._rows = rows.open("ab")
        self._failures = failures.open("ab")

    def _note(self, rows: Iterable[Row]) -> None:
        for row in rows:
            key = (row["id"], row["sample"])
            self.done[key] = row.get("prompt_hash")

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS
        if path.exists():
            changes = _changes(read_settings(self.folder), self.settings)
            if changes:
                raise ConfigError(
                    f"the folder holds a run with other settings: {', '.join(changes)}",
                    where=str(path),
                    fix=OTHER_FOLDER,
                )
        elif (self.folder / ROWS).exists():
            raise ConfigError(
                "the folder holds rows, but not the settings that they were made with",
                where=str(path),
                fix=OTHER_FOLDER,
            )
        else:
            write_json(path, self.settings)


def rows_path(folder: str | Path) -> Path:
    """Where the rows of a run are: the one rule, for every command that reads a run.

    Args:
        folder: of an evaluation (its `rows.jsonl`), of a training run (its newest validation), or
            a file of rows itself.

    Raises:
        DataError: the folder holds neither.
    """
    path = Path(folder)
    if path.is_file():
        return path
    # An evaluation writes into no training run's folder: their `run.json` differ.
    if (path / ROWS).exists():
        return path / ROWS
    validations = step_files(path / VALIDATION)
    if validations:
        return validations[max(validations)]
    example = f"{VALIDATION}/{step_file(50)}"
    no_folder = "" if path.is_dir() else ", nor such a folder"
    raise DataError(
        f"there are no evaluated rows{no_folder}",
        where=str(path),
        expected=f"{ROWS} of a caopd eval run, or {example} (any step) of a training run",
    )


def iter_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file, one at a time; nothing where the file does not exist.

    Raises:
        DataError: a line that is no row, naming `file:line`.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _row(line, f"{path}:{number}")


def write_validation(rows: Iterable[Row], folder: Path, step: int) -> Path:
    """Write the rows of a training run's validation; returns their file.

    Files of later steps are removed: the run was started over, or went on from an earlier
    checkpoint, and its newest validation is this one.

    Args:
        rows: of the validation.
        folder: of the run.
        step: number of the training step.
    """
    validations = folder / VALIDATION
    validations.mkdir(parents=True, exist_ok=True)
    path = validations / step_file(step)
    _write_whole(path, _lines(rows))
    for other, stale in step_files(validations).items():
        if other > step:
            stale.unlink()
    return path


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The settings that a folder's run was begun with; empty where there is none."""
    path = Path(folder) / SETTINGS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_failures(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of `failures.jsonl`; an empty list where there is none."""
    path = Path(folder) / FAILURES
    if not path.exists() or path.stat().st_size == 0:
        return []
    return [row for _, row in read_json_lines(path)]


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one go. Raises `ValueError` for NaN and infinity, which are no JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    _write_whole(path, f"{text}\n".encode())


def _write_whole(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, never half of it: a run may be read as it goes."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row["id"], str) or not isinstance(row["sample"], int):
            raise TypeError("'id' and 'sample' are not text and integer")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"the line is no evaluated row ({type(error).__name__}: {error})",
            where=where,
            expected="a line that caopd eval, or training's validation, wrote",
        ) from None
    return row


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs' settings, in words."""
    changes = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if old != new:
            changes.append(f"{key} was {old!r}, is {new!r}")
    return changes


def _cut_torn_line(path: Path) -> int:
    """Cut the file after its last line break; returns how many bytes went."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = _end_of_lines(file, size)
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
    return size - end


def _end_of_lines(file: BinaryIO, size: int) -> int:
    """Position after the last line break. Read from the end: a file may hold gigabytes."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    return "".join(lines).encode()


def _append(file: BinaryIO, rows: Iterable[Mapping[str, Any]]) -> None:
    data = _lines(rows)
    if data:
        file.write(data)
        # A row that was paid for must outlive a crash of the machine, not only of the process.
        file.flush()
        os.fsync(file.fileno())


def _acquire(folder: Path) -> Any:
    # of the `eval` extra: reading a run needs no lock
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            "another process is writing to this folder",
            where=str(folder),
            fix="wait for it, or choose another --output",
        ) from None
    return lock
