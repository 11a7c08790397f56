"""A user's own questions, one JSON object a line.

| key | value |
| --- | --- |
| `prompt` or `messages` | the question: text, or a list of `{"role", "content"}`, last the user's |
| `system` | optional, only beside `prompt`: the system message |
| `answer` | the gold answer as the verifier takes it (a letter; a JSON list of calls; an integer) |
| `verifier` | optional where the caller names one: a name that `get_verifier` takes |
| `id` | optional, unique: text or integer; the line number otherwise |
| `source` | optional: text that groups the metrics; `jsonl` otherwise |
| `demonstration` | optional: a worked solution, as the text of a response |
| `meta` | optional: a JSON object, carried along |

The confidence instruction replaces `{confidence_instruction}` in the texts; without that, it ends
the last user message.
Unknown keys are an error: a misspelt `answer` must not pass for a missing one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caopd_verl.data.json_rows import (
    Row,
    UniqueIds,
    identifier,
    optional_text,
    read_json_lines,
    text_field,
)
from caopd_verl.data.prompts import own_messages
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.types import Example, Messages
from caopd_verl.verifiers import get_verifier, verifier_names

SOURCE = "jsonl"
QUESTION_KEYS = ("prompt", "messages", "system", "answer", "verifier")
KEYS = (*QUESTION_KEYS, "id", "source", "demonstration", "meta")
_ROLES = ("system", "user", "assistant")


def load_jsonl(path: str | Path, *, verifier: str | None = None) -> list[Example]:
    """All rows of `path`, in order.

    Args:
        path: the file.
        verifier: for rows that name none; a row's own goes first.

    Raises:
        ConfigError: `verifier` is unknown.
        DataError: naming `file:line`, for a row that does not fit the table above.
    """
    if verifier is not None:
        get_verifier(verifier, where="verifier")
    ids = UniqueIds()
    examples = []
    for where, row in read_json_lines(path):
        example = _example(row, where, verifier)
        ids.add(example.id, where)
        examples.append(example)
    return examples


def _example(row: Row, where: str, default_verifier: str | None) -> Example:
    unknown = sorted(set(row) - set(KEYS))
    if unknown:
        raise DataError(
            f"unknown key {unknown[0]!r}", where=where, expected="only " + ", ".join(KEYS)
        )
    verifier = _verifier(row, where, default_verifier)
    messages = _messages(row, where)
    answer = text_field(row, "answer", where=where)
    get_verifier(verifier).check_gold(answer, where)
    source = text_field(row, "source", where=where) if "source" in row else SOURCE
    return Example(
        id=_id(row, where),
        messages=own_messages(messages),
        answer=answer,
        verifier=verifier,
        source=source,
        where=where,
        meta=_meta(row, where),
        demonstration=optional_text(row, "demonstration", where=where),
    )


def _verifier(row: Row, where: str, default: str | None) -> str:
    name = row.get("verifier", default)
    if name is None:
        names = ", ".join(verifier_names())
        raise DataError(
            "the row names no verifier",
            where=where,
            expected=f"one of {names}, or package.module:object",
            fix="add 'verifier' to the row, or name one for the whole file",
        )
    try:
        get_verifier(name, where=where)
    except ConfigError as error:
        # The row is at fault, so it is an error of the data and not of the run's config.
        raise DataError(error.what, where=where, expected=error.expected, fix=error.fix) from error
    return name


def _id(row: Row, where: str) -> str:
    # The line number, since it stays when the file is moved; `where` holds the path too.
    line = where.rpartition(":")[2]
    return identifier(row, "id", where=where) if "id" in row else f"line-{line}"


def _meta(row: Row, where: str) -> dict[str, Any]:
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise DataError(
            f"'meta' is of type {type(meta).__name__}", where=where, expected="a JSON object"
        )
    return meta


def _messages(row: Row, where: str) -> Messages:
    if ("prompt" in row) == ("messages" in row):
        raise DataError(
            "the row needs a prompt", where=where, expected="either 'prompt' or 'messages'"
        )
    if "prompt" in row:
        user = {"role": "user", "content": text_field(row, "prompt", where=where)}
        system = optional_text(row, "system", where=where)
        return [user] if system is None else [{"role": "system", "content": system}, user]
    if "system" in row:
        raise DataError(
            "'system' stands beside 'messages'",
            where=where,
            expected="the system message in 'messages'",
        )
    return _given_messages(row["messages"], where)


def _given_messages(messages: Any, where: str) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise DataError("'messages' is not a non-empty list", where=where)
    checked = []
    for i, message in enumerate(messages):
        has_keys = isinstance(message, dict) and set(message) == {"role", "content"}
        if not has_keys or message["role"] not in _ROLES:
            raise DataError(
                f"message {i} is not usable",
                where=where,
                expected='{"role": "system", "user" or "assistant", "content": text}',
            )
        content = text_field(message, "content", where=where)
        checked.append({"role": message["role"], "content": content})
    if checked[-1]["role"] != "user":
        raise DataError("the last message is not the user's", where=where)
    return checked
