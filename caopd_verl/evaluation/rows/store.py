"""`rows.jsonl`: every finished row is on disk before the next is asked for, and no row twice.

A folder holds one run: `run.json` (the settings that a row depends on), `rows.jsonl` (one line for each finished row,
append only, synced to disk) and `failures.jsonl` (what went wrong with the others, kept apart so that `rows.jsonl` has
exactly one line for a key). A lock file that the operating system frees when the process dies, however it dies, keeps a
second writer out. A line that a crash cut off can only be the last one; it is removed when the run is resumed, and its
row asked for again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from caopd_verl.data.json_rows import read_json_lines
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.rows.row import Key

ROWS, FAILURES, RUN, LOCK = "rows.jsonl", "failures.jsonl", "run.json", ".lock"
_BLOCK = 1 << 20


class RowStore:
    """The rows of one run; use as a context manager.

    Args:
        folder: of the run; made if it does not exist.
        settings: what the rows depend on, JSON values. A folder that was begun with others is refused.
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
            if self.fresh:
                for name in (ROWS, FAILURES, RUN):
                    (self.folder / name).unlink(missing_ok=True)
            self._check_settings()
            self.repaired_bytes = cut_torn_line(self.folder / ROWS)
            for row in iter_rows(self.folder / ROWS):
                self.done[row["id"], row["sample"]] = row.get("prompt_hash")
            cut_torn_line(self.folder / FAILURES)
            self._rows = (self.folder / ROWS).open("ab")
            self._failures = (self.folder / FAILURES).open("ab")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._failures):
            if file is not None:
                file.close()
        self._lock.release()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and wait until they are on disk."""
        assert self._rows is not None, "the store is not open"
        rows = list(rows)
        _write(self._rows, rows)
        for row in rows:
            self.done[row["id"], row["sample"]] = row.get("prompt_hash")

    def append_failures(self, failures: Iterable[dict[str, Any]]) -> None:
        """Write what became of rows that could not be finished."""
        assert self._failures is not None, "the store is not open"
        _write(self._failures, failures)

    def _check_settings(self) -> None:
        path = self.folder / RUN
        if path.exists():
            found = read_settings(self.folder)
            other = sorted(
                k for k in {*found, *self.settings} if found.get(k) != self.settings.get(k)
            )
            if other:
                raise ConfigError(
                    "the folder holds a run with other settings: "
                    + ", ".join(
                        f"{k} was {found.get(k)!r}, is {self.settings.get(k)!r}" for k in other
                    ),
                    where=str(path),
                    fix="choose another --output, or start over with --fresh",
                )
        elif (self.folder / ROWS).exists():
            raise ConfigError(
                "the folder holds rows, but not the settings that they were made with",
                where=str(path),
                fix="choose another --output, or start over with --fresh",
            )
        else:
            write_json(path, self.settings)


def iter_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a `rows.jsonl`, one at a time; nothing where the file does not exist.

    Raises:
        DataError: a line that is no row, naming `file:line`.
    """
    path = Path(path)
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row["id"], str) or not isinstance(row["sample"], int):
                    raise TypeError("'id' and 'sample' are not text and integer")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise DataError(
                    f"the line is no evaluated row ({type(error).__name__}: {error})",
                    where=f"{path}:{number}",
                    expected="a line that caopd eval wrote",
                ) from None
            yield row


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The settings that a folder's run was begun with; empty where there is none."""
    path = Path(folder) / RUN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_failures(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of `failures.jsonl`; an empty list where there is none."""
    path = Path(folder) / FAILURES
    if not path.exists() or path.stat().st_size == 0:
        return []
    return [row for _, row in read_json_lines(path)]


def cut_torn_line(path: Path) -> int:
    """Cut the file after its last line break; returns how many bytes went."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
        return size - end


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one go: readers see the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    temporary.replace(path)


def _write(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    if data:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _acquire(folder: Path):
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
