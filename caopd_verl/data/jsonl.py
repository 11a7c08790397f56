"""A user's own questions, one JSON object a line.

| key | value |
| --- | --- |
| `prompt` or `messages` | the question as text, or as a list of `{"role", "content"}` that ends with a user message |
| `system` | optional, only beside `prompt`: the system message |
| `answer` | the gold answer in the verifier's form (a letter; a JSON list of calls; an integer) |
| `verifier` | optional where the caller names one: `multiple_choice`, `tool_call`, `tool_call_first`, `arithmetic` |
| `id` | optional, unique: text or integer; the line number otherwise |
| `source` | optional: text that groups the metrics; `jsonl` otherwise |
| `meta` | optional: a JSON object, carried along |

The confidence instruction replaces `{confidence_instruction}` in the texts; without that, it ends the last user
message.
Unknown keys are an error: a misspelt `answer` must not pass for a missing one.
"""

from __future__ import annotations

from pathlib import Path

from caopd_verl.data.json_rows import Row, UniqueIds, identifier, read_json_lines, text_field
from caopd_verl.data.prompts import own_messages
from caopd_verl.errors import DataError
from caopd_verl.types import Example, Messages
from caopd_verl.verifiers import VERIFIERS, get_verifier

SOURCE = "jsonl"
KEYS = ("prompt", "messages", "system", "answer", "verifier", "id", "source", "meta")
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


def _example(row: Row, where: str, verifier: str | None) -> Example:
    unknown = sorted(set(row) - set(KEYS))
    if unknown:
        raise DataError(
            f"unknown key {unknown[0]!r}", where=where, expected="only " + ", ".join(KEYS)
        )
    name = row.get("verifier", verifier)
    if name not in VERIFIERS:
        raise DataError(
            "the row names no verifier" if name is None else f"unknown verifier {name!r}",
            where=where,
            expected="one of " + ", ".join(sorted(VERIFIERS)),
            fix="add 'verifier' to the row, or name one for the whole file",
        )
    messages = _messages(row, where)
    answer = text_field(row, "answer", where=where)
    get_verifier(name).check_gold(answer, where)
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise DataError(
            f"'meta' is of type {type(meta).__name__}", where=where, expected="a JSON object"
        )
    return Example(
        id=identifier(row, "id", where=where)
        if "id" in row
        else f"line-{where.rpartition(':')[2]}",
        messages=own_messages(messages),
        answer=answer,
        verifier=name,
        source=text_field(row, "source", where=where) if "source" in row else SOURCE,
        where=where,
        meta=meta,
    )


def _messages(row: Row, where: str) -> Messages:
    if ("prompt" in row) == ("messages" in row):
        raise DataError(
            "the row needs a prompt", where=where, expected="either 'prompt' or 'messages'"
        )
    if "prompt" in row:
        user = {"role": "user", "content": text_field(row, "prompt", where=where)}
        if row.get("system") is None:
            return [user]
        return [{"role": "system", "content": text_field(row, "system", where=where)}, user]
    if "system" in row:
        raise DataError(
            "'system' stands beside 'messages'",
            where=where,
            expected="the system message in 'messages'",
        )
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError("'messages' is not a non-empty list", where=where)
    checked = []
    for i, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or message["role"] not in _ROLES
        ):
            raise DataError(
                f"message {i} is not usable",
                where=where,
                expected='{"role": "system", "user" or "assistant", "content": text}',
            )
        checked.append(
            {"role": message["role"], "content": text_field(message, "content", where=where)}
        )
    if checked[-1]["role"] != "user":
        raise DataError("the last message is not the user's", where=where)
    return checked
