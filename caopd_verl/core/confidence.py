"""The one grammar of the confidence segment: render it, parse it, locate its span.

A response ends with one line `Confidence: 0.62` (paper B.2). Training, verification and evaluation all read it here.

What counts (issue 2; traps T3, T4, T22, T29 of the reference facts):

* The label stands at the beginning of a line (markdown emphasis, `>`, `#`, `-` and blanks may precede it), or directly
  behind a closing `</answer>` on the same line. Of several such lines the LAST one counts, so the word "confidence:" in
  the reasoning never cuts an answer away.
* `ok`: `Confidence: 0.62`, `confidence: .85`, `**Confidence:** 0.9`, `Confidence: 0.9.`, `Confidence: 90%` (= 0.9; a
  percentage needs its sign), `Confidence : 0 . 62` (tokenizers that put blanks around punctuation), `Confidence
  level:`.
* `out_of_range`: a number outside [0, 1] without `%`, or a percentage outside [0, 100]. It is never rescaled or
  clamped.
* `malformed`: the label without a number (`Confidence: high`), the label without its colon (`Confidence 0.9`), the tag
  form `<confidence>0.9</confidence>` (nobody asked for it), or anything but whitespace behind the number.
* `missing`: no such line.

Whatever is not `ok` has `value=None`: it is for the caller to count it, never to average it in as 0.

Text behind the confidence line is cut together with it only if it is plain chatter ("I hope this helps!"). Where it may
hold the answer (`<answer>`, `Action:`, `boxed`, a digit, fewer than three words, ...), the answer wins: the status is
`malformed`, and the span is empty and lies at the end of the text, so that revision appends.

    python -c "from caopd_verl.core.confidence import parse; print(parse('<answer>B</answer>\\nConfidence: 90%'))"
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from caopd_verl.errors import RevisionError

LABEL = "Confidence:"

SEARCH_CHARS = 512
"""A segment begins within so many characters of the end of the right-stripped text; whatever stands above is prose."""

MAX_LINE_CHARS = 120
"""Only lines up to this length are taken for a repetition of the confidence line right above the last one."""

OK, MISSING, MALFORMED, OUT_OF_RANGE = "ok", "missing", "malformed", "out_of_range"

_FLAGS = re.IGNORECASE | re.ASCII | re.MULTILINE
_MARK = r"[ \t*_`]{0,8}"
# Every quantifier is bounded, so matching is linear in the length of the text.
_HEAD = re.compile(
    r"(?:^[ \t>#*_`\-]{0,12}|(?<=</answer>)[ \t*_`]{0,8})"
    r"(?:(?P<tag><[ \t]{0,2}confidence[ \t]{0,2}>)"
    r"|confidence(?![a-z0-9])(?:[ \t]{1,2}(?:level|score)(?![a-z0-9]))?"
    + _MARK
    + r"(?P<colon>[:\uff1a=]?))"
    + _MARK,
    _FLAGS,
)
_NUMBER = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,32}(?:[ \t]?\.[ \t]?[0-9]{0,32})?|\.[ \t]?[0-9]{1,32}))(?P<percent>[ \t]?%)?",
    _FLAGS,
)
_REST_OK = re.compile(r"[\s.*_`]{0,32}(?:</confidence>)?[\s.*_`]{0,32}\Z", _FLAGS)
_MAYBE_ANSWER = re.compile(
    r"answer|action|option|choice|boxed|result|final|solution|conclu|therefore|[<>{}\[\]\\=#0-9]",
    _FLAGS,
)
_MAYBE_ANSWER_SAME_LINE = re.compile(r"answer|action|boxed|<(?!/confidence>)|[{}\[\]\\]", _FLAGS)
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class ParsedConfidence:
    """Where the stated confidence stands and what it says.

    Attributes:
        value: the stated confidence in [0, 1]; None unless `status` is `ok`.
        status: `ok`, `missing`, `malformed` or `out_of_range` (module docstring).
        start, end: character span of the segment to be replaced, from the first character of the confidence line
            (indentation and asterisks included) to the end of the text. Empty and at `len(text.rstrip())` where there
            is nothing to be replaced.
        value_start, value_end: character span of the number (without `%`); None where there is no number.
    """

    value: float | None
    status: str
    start: int
    end: int
    value_start: int | None = None
    value_end: int | None = None

    @property
    def found(self) -> bool:
        """Whether there is a segment to be replaced."""
        return self.start < self.end


def render(value: float) -> str:
    """The confidence line for `value` in [0, 1], two decimals by Python's `.2f` (0.125 -> `0.12`, 0.375 -> `0.38`).

    Raises:
        RevisionError: `value` is NaN or outside [0, 1].
    """
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise RevisionError(
            f"a confidence of {value} cannot be written",
            expected="a number in [0, 1]",
            fix="check the target: successes / K of the prompt's group",
        )
    return f"{LABEL} {abs(value):.2f}"


def parse(text: str) -> ParsedConfidence:
    """Read the confidence that `text` (a decoded response, no special tokens) states at its end.

    Never raises on any text; linear in the length of the text. See the module docstring for the grammar.
    """
    stop = len(text.rstrip())
    nothing = ParsedConfidence(None, MISSING, stop, stop)
    head = _last_head(text, stop)
    if head is None:
        return nothing
    number = _NUMBER.match(text, head.end(), stop)
    span = number.span("number") if number else (None, None)
    after = number.end() if number else head.end()
    clean = number is not None and _REST_OK.match(text, after, stop) is not None
    if head["tag"] is None and not head["colon"] and not clean:
        return nothing  # prose: "Confidence in this result is ..."
    if not clean and _may_hold_answer(text, after, stop):
        if number is None and head["tag"] is None:
            return nothing  # prose: "Confidence: high, since ..." with the answer below it
        return ParsedConfidence(None, MALFORMED, stop, stop, *span)
    start = _extend_upwards(text, head)
    if (
        number is None
        or not clean
        or head["tag"] is not None
        or head["colon"] not in (":", "\uff1a")
    ):
        return ParsedConfidence(None, MALFORMED, start, len(text), *span)
    value = float(re.sub(r"[ \t]", "", number["number"]))
    value = value / 100 if number["percent"] else value
    if not 0.0 <= value <= 1.0:
        return ParsedConfidence(None, OUT_OF_RANGE, start, len(text), *span)
    return ParsedConfidence(abs(value), OK, start, len(text), *span)


def _last_head(text: str, stop: int) -> re.Match[str] | None:
    """The last label that begins within `SEARCH_CHARS` of `stop`; `^` holds only where a line really begins."""
    last = None
    for match in _HEAD.finditer(text, max(0, stop - SEARCH_CHARS), stop):
        last = match
    return last


def _may_hold_answer(text: str, after: int, stop: int) -> bool:
    """Whether the text behind the number may be, or hold, the answer; plain chatter may be dropped, an answer never."""
    newline = text.find("\n", after, stop)
    line_end = stop if newline < 0 else newline
    if _MAYBE_ANSWER_SAME_LINE.search(text, after, line_end):
        return True
    below = text[line_end:stop]
    if not below.strip():
        return False
    return _MAYBE_ANSWER.search(below) is not None or len(_WORD.findall(below)) < 3


def _extend_upwards(text: str, head: re.Match[str]) -> int:
    """Start of the segment: the label's line, or the first of several such lines in a row (T4: none may remain)."""
    start = head.start()
    while (line := _line_above(text, start)) is not None:
        match = _HEAD.match(text, *line)
        number = _NUMBER.match(text, match.end(), line[1]) if match else None
        if number is None or not _REST_OK.match(text, number.end(), line[1]):
            break
        start = line[0]
    return start


def _line_above(text: str, start: int) -> tuple[int, int] | None:
    """Span of the nearest non-blank line above the line that begins at `start`; None if there is none or it is long."""
    if start == 0 or text[start - 1] != "\n":
        return None
    low = max(0, start - MAX_LINE_CHARS)
    end = low + len(text[low:start].rstrip())
    begin = text.rfind("\n", low, end) + 1
    if end == low or (begin == 0 and low > 0):
        return None
    return begin, end
