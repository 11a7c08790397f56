"""Arithmetic: one integer, alone on the last line before the confidence.

The text before the confidence line (as `core.confidence.parse` finds it) ends with the answer. If
that text holds a closed pair `<answer>...</answer>`, what stands in the last pair is the answer;
otherwise the last line that is not empty is, without a leading `Answer:`. The answer must be an
integer in ASCII digits with an optional sign; leading zeros do not matter. Anything else is
`malformed`, and an empty text is `no_answer`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from caopd_verl.core.confidence import parse
from caopd_verl.errors import DataError
from caopd_verl.types import Verdict
from caopd_verl.verifiers.verifier import CORRECT, MALFORMED, NO_ANSWER, WRONG

_PAIR = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
_LABEL = re.compile(r"answer[ \t]*:[ \t]*", re.IGNORECASE)
# [0-9], since \d also takes the digits of other scripts.
_INTEGER = re.compile(r"([+-]?)([0-9]+)")


@dataclass(frozen=True)
class ArithmeticVerifier:
    """Verifier for integers. Gold answers: an integer as text, such as `"46"` or `"-3"`."""

    def check_gold(self, answer: str, where: str) -> None:
        """Raise `DataError` unless `answer` is an integer in ASCII digits."""
        if not isinstance(answer, str) or not _INTEGER.fullmatch(answer):
            raise DataError(
                f"gold answer {answer!r} is not an integer",
                where=where,
                expected="ASCII digits with an optional sign, as a string, such as '46'",
                fix="correct or remove the row",
            )

    def demonstration(self, gold: str) -> str:
        """The integer, without leading zeros. Raises `DataError` as `check_gold` does."""
        self.check_gold(gold, "gold answer to be shown")
        return _normalise(gold)

    def __call__(self, response: str, gold: str) -> Verdict:
        """Judge `response`.

        `Verdict.answer` is the integer without leading zeros, or the raw text where malformed.
        """
        self.check_gold(gold, "gold answer given to the arithmetic verifier")
        # Cut first: a confidence is a number on a line of its own too.
        before_confidence = response[: parse(response).start]
        text = _answer_text(before_confidence)
        if not text:
            return Verdict(False, NO_ANSWER)
        if not _INTEGER.fullmatch(text):
            return Verdict(False, MALFORMED, text)
        answer = _normalise(text)
        correct = answer == _normalise(gold)
        return Verdict(correct, CORRECT if correct else WRONG, answer)


def _answer_text(text: str) -> str:
    pair = None
    for match in _PAIR.finditer(text):
        pair = match.group(1)
    if pair is not None:
        return pair.strip()
    line = text.rstrip().rpartition("\n")[2].strip()
    label = _LABEL.match(line)
    return line[label.end() :] if label else line


def _normalise(text: str) -> str:
    # On the text, because int() refuses more than 4300 digits.
    match = _INTEGER.fullmatch(text)
    assert match is not None
    digits = match.group(2).lstrip("0") or "0"
    is_negative = match.group(1) == "-" and digits != "0"
    return f"-{digits}" if is_negative else digits
