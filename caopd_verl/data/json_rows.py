"""Reading rows: JSON lines with line numbers, and field checks whose errors name `file:line`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caopd_verl.errors import DataError

Row = dict[str, Any]


def read_json_lines(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Yield `(where, row)` for each non-blank line; `where` is `path:line`, counted from 1.

    Raises:
        DataError: the file can't be read or holds no row; a line is not UTF-8, not JSON, or not a
            JSON object.
    """
    found = False
    # At \n alone: str.splitlines also splits at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        found, where = True, f"{path}:{number}"
        try:
            # Only the first line can begin with the byte order mark that some editors write.
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        # UnicodeDecodeError and JSONDecodeError are ValueErrors.
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"the line is not JSON ({error})",
                where=where,
                expected="one JSON object a line, in UTF-8",
                fix="correct or remove the line",
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"the line holds a JSON {type(row).__name__}", where=where, expected="a JSON object"
            )
        yield where, row
    if not found:
        raise DataError(
            "the file holds no rows", where=str(path), expected="one JSON object a line"
        )


def read_json(path: str | Path) -> Any:
    """The whole file as one JSON value.

    Raises:
        DataError: naming the line, where the file can't be read or is no JSON.
    """
    data = _read_bytes(path)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"the file is not JSON ({error.msg})", where=f"{path}:{error.lineno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the file is not JSON ({error})", where=str(path)) from None


def text_field(row: Mapping[str, Any], key: str, *, where: str) -> str:
    """The string under `key`. Raises `DataError` where it is missing, of another type or blank."""
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        return value
    if key not in row:
        what = f"the row has no {key!r}"
    elif isinstance(value, str):
        what = f"{key!r} is empty"
    else:
        what = f"{key!r} is of type {type(value).__name__}"
    raise DataError(
        what, where=where, expected=f"a non-empty string {key!r}", fix="correct or remove the row"
    )


def optional_text(row: Mapping[str, Any], key: str, *, where: str) -> str | None:
    """The string under `key`; None where the key is missing or null.

    Raises:
        DataError: the value is blank or of another type.
    """
    return None if row.get(key) is None else text_field(row, key, where=where)


def identifier(row: Mapping[str, Any], key: str, *, where: str) -> str:
    """The row's id under `key`, as text. Raises `DataError` unless it is an integer or a string."""
    value = row.get(key)
    is_text = isinstance(value, str) and bool(value.strip())
    # bool is a subclass of int, and True as an id is a mistake in the row.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_text or is_integer:
        return str(value)
    raise DataError(
        f"the row has no usable {key!r} ({value!r})", where=where, expected="an integer or a string"
    )


class UniqueIds:
    """Raises `DataError` at the second row of an id, naming both places."""

    def __init__(self) -> None:
        self._where: dict[str, str] = {}

    def add(self, id_: str, where: str) -> None:
        """Note `id_` as used at `where`."""
        if id_ in self._where:
            raise DataError(
                f"the id {id_!r} was used before, at {self._where[id_]}",
                where=where,
                expected="every id once",
                fix="remove the duplicate, or give it an id of its own",
            )
        self._where[id_] = where


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"the file can't be read ({error.strerror or error})",
            where=str(path),
            fix="check the data path",
        ) from None
