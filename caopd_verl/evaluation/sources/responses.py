"""Finished responses from a JSONL, one object a line.

| key | value |
| --- | --- |
| `response` | the text |
| `answer` (or `gold`, `golden_answer`) | the gold answer in the verifier's form; not needed where a task is given |
| `verifier` | its name, where the caller names none |
| `id` | the question; needed where a task is given. Otherwise lines with the same `prompt` are samples of one |
| | question, and a line without prompt is a question of its own |
| `sample` | optional: which sample; lines of one question are numbered in their order otherwise |
| `prompt` or `messages` | optional: for the report, and to tell questions apart |
| `source` | optional: groups the metrics |

A row that `caopd eval` wrote has these keys, so results can be judged anew. Other keys are ignored. A line that can't
be used is reported with its reason and counted, never dropped in silence: no JSON, no response, no gold answer, a key
used twice, one id for two questions.
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
    """One usable line: the job and its generation, or, with `error`, one that can't be used."""

    where: str
    job: Job | None = None
    generation: Generation | None = None
    error: str | None = None


@dataclass
class _Seen:
    keys: set[Key] = field(default_factory=set)
    questions: dict[str, tuple[str, str]] = field(
        default_factory=dict
    )  # id -> (gold and prompt, where)
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
    if not isinstance(response, str):
        raise DataError(
            "no 'response' text" if response is None else "'response' is no text", where=where
        )
    messages = _messages(row, where)
    example = (
        _own(row, where, verifier, messages)
        if examples is None
        else _from_task(row, where, examples)
    )
    _check_question(example, seen)
    sample = row.get("sample")
    if sample is None:
        sample = seen.samples.get(example.id, 0)
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        raise DataError(f"'sample' is {sample!r}, no whole number", where=where)
    if (example.id, sample) in seen.keys:
        raise DataError(f"sample {sample} of question {example.id!r} is there twice", where=where)
    seen.keys.add((example.id, sample))
    seen.samples[example.id] = max(seen.samples.get(example.id, 0), sample + 1)
    return Finished(where, Job(example, sample), _generation(row, response))


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
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
    if isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in prompt
    ):
        return [{"role": str(m.get("role", "user")), "content": m["content"]} for m in prompt]
    raise DataError("'prompt' is neither text nor a list of messages", where=where)


def _own(row: dict[str, Any], where: str, verifier: str | None, messages: Messages) -> Example:
    name = row.get("verifier") or verifier
    if not isinstance(name, str):
        raise DataError("no verifier: name one with --verifier, or in the line", where=where)
    try:
        verify = get_verifier(name, where=where)
    except ConfigError as error:
        raise DataError(error.what, where=where) from None
    gold = next(
        (row[key] for key in GOLD_KEYS if row.get(key) is not None and _is_gold(row, key)), None
    )
    if isinstance(gold, list | dict):
        gold = json.dumps(gold)
    if not isinstance(gold, str | int) or isinstance(gold, bool):
        raise DataError("no gold answer under 'answer', 'gold' or 'golden_answer'", where=where)
    verify.check_gold(str(gold), where)
    id_ = row.get("id")
    if id_ is None:
        id_ = prompt_hash(messages) if messages else f"line-{where.rpartition(':')[2]}"
    if not isinstance(id_, str | int) or isinstance(id_, bool):
        raise DataError(f"'id' is {id_!r}, neither text nor an integer", where=where)
    source = row.get("source")
    return Example(
        str(id_), messages, str(gold), name, source if isinstance(source, str) else SOURCE, where
    )


def _is_gold(row: dict[str, Any], key: str) -> bool:
    """In a row that `caopd eval` wrote, `answer` is the model's and `gold` the right one."""
    return not (key == "answer" and "gold" in row)


def _from_task(row: dict[str, Any], where: str, examples: dict[str, Example]) -> Example:
    id_ = row.get("id")
    if id_ is None:
        raise DataError(
            "no 'id': it says which question of the task the response is for", where=where
        )
    if str(id_) not in examples:
        raise DataError(f"the task has no question {id_!r}", where=where)
    return examples[str(id_)]


def _check_question(example: Example, seen: _Seen) -> None:
    content = f"{example.answer}\n{prompt_hash(example.messages)}"
    known, where = seen.questions.setdefault(example.id, (content, example.where))
    if known != content:
        raise DataError(
            f"the id {example.id!r} stands for another question at {where}", where=example.where
        )


def _generation(row: dict[str, Any], response: str) -> Generation:
    def number(key: str) -> Any:
        value = row.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    value, at_one, mass = (
        number("expected_confidence"),
        number("expected_t1_confidence"),
        number("expected_mass"),
    )
    kind = row.get("expected_kind")
    usable = value is not None and 0.0 <= value <= 1.0 and isinstance(kind, str)
    p_true = number("p_true")
    has_p_true = p_true is not None and 0.0 <= p_true <= 1.0
    own, probability = row.get("answer"), number("answer_probability")
    ours = "gold" in row  # elsewhere `answer` is the right one, not the model's
    has_answer = (
        ours and isinstance(own, str) and probability is not None and 0.0 <= probability <= 1.0
    )
    return Generation(
        response,
        truncated=row["truncated"] if isinstance(row.get("truncated"), bool) else None,
        n_prompt_tokens=number("n_prompt_tokens"),
        n_tokens=number("n_tokens"),
        latency_s=number("latency_s"),
        attempts=number("attempts"),
        expected=Readout(value, mass, kind, value_t1=at_one)
        if usable
        else Readout(reason="the file holds no expected confidences"),
        p_true=Readout(p_true, number("p_true_mass"), EXACT)
        if has_p_true
        else Readout(reason="the file holds none"),
        known_answer=(str(own), probability) if has_answer else None,
    )
