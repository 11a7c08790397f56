"""Tool calls in the ReAct form `Action: name` / `Action Input: {json}`, as ToolAlpaca's prompts ask for.

Reading a response: every line that starts with `Action:` (any case, markdown asterisks allowed) opens a call, whose
name is the rest of the line. Its input is the JSON object after the first `Action Input:` (or `Action_Input:`) line
before the next `Action:` line; a code fence before the object is allowed, and whatever follows the object (a
`Confidence:` line, an observation) is ignored. The object is read by the standard JSON decoder, which knows nesting and
string literals; the reference's lazy regex does not, and fails on 2 of the 68 gold answers (trap T22). No
`Action Input:` at all counts as `{}`; one without a readable JSON object makes the response `malformed`.

Comparing (`tool_call`): the calls of the response and the gold must be equal as multisets, in any order; a gold call
whose name starts with `[Optional]` may be there or not. Inputs are equal when they are the same JSON value: key order
does not matter, 1 equals 1.0 (JSON has one number type), but 1 is neither "1" nor true.
`tool_call_first` compares the first call of the response with the first gold call that is not optional, and ignores
the rest: the rule of the CaOPD repository, up to 19 of 68 rows easier. Report which of the two was used.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from caopd_verl.errors import DataError
from caopd_verl.types import Verdict
from caopd_verl.verifiers.verifier import CORRECT, MALFORMED, NO_ANSWER, WRONG

Call = tuple[str, str]  # (name, canonical JSON of the input)

_ACTION = re.compile(r"^[ \t*]*action[ \t*]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_INPUT = re.compile(r"^[ \t*]*action[ _]input[ \t*]*:", re.IGNORECASE | re.MULTILINE)
_BEFORE_OBJECT = re.compile(r"[\s*]*(?:```[A-Za-z]*\s*|`)?")
_OPTIONAL = "[optional]"
_NAME_TRIM = " \t\r*`'\""


def _reject_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


@dataclass(frozen=True)
class ToolCallVerifier:
    """Verifier for tool calls. Gold answers: a JSON list of `{"Action": name, "Action_Input": JSON object as text}`."""

    name: str
    first_call_only: bool

    def check_gold(self, answer: str, where: str) -> None:
        """Raise `DataError` unless `answer` is a non-empty list of calls with readable inputs, not all optional."""
        self._gold(answer, where)

    def __call__(self, response: str, gold: str) -> Verdict:
        """Judge `response`; `Verdict.answer` is the JSON list of the calls found (inputs in canonical form)."""
        required, optional = self._gold(gold, f"gold answer given to the {self.name} verifier")
        calls, malformed = find_calls(response, limit=1 if self.first_call_only else None)
        if not calls and not malformed:
            return Verdict(False, NO_ANSWER)
        answer = json.dumps(
            [{"Action": name, "Action_Input": value} for name, value in calls], ensure_ascii=False
        )
        answer = answer.encode("utf-8", "backslashreplace").decode(
            "utf-8"
        )  # half an escaped emoji fits no file
        if malformed:
            return Verdict(False, MALFORMED, answer)
        if self.first_call_only:
            correct = calls[0] == required[0]
        else:
            found, needed = Counter(calls), Counter(required)
            correct = found >= needed and (found - needed) <= Counter(optional)
        return Verdict(correct, CORRECT if correct else WRONG, answer)

    def _gold(self, answer: str, where: str) -> tuple[list[Call], list[Call]]:
        required: list[Call] = []
        optional: list[Call] = []
        for i, call in enumerate(_gold_list(answer, where)):
            name, value = _gold_call(call, i, where)
            bare, is_optional = _split_optional(name)
            if not bare:
                raise _gold_error(f"call {i} of the gold answer has no name in 'Action'", where)
            (optional if is_optional else required).append((bare, value))
        if not required:
            raise _gold_error("every call of the gold answer is optional", where)
        return required, optional


def find_calls(response: str, *, limit: int | None = None) -> tuple[list[Call], bool]:
    """All calls of a response (the first `limit`), and whether one of them was malformed (reading stops there)."""
    calls: list[Call] = []
    position = 0
    while limit is None or len(calls) < limit:
        action = _ACTION.search(response, position)
        if action is None:
            break
        name = _split_optional(action.group(1).strip(_NAME_TRIM))[0]
        if not name:
            return calls, True
        following = _ACTION.search(response, action.end())
        end = following.start() if following else len(response)
        label = _INPUT.search(response, action.end(), end)
        if label is None:
            calls.append((name, "{}"))
            position = end
            continue
        value, position = _read_object(response, label.end())
        if value is None:
            return calls, True
        calls.append((name, value))
    return calls, False


def render_calls(gold: str) -> str:
    """A gold answer as the text of a response (for demonstrations and tests). Raises `DataError` as `check_gold`."""
    calls = [
        _gold_call(call, i, "gold answer") for i, call in enumerate(_gold_list(gold, "gold answer"))
    ]
    return "\n".join(f"Action: {name}\nAction Input: {value}" for name, value in calls)


def _read_object(text: str, position: int) -> tuple[str | None, int]:
    start = _BEFORE_OBJECT.match(text, position).end()  # type: ignore[union-attr]  # the pattern matches the empty string
    if not text.startswith("{", start):
        return None, start
    try:
        value, end = _DECODER.raw_decode(text, start)
        return _canonical(value), end
    except (
        ValueError,
        RecursionError,
    ):  # broken JSON, a number of thousands of digits, thousands of levels
        return None, start


def _canonical(value: Any) -> str:
    return json.dumps(
        _one_number_type(value), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )


def _one_number_type(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _one_number_type(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_one_number_type(item) for item in value]
    return value


def _split_optional(name: str) -> tuple[str, bool]:
    if name.lower().startswith(_OPTIONAL):
        return name[len(_OPTIONAL) :].strip(_NAME_TRIM), True
    return name, False


def _gold_list(answer: str, where: str) -> list[Any]:
    try:
        calls = json.loads(answer)
    except (TypeError, ValueError, RecursionError) as error:
        raise _gold_error(f"the gold answer is not JSON ({error})", where) from None
    if not isinstance(calls, list) or not calls:
        raise _gold_error("the gold answer holds no calls", where)
    return calls


def _gold_call(call: Any, index: int, where: str) -> Call:
    if (
        not isinstance(call, dict)
        or not isinstance(call.get("Action"), str)
        or "Action_Input" not in call
    ):
        raise _gold_error(
            f"call {index} of the gold answer lacks 'Action' or 'Action_Input'", where
        )
    name = call["Action"].strip()
    if not name:
        raise _gold_error(f"call {index} of the gold answer has no name in 'Action'", where)
    raw = call["Action_Input"]
    try:
        value = _DECODER.decode(raw) if isinstance(raw, str) else raw
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return name, _canonical(value)
    except (ValueError, RecursionError) as error:
        raise _gold_error(
            f"the input of call {index} of the gold answer is not a JSON object ({error})", where
        ) from None


def _gold_error(what: str, where: str) -> DataError:
    return DataError(
        what,
        where=where,
        expected='a JSON list such as [{"Action": "searchUser", "Action_Input": "{\\"query\\": \\"Ann\\"}"}]',
        fix="correct or remove the row",
    )
