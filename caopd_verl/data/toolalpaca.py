"""ToolAlpaca tool use, from SDPO's rows (one JSON object a line) or from ToolAlpaca's own evaluation file.

Rows: keys `idx`, `answer` (JSON list of calls), `prompt` (documentation, format and question), `system` (null).
Evaluation file (https://github.com/tangqiaoyu/ToolAlpaca, `eval_simulated.json`): one JSON list of APIs, each with
`Name`, `Description`, `Function_Description`, `Instructions` and `Golden_Answers`; the prompt is built with the same
template, word for word the one of the rows (a test compares them). Some of its gold answers hold placeholders such as
`{"animeId": ${animeId from searchAnime}}`, which depend on the result of an earlier call and can't be verified from one
response; the rows leave those questions out.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

from caopd_verl.data.json_rows import (
    Row,
    UniqueIds,
    identifier,
    read_json,
    read_json_lines,
    text_field,
)
from caopd_verl.data.prompts import tool_prompt
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.types import Example
from caopd_verl.verifiers import get_verifier

SOURCE = "tooluse"
# The blank at the end of the first line is the data's.
_PROMPT = """Your task is to answer the user's question using available tools.\x20
You have access to the following tools:
Name: {name}
Description: {description}
Documentation:
{documentation}
Use the following format:
Thought: you should always think about what to do
Action: the action to take, should be one of the tool names.
Action Input: the input to the action, must be in JSON format. All of the action input must be \
realistic and from the user.

Begin!
Question: {question}"""


def load_toolalpaca(
    path: str | Path,
    *,
    placeholders: Literal["error", "exclude"] = "error",
    verifier: Literal["tool_call", "tool_call_first"] = "tool_call",
) -> list[Example]:
    """All questions of `path`, in order, as one user message with the confidence instruction before `Begin!`.

    Args:
        path: a file of rows, or ToolAlpaca's evaluation file (recognised by its being a JSON list).
        placeholders: what to do with a question of the evaluation file whose gold answer holds a placeholder: an error,
            or leave it out and say how many were in one `UserWarning`. Rows know no placeholders.
        verifier: the verifier's name; `tool_call_first` compares the first call alone.

    Raises:
        ConfigError: an unknown `placeholders` or `verifier`.
        DataError: naming `file:line` (rows) or `file:API:question` (evaluation file), for broken JSON, a missing field,
            a gold answer without calls or with an unreadable input, an id used before, a prompt without `Begin!`, a
            `system` that is not null.
    """
    if placeholders not in ("error", "exclude"):
        raise ConfigError(
            f"unknown choice {placeholders!r}", where="placeholders", expected="error or exclude"
        )
    if verifier not in ("tool_call", "tool_call_first"):
        raise ConfigError(
            f"unknown verifier {verifier!r}",
            where="verifier",
            expected="tool_call or tool_call_first",
        )
    if _is_list(path):
        return _from_apis(path, placeholders, verifier)
    ids = UniqueIds()
    examples = []
    for where, row in read_json_lines(path):
        id_ = identifier(row, "idx", where=where)
        if row.get("system") is not None:
            raise DataError(
                "'system' is not null",
                where=where,
                expected="null: the prompt holds the whole task",
            )
        prompt, answer = (
            text_field(row, "prompt", where=where),
            text_field(row, "answer", where=where),
        )
        examples.append(_example(id_, prompt, answer, verifier, where, {}))
        ids.add(examples[-1].id, where)
    return examples


def _example(
    id_: str, prompt: str, answer: str, verifier: str, where: str, meta: dict[str, Any]
) -> Example:
    get_verifier(verifier).check_gold(answer, where)
    return Example(
        id=f"{SOURCE}-{id_}",
        messages=[{"role": "user", "content": tool_prompt(prompt, where=where)}],
        answer=answer,
        verifier=verifier,
        source=SOURCE,
        where=where,
        meta=meta,
    )


def _is_list(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except OSError as error:
        raise DataError(
            f"the file can't be read ({error.strerror})", where=str(path), fix="check the path"
        ) from None


def _from_apis(path: str | Path, placeholders: str, verifier: str) -> list[Example]:
    examples: list[Example] = []
    excluded = 0
    ids = UniqueIds()
    for number, api in enumerate(read_json(path)):
        where = f"{path}:API {number}"
        if not isinstance(api, dict):
            raise DataError(
                f"the API is of type {type(api).__name__}", where=where, expected="a JSON object"
            )
        name = text_field(api, "Name", where=where)
        where = f"{where} ({name})"
        for i, (question, calls) in enumerate(_questions(api, where)):
            place = f"{where}:question {i}"
            if placeholders == "exclude" and _has_placeholder(calls):
                excluded += 1
                continue
            prompt = _PROMPT.format(
                name=name,
                description=text_field(api, "Description", where=where),
                documentation=_documentation(api, where),
                question=question,
            )
            answer = json.dumps(calls, ensure_ascii=False)
            examples.append(
                _example(
                    f"{name}-{i}", prompt, answer, verifier, place, {"api": name, "question": i}
                )
            )
            ids.add(examples[-1].id, place)
    if excluded:
        warnings.warn(
            f"{path}: left out {excluded} of {excluded + len(examples)} questions with placeholders in the gold answer",
            stacklevel=3,
        )
    if not examples:
        raise DataError("the file holds no questions", where=str(path))
    return examples


def _questions(api: Row, where: str) -> list[tuple[str, Any]]:
    questions, golds = api.get("Instructions"), api.get("Golden_Answers")
    if (
        not isinstance(questions, list)
        or not isinstance(golds, list)
        or len(questions) != len(golds)
    ):
        raise DataError(
            "'Instructions' and 'Golden_Answers' are not two lists of one length", where=where
        )
    for i, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise DataError(
                "the question is empty",
                where=f"{where}:question {i}",
                expected="a non-empty string",
            )
    return list(zip(questions, golds, strict=True))


def _documentation(api: Row, where: str) -> str:
    functions = api.get("Function_Description")
    if not isinstance(functions, dict) or not all(
        isinstance(text, str) for text in functions.values()
    ):
        raise DataError("'Function_Description' does not map names to texts", where=where)
    lines = [f"{name}: {text}" for name, text in functions.items() if name != "components"]
    return "\n".join([*lines, functions.get("components", "")])


def _has_placeholder(calls: Any) -> bool:
    return "${" in json.dumps(calls)
