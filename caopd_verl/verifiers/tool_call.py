"""Tool calls in the ReAct form that ToolAlpaca's prompts ask for.

A call is a line `Action: name` and a line `Action Input: {json}`.

Reading a response: every line that starts with `Action:` (any case, markdown asterisks allowed)
opens a call, whose name is the rest of the line. Its input is the JSON object after the first line
`Action Input:` (or `Action_Input:`) before the next `Action:` line. A code fence before the object
is allowed, and whatever follows the object (a `Confidence:` line, an observation) is ignored. No
`Action Input:` at all counts as `{}`; one without a readable JSON object makes the response
`malformed`. The standard JSON decoder reads the object, since it knows nesting and string literals:
SDPO's lazy regular expression stops at the first `}` and rejects 2 of the 68 gold answers of the
test split.

Comparing (`tool_call`): the calls of the response and of the gold answer must be equal as
multisets, in any order; a gold call whose name starts with `[Optional]` may be there or not. Inputs
are equal when they are the same JSON value: key order does not matter, 1 equals 1.0 (JSON has one
number type), but 1 is neither "1" nor true.
`tool_call_first` compares the first call of the response with the first gold call that is not
optional, and ignores the rest. That is the rule of the CaOPD repository; it is easier wherever the
gold answer has several calls, which up to 19 of the 68 test rows have. Report which was used.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from caopd_verl.errors import DataError
from caopd_verl.types import Verdict
from caopd_verl.verifiers.verifier import CORRECT, MALFORMED, NO_ANSWER, WRONG

Call = tuple[str, str]  # (name, canonical JSON of the input)


@dataclass(frozen=True)
class GoldCall:
    """A call of the gold answer: its name without the marker, its input as canonical JSON."""

    name: str
    value: str
    optional: bool  # a response may leave it out

    @property
    def as_made(self) -> Call:
        """What a response that makes this call is read as."""
        return self.name, self.value


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
    """Verifier for tool calls.

    Gold answers: a JSON list of `{"Action": name, "Action_Input": JSON object as text}`.

    Args:
        first_call_only: compare the first calls alone (`tool_call_first`).
    """

    first_call_only: bool

    def check_gold(self, answer: str, where: str) -> None:
        """Raise `DataError` unless `answer` is a list of calls with readable inputs.

        At least one of the calls must not be optional.
        """
        _gold_calls(answer, where)

    def demonstration(self, gold: str) -> str:
        """The gold calls as ReAct lines, in their order, inputs as canonical JSON.

        Optional calls are shown, without their marker: it is a note of the data set to whoever
        judges, and no tool has such a name. `tool_call_first` judges the first call alone, so there
        the lines begin with the first call that is not optional.

        Raises:
            DataError: as `check_gold`; or the name of a call can't be written in a line `Action:`
                (it holds a line break, or begins or ends with quotation marks).
        """
        where = "gold answer to be shown"
        calls = _gold_calls(gold, where)
        if self.first_call_only:
            calls = list(dropwhile(lambda call: call.optional, calls))
        lines = [f"Action: {call.name}\nAction Input: {call.value}" for call in calls]
        text = _writable("\n".join(lines))
        if not self(text, gold).correct:
            raise _gold_error("the name of a call can't be written in a line 'Action: name'", where)
        return text

    def __call__(self, response: str, gold: str) -> Verdict:
        """Judge `response`.

        `Verdict.answer` is the JSON list of the calls found, inputs in canonical form.
        """
        expected = _gold_calls(gold, "gold answer given to the tool call verifier")
        calls, malformed = find_calls(response, limit=1 if self.first_call_only else None)
        if not calls and not malformed:
            return Verdict(False, NO_ANSWER)
        found = [{"Action": name, "Action_Input": value} for name, value in calls]
        answer = _writable(json.dumps(found, ensure_ascii=False))
        if malformed:
            return Verdict(False, MALFORMED, answer)
        correct = self._agree(calls, expected)
        return Verdict(correct, CORRECT if correct else WRONG, answer)

    def _agree(self, calls: list[Call], expected: list[GoldCall]) -> bool:
        required = [call.as_made for call in expected if not call.optional]
        if self.first_call_only:
            return calls[0] == required[0]
        found, needed = Counter(calls), Counter(required)
        allowed = Counter(call.as_made for call in expected if call.optional)
        return found >= needed and (found - needed) <= allowed


def find_calls(response: str, *, limit: int | None = None) -> tuple[list[Call], bool]:
    """All calls of a response (at most `limit`), and whether one of them was malformed.

    Reading stops at a malformed call.
    """
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


def _read_object(text: str, position: int) -> tuple[str | None, int]:
    before = _BEFORE_OBJECT.match(text, position)
    assert before is not None  # the pattern matches the empty string
    start = before.end()
    if not text.startswith("{", start):
        return None, start
    try:
        value, end = _DECODER.raw_decode(text, start)
        return _canonical(value), end
    # Broken JSON or a number of thousands of digits is a ValueError, thousands of levels the other.
    except (ValueError, RecursionError):
        return None, start


def _writable(text: str) -> str:
    # Half an emoji, escaped in JSON, decodes to a lone surrogate, which no file and no tokenizer
    # takes; backslashreplace writes it as the escape that it was.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _canonical(value: Any) -> str:
    plain = _one_number_type(value)
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


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


def _gold_calls(answer: str, where: str) -> list[GoldCall]:
    try:
        items = json.loads(answer)
    except (TypeError, ValueError, RecursionError) as error:
        raise _gold_error(f"the gold answer is not JSON ({error})", where) from None
    if not isinstance(items, list) or not items:
        raise _gold_error("the gold answer holds no calls", where)
    calls = [_gold_call(item, i, where) for i, item in enumerate(items)]
    if all(call.optional for call in calls):
        raise _gold_error("every call of the gold answer is optional", where)
    return calls


def _gold_call(item: Any, index: int, where: str) -> GoldCall:
    has_keys = isinstance(item, dict) and "Action_Input" in item
    if not has_keys or not isinstance(item.get("Action"), str):
        raise _gold_error(
            f"call {index} of the gold answer lacks 'Action' or 'Action_Input'", where
        )
    name, optional = _split_optional(item["Action"].strip())
    if not name:
        raise _gold_error(f"call {index} of the gold answer has no name in 'Action'", where)
    raw = item["Action_Input"]
    try:
        value = _DECODER.decode(raw) if isinstance(raw, str) else raw
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return GoldCall(name, _canonical(value), optional)
    except (ValueError, RecursionError) as error:
        raise _gold_error(
            f"the input of call {index} of the gold answer is not a JSON object ({error})", where
        ) from None


def _gold_error(what: str, where: str) -> DataError:
    example = [{"Action": "searchUser", "Action_Input": '{"query": "Ann"}'}]
    return DataError(
        what,
        where=where,
        expected=f"a JSON list such as {json.dumps(example)}",
        fix="correct or remove the row",
    )
