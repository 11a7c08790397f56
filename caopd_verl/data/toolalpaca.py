"""ToolAlpaca tool use, from SDPO's rows or from ToolAlpaca's own evaluation file.

Rows (one JSON object a line): `idx`, `answer` (JSON list of calls), `prompt` (documentation, format
and question), `system` (null); other keys are ignored. The data set's rows hold no worked solution;
where you have one, add it as `demonstration`, the text of a response.

Evaluation file (https://github.com/tangqiaoyu/ToolAlpaca, `eval_simulated.json`): one JSON list of
APIs, each with `Name`, `Description`, `Function_Description`, `Instructions` and `Golden_Answers`.
The prompt is built with the template of the rows, word for word (a test compares them). Some of its
gold answers hold placeholders such as `{"animeId": ${animeId from searchAnime}}`, which depend on
the result of an earlier call and can't be verified from one response; the rows leave those
questions out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from caopd_verl.data.json_rows import (
    Row,
    UniqueIds,
    identifier,
    optional_text,
    read_json,
    read_json_lines,
    text_field,
)
from caopd_verl.data.prompts import tool_prompt
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.types import Example
from caopd_verl.verifiers import get_verifier

Placeholders = Literal["error", "exclude"]
ToolVerifier = Literal["tool_call", "tool_call_first"]

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
    placeholders: Placeholders = "error",
    verifier: ToolVerifier = "tool_call",
) -> list[Example]:
    """All questions of `path`, in order, each as one user message.

    The confidence instruction is in front of `Begin!`.

    Args:
        path: a file of rows, or ToolAlpaca's evaluation file (recognised by its being a JSON list).
        placeholders: what to do with a question of the evaluation file whose gold answer holds a
            placeholder: an error, or leave it out and say how many were in one `UserWarning`. Rows
            know no placeholders.
        verifier: the verifier's name; `tool_call_first` compares the first call alone.

    Raises:
        ConfigError: an unknown `placeholders` or `verifier`.
        DataError: naming `file:line` (rows) or `file:API:question` (evaluation file), for broken
            JSON, a missing field, a gold answer without calls or with an unreadable input, an id
            used before, a prompt without `Begin!`, a `system` that is not null, a `demonstration`
            that is no text.
    """
    if placeholders not in get_args(Placeholders):
        raise ConfigError(
            f"unknown choice {placeholders!r}", where="placeholders", expected="error or exclude"
        )
    if verifier not in get_args(ToolVerifier):
        raise ConfigError(
            f"unknown verifier {verifier!r}",
            where="verifier",
            expected="tool_call or tool_call_first",
        )
    # By content and not by name: ToolAlpaca's file and the rows are both called *.json.
    if _is_list(path):
        return _from_apis(path, placeholders, verifier)
    ids = UniqueIds()
    examples = []
    for where, row in read_json_lines(path):
        example = _from_row(row, verifier, where)
        ids.add(example.id, where)
        examples.append(example)
    return examples


def _from_row(row: Row, verifier: str, where: str) -> Example:
    id_ = identifier(row, "idx", where=where)
    if row.get("system") is not None:
        raise DataError(
            "'system' is not null",
            where=where,
            expected="null: the prompt holds the whole task",
        )
    prompt = text_field(row, "prompt", where=where)
    answer = text_field(row, "answer", where=where)
    example = _example(id_, prompt, answer, verifier, where)
    return replace(example, demonstration=optional_text(row, "demonstration", where=where))


def _example(id_: str, prompt: str, answer: str, verifier: str, where: str) -> Example:
    get_verifier(verifier).check_gold(answer, where)
    user = {"role": "user", "content": tool_prompt(prompt, where=where)}
    return Example(
        id=f"{SOURCE}-{id_}",
        messages=[user],
        answer=answer,
        verifier=verifier,
        source=SOURCE,
        where=where,
    )


def _is_list(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except OSError as error:
        raise DataError(
            f"the file can't be read ({error.strerror})", where=str(path), fix="check the path"
        ) from None


@dataclass(frozen=True)
class _Question:
    """One question of the evaluation file: the API that it is about, its number there, its gold."""

    api: Row
    api_name: str
    index: int
    text: str
    calls: Any
    where: str


def _from_apis(path: str | Path, placeholders: Placeholders, verifier: str) -> list[Example]:
    examples: list[Example] = []
    excluded = 0
    ids = UniqueIds()
    for question in _questions(path):
        if placeholders == "exclude" and _has_placeholder(question.calls):
            excluded += 1
            continue
        example = _from_question(question, verifier)
        ids.add(example.id, question.where)
        examples.append(example)
    if excluded:
        n_questions = excluded + len(examples)
        what = f"left out {excluded} of {n_questions} questions with placeholders"
        warnings.warn(f"{path}: {what} in the gold answer", stacklevel=3)
    if not examples:
        raise DataError("the file holds no questions", where=str(path))
    return examples


def _from_question(question: _Question, verifier: str) -> Example:
    api, where = question.api, question.where
    description = text_field(api, "Description", where=where)
    prompt = _PROMPT.format(
        name=question.api_name,
        description=description,
        documentation=_documentation(api, where),
        question=question.text,
    )
    answer = json.dumps(question.calls, ensure_ascii=False)
    name = f"{question.api_name}-{question.index}"
    example = _example(name, prompt, answer, verifier, where)
    return replace(example, meta={"api": question.api_name, "question": question.index})


def _questions(path: str | Path) -> Iterator[_Question]:
    for number, api in enumerate(read_json(path)):
        where = f"{path}:API {number}"
        if not isinstance(api, dict):
            raise DataError(
                f"the API is of type {type(api).__name__}", where=where, expected="a JSON object"
            )
        name = text_field(api, "Name", where=where)
        where = f"{where} ({name})"
        for i, (text, calls) in enumerate(_texts_and_calls(api, where)):
            yield _Question(api, name, i, text, calls, f"{where}:question {i}")


def _texts_and_calls(api: Row, where: str) -> list[tuple[str, Any]]:
    texts, golds = api.get("Instructions"), api.get("Golden_Answers")
    if not isinstance(texts, list) or not isinstance(golds, list) or len(texts) != len(golds):
        raise DataError(
            "'Instructions' and 'Golden_Answers' are not two lists of one length", where=where
        )
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                "the question is empty",
                where=f"{where}:question {i}",
                expected="a non-empty string",
            )
    return list(zip(texts, golds, strict=True))


def _documentation(api: Row, where: str) -> str:
    functions = api.get("Function_Description")
    if not isinstance(functions, dict) or not _are_texts(functions.values()):
        raise DataError("'Function_Description' does not map names to texts", where=where)
    lines = [f"{name}: {text}" for name, text in functions.items() if name != "components"]
    # As in the rows: the shared types of an API come last, without a name, since they are no tool.
    lines.append(functions.get("components", ""))
    return "\n".join(lines)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _has_placeholder(calls: Any) -> bool:
    return "${" in json.dumps(calls)
