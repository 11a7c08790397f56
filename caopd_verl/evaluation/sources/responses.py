"""Finished responses from a JSONL, one object a line.

| key | value |
| --- | --- |
| `response` | the text |
| `answer` (or `gold`, `golden_answer`) | the gold answer in the verifier's form; not needed where |
| | a task is given |
| `verifier` | its name, where the caller names none |
| `id` | the question; needed where a task is given. Otherwise lines with the same `prompt` are |
| | samples of one question, and a line without prompt is a question of its own |
| `sample` | optional: which sample; lines of one question are numbered in their order otherwise |
| `prompt` or `messages` | optional: for the report, and to tell questions apart |
| `source` | optional: groups the metrics |

A row that `caopd eval` wrote has these keys, so results can be judged anew. Other keys are ignored.
A line that can't be used is reported with its reason and counted, never dropped in silence: no
JSON, no response, no gold answer, a key used twice, one id for two questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caopd_verl.errors import CaopdError, ConfigError, DataError
from caopd_verl.evaluation.readouts.readout import EXACT, Readout
from caopd_verl.evaluation.rows.row import Generation, Job, Key, prompt_hash
from caopd_verl.types import Example, Messages
from caopd_verl.verifiers import get_verifier

GOLD_KEYS = ("answer", "gold", "golden_answer")
SOURCE = "responses"


@dataclass
class Finished:
    """One line of the file.

    Attributes:
        where: `file:line`.
        job, generation: of a usable line; None otherwise.
        error: why it can't be used.
    """

    where: str
    job: Job | None = None
    generation: Generation | None = None
    error: str | None = None


@dataclass
class _Seen:
    """What earlier lines held.

    Attributes:
        keys: of their rows.
        questions: id -> gold answer and prompt, and the line where they were seen first.
        samples: id -> the number of the next sample without one.
    """

    keys: set[Key] = field(default_factory=set)
    questions: dict[str, tuple[str, str]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)


def read_responses(
    path: str | Path, *, verifier: str | None, examples: dict[str, Example] | None
) -> Iterator[Finished]:
    """The lines of `path`, one at a time; memory does not grow with their length.

    Args:
        path: the file.
        verifier: for lines that name none.
        examples: the questions of a task by id, if the gold answers are to come from there.

    Raises:
        DataError: the file can't be read. ConfigError: `verifier` is unknown.
    """
    if verifier is not None:
        get_verifier(verifier, where="--verifier")
    try:
        file = Path(path).open("rb")  # noqa: SIM115  (opened here so that only opening is guarded)
    except OSError as error:
        raise DataError(f"the file can't be read ({error.strerror})", where=str(path)) from None
    seen = _Seen()
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                yield _finished(line, where, verifier, examples, seen)
            except CaopdError as error:
                yield Finished(where, error=error.what)


def _finished(
    line: bytes, where: str, verifier: str | None, examples: dict[str, Example] | None, seen: _Seen
) -> Finished:
    row = _object(line, where)
    response = row.get("response")
    if response is None:
        raise DataError("no 'response' text", where=where)
    if not isinstance(response, str):
        raise DataError("'response' is no text", where=where)
    messages = _messages(row, where)
    if examples is None:
        example = _own_question(row, where, verifier, messages)
    else:
        example = _question_of_task(row, where, examples)
    _check_question(example, seen)
    job = Job(example, _sample(row, where, example, seen))
    return Finished(where, job, _generation(row, response))


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # Windows editors begin files with a mark
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON ({type(error).__name__})", where=where) from None
    if not isinstance(row, dict):
        raise DataError(f"a JSON {type(row).__name__}, no object", where=where)
    return row


def _messages(row: dict[str, Any], where: str) -> Messages:
    prompt = row.get("messages", row.get("prompt"))
    if prompt is None:
        return []
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not all(_is_message(message) for message in prompt):
        raise DataError("'prompt' is neither text nor a list of messages", where=where)
    messages = []
    for message in prompt:
        role = str(message.get("role", "user"))
        messages.append({"role": role, "content": message["content"]})
    return messages


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), str)


def _own_question(
    row: dict[str, Any], where: str, verifier: str | None, messages: Messages
) -> Example:
    """The question as the line itself describes it."""
    name = row.get("verifier") or verifier
    if not isinstance(name, str):
        raise DataError("no verifier: name one with --verifier, or in the line", where=where)
    try:
        verify = get_verifier(name, where=where)
    except ConfigError as error:
        # One line with a wrong name is that line's matter, not the whole run's.
        raise DataError(error.what, where=where) from None
    gold = _gold(row, where)
    verify.check_gold(gold, where)
    source = row.get("source")
    if not isinstance(source, str):
        source = SOURCE
    return Example(_id(row, where, messages), messages, gold, name, source, where)


def _gold(row: dict[str, Any], where: str) -> str:
    found = None
    for key in GOLD_KEYS:
        # In a row that `caopd eval` wrote, `answer` is the model's and `gold` the right one.
        is_the_models = key == "answer" and _is_ours(row)
        if row.get(key) is not None and not is_the_models:
            found = row[key]
            break
    if isinstance(found, list | dict):
        return json.dumps(found)
    if not isinstance(found, str | int) or isinstance(found, bool):
        raise DataError("no gold answer under 'answer', 'gold' or 'golden_answer'", where=where)
    return str(found)


def _is_ours(row: dict[str, Any]) -> bool:
    """Whether `caopd eval` wrote the row."""
    return "gold" in row


def _id(row: dict[str, Any], where: str, messages: Messages) -> str:
    found = row.get("id")
    if found is None:
        line = where.rpartition(":")[2]
        return prompt_hash(messages) if messages else f"line-{line}"
    if not isinstance(found, str | int) or isinstance(found, bool):
        raise DataError(f"'id' is {found!r}, neither text nor an integer", where=where)
    return str(found)


def _question_of_task(row: dict[str, Any], where: str, examples: dict[str, Example]) -> Example:
    found = row.get("id")
    if found is None:
        raise DataError(
            "no 'id': it says which question of the task the response is for", where=where
        )
    if str(found) not in examples:
        raise DataError(f"the task has no question {found!r}", where=where)
    return examples[str(found)]


def _check_question(example: Example, seen: _Seen) -> None:
    content = f"{example.answer}\n{prompt_hash(example.messages)}"
    own = (content, example.where)
    known, where = seen.questions.setdefault(example.id, own)
    if known != content:
        raise DataError(
            f"the id {example.id!r} stands for another question at {where}", where=example.where
        )


def _sample(row: dict[str, Any], where: str, example: Example, seen: _Seen) -> int:
    """The number of the sample; lines of one question are numbered in their order otherwise."""
    following = seen.samples.get(example.id, 0)
    sample = row.get("sample")
    if sample is None:
        sample = following
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        raise DataError(f"'sample' is {sample!r}, no whole number", where=where)
    key = (example.id, sample)
    if key in seen.keys:
        raise DataError(f"sample {sample} of question {example.id!r} is there twice", where=where)
    seen.keys.add(key)
    seen.samples[example.id] = max(following, sample + 1)
    return sample


def _generation(row: dict[str, Any], response: str) -> Generation:
    truncated = row.get("truncated")
    return Generation(
        response,
        truncated=truncated if isinstance(truncated, bool) else None,
        n_prompt_tokens=_number(row, "n_prompt_tokens"),
        n_tokens=_number(row, "n_tokens"),
        latency_s=_number(row, "latency_s"),
        attempts=_number(row, "attempts"),
        expected=_expected(row),
        p_true=_p_true(row),
        known_answer=_known_answer(row),
    )


def _expected(row: dict[str, Any]) -> Readout:
    value, kind = _share(row, "expected_confidence"), row.get("expected_kind")
    if value is None or not isinstance(kind, str):
        return Readout(reason="the file holds no expected confidences")
    at_one, mass = _number(row, "expected_t1_confidence"), _number(row, "expected_mass")
    return Readout(value, mass, kind, value_t1=at_one)


def _p_true(row: dict[str, Any]) -> Readout:
    value = _share(row, "p_true")
    if value is None:
        return Readout(reason="the file holds none")
    return Readout(value, _number(row, "p_true_mass"), EXACT)


def _known_answer(row: dict[str, Any]) -> tuple[str, float] | None:
    """The answer of an earlier judgement, and its tokens' probability."""
    answer, probability = row.get("answer"), _share(row, "answer_probability")
    # Elsewhere `answer` is the right one, not the model's.
    if not _is_ours(row) or not isinstance(answer, str) or probability is None:
        return None
    return answer, probability


def _number(row: dict[str, Any], key: str) -> Any:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):  # True is an int
        return None
    return value


def _share(row: dict[str, Any], key: str) -> float | None:
    """A number in [0, 1]; None where there is none."""
    value = _number(row, key)
    return value if value is not None and 0.0 <= value <= 1.0 else None
