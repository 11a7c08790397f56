r"""The confidence line of a response: how it is written, read and found.

A response ends with one line such as `Confidence: 0.62` (appendix B.2 of arXiv 2604.16830).
Training, verification and evaluation all read it here, so that they cannot disagree about what a
response states, or about where its answer ends.

    >>> text = "2 is prime.\n<answer>B</answer>\n**Confidence:** 90%\n"
    >>> parsed = parse(text)
    >>> parsed.status, parsed.value
    ('ok', 0.9)
    >>> text[parsed.start : parsed.end]  # what a revision replaces
    '**Confidence:** 90%\n'
    >>> text[parsed.value_start : parsed.value_end]
    '90'

    python -m doctest caopd_verl/core/confidence.py

How the line is found. The label stands at the beginning of a line (markdown emphasis, `>`, `#`,
`-` and blanks may precede it) or right behind a closing `</answer>`. Of several such lines the last
one counts: cutting at the first "confidence:" would cut the answer away wherever the reasoning
speaks of confidence. Several confidence lines in a row are one segment.

What it may say, by status:

* `ok`: `Confidence: 0.62`, `confidence: .85`, `**Confidence:** 0.9`, `Confidence: 0.9.`,
  `Confidence level: 0.9`, `Confidence: 90%` (0.9; a percentage needs its sign), and
  `Confidence : 0 . 62` (some tokenizers put blanks around punctuation).
* `out_of_range`: a number outside [0, 1] without `%`, or a percentage outside [0, 100]. It is never
  rescaled or clamped, since nobody knows what was meant.
* `malformed`: the label without a number (`Confidence: high`) or without its colon
  (`Confidence 0.9`), the tag `<confidence>0.9</confidence>`, which no prompt asks for, or anything
  but white space and markdown behind the number.
* `missing`: no such line.

Only `ok` has a value; the others have None, and it is for the caller to count them. Averaged in as
a confidence of 0 they would make a wrong answer look perfectly calibrated.

What may be lost. Text below the confidence line is replaced together with the line only if it is
plain chatter ("I hope this helps!"). Where it might hold the answer (`<answer>`, `Action:`, a
digit, fewer than three words, ...) nothing is cut: the status is `malformed`, and the segment is
empty and lies at the end of the text, so that a revision appends.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from caopd_verl.errors import RevisionError

LABEL = "Confidence:"

SEARCH_CHARS = 512
"""The label of a segment begins within so many characters of the end of the right-stripped text;
whatever stands above is prose."""

MAX_LINE_CHARS = 120
"""Only a line up to this length is taken for a repetition of the confidence line below it."""

ConfidenceStatus = Literal["ok", "missing", "malformed", "out_of_range"]

COLONS = (":", "\uff1a")  # the second is the full-width one of Chinese text
MIN_CHATTER_WORDS = 3  # fewer words than this may be an answer ("B", "It is prime")

# ASCII: other scripts' digits and letters are no part of the format, and case folding stays exact.
_FLAGS = re.ASCII | re.IGNORECASE | re.MULTILINE

# Every quantifier below is bounded, so that matching is linear in the length of any text.
_LABEL = re.compile(
    r"""
    (?: ^[ \t>#*_`\-]{0,12}            # the beginning of a line, with quote, list or emphasis
      | (?<=</answer>)[ \t*_`]{0,8}    # or the place right behind the answer
    )
    (?: (?P<tag> <[ \t]{0,2}confidence[ \t]{0,2}> )
      | confidence(?![a-z0-9])
        (?: [ \t]{1,2}(?:level|score)(?![a-z0-9]) )?
        [ \t*_`]{0,8}
        (?P<colon> [:\uff1a=]? )       # none at all and "=" are read too, as malformed
    )
    [ \t*_`]{0,8}
    """,
    _FLAGS | re.VERBOSE,
)
_NUMBER = re.compile(
    r"""
    (?P<number> [+-]?
        (?: [0-9]{1,32} (?: [ \t]?\.[ \t]?[0-9]{0,32} )?
          | \.[ \t]?[0-9]{1,32}
        )
    )
    (?P<percent> [ \t]?% )?
    """,
    _FLAGS | re.VERBOSE,
)
_END = re.compile(r"[\s.*_`]{0,32}(?:</confidence>)?[\s.*_`]{0,32}\Z", _FLAGS)
_ANSWER_BELOW = re.compile(
    r"answer|action|option|choice|boxed|result|final|solution|conclu|therefore|[<>{}\[\]\\=#0-9]",
    _FLAGS,
)
# Fewer signs on the label's own line: "0.9/1.0" and "high, since the result is clear" are still
# about the confidence.
_ANSWER_BEHIND = re.compile(r"answer|action|boxed|<(?!/confidence>)|[{}\[\]\\]", _FLAGS)
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class ParsedConfidence:
    """What a text states, and where. All positions are character offsets into that text.

    Attributes:
        value: the stated confidence in [0, 1]; None unless `status` is `ok`.
        status: see the module docstring.
        start, end: the segment that a revision replaces, from the first character of the
            confidence line (indentation and emphasis included) to the end of the text. Where there
            is nothing to replace it is empty, at `len(text.rstrip())`.
        value_start, value_end: the number without its `%`; None where there is no number.
    """

    value: float | None
    status: ConfidenceStatus
    start: int
    end: int
    value_start: int | None = None
    value_end: int | None = None

    @property
    def found(self) -> bool:
        """Whether there is a segment to replace."""
        return self.start < self.end


def render(value: float) -> str:
    """The confidence line for a value: `Confidence: 0.62` for 0.62.

    Two decimals by Python's `.2f`, which rounds the binary number: 0.125 becomes `0.12`, 0.375
    becomes `0.38`.

    Raises:
        RevisionError: `value` is NaN or outside [0, 1].
    """
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise RevisionError(
            f"a confidence of {value} cannot be written",
            expected="a number in [0, 1]",
            fix="check the target: successes / K of the prompt's group",
        )
    return f"{LABEL} {abs(value):.2f}"  # abs: -0.0 is written without its sign


def parse(text: str) -> ParsedConfidence:
    """Read the confidence that a response states at its end. The module docstring has the rules.

    Never raises, on any text, and takes time linear in its length.

    Args:
        text: a decoded response, without special tokens.
    """
    stop = len(text.rstrip())
    missing = ParsedConfidence(None, "missing", stop, stop)
    label = _last_label(text, stop)
    if label is None:
        return missing
    stated = _read_behind(label, text, stop)
    if stated.is_prose:
        return missing
    if not stated.ends_text and _may_hold_answer(text, stated.end, stop):
        if stated.number is None and not stated.is_tag:
            return missing  # "Confidence: high, since ..." with the answer below it
        return ParsedConfidence(None, "malformed", stop, stop, *stated.number_span)
    status, value = _judge(stated)
    start = _first_of_repeated_lines(text, label.start())
    return ParsedConfidence(value, status, start, len(text), *stated.number_span)


@dataclass(frozen=True)
class _Statement:
    """A label, and what stands behind it.

    Attributes:
        label: match of `_LABEL`.
        number: match of `_NUMBER` right behind it.
        ends_text: there is a number, and only white space and markdown behind it.
    """

    label: re.Match[str]
    number: re.Match[str] | None
    ends_text: bool

    @property
    def end(self) -> int:
        """Where the number ends, or the label if there is no number."""
        last = self.label if self.number is None else self.number
        return last.end()

    @property
    def number_span(self) -> tuple[int, int] | tuple[None, None]:
        return (None, None) if self.number is None else self.number.span("number")

    @property
    def is_tag(self) -> bool:
        return self.label["tag"] is not None

    @property
    def is_prose(self) -> bool:
        """Whether it only speaks of confidence: "Confidence in this result is low"."""
        has_mark = self.is_tag or bool(self.label["colon"])
        return not has_mark and not self.ends_text

    @property
    def is_well_formed(self) -> bool:
        """Whether it is a label with its colon and a number, and ends the text."""
        return self.ends_text and self.label["colon"] in COLONS  # the tag has no colon


def _last_label(text: str, stop: int) -> re.Match[str] | None:
    """The last label before `stop` that begins within `SEARCH_CHARS` of it.

    The text is searched in place, not cut, because `^` must match only where a line really begins.
    """
    last = None
    for match in _LABEL.finditer(text, max(0, stop - SEARCH_CHARS), stop):
        last = match
    return last


def _read_behind(label: re.Match[str], text: str, stop: int) -> _Statement:
    """The label's statement, in the text that ends at `stop`."""
    number = _NUMBER.match(text, label.end(), stop)
    if number is None:
        return _Statement(label, None, ends_text=False)
    rest = _END.match(text, number.end(), stop)
    return _Statement(label, number, ends_text=rest is not None)


def _judge(stated: _Statement) -> tuple[ConfidenceStatus, float | None]:
    """Status and value of a statement that nothing of importance follows."""
    number = stated.number
    if number is None or not stated.is_well_formed:
        return "malformed", None
    digits = number["number"].replace(" ", "").replace("\t", "")
    value = float(digits)
    if number["percent"]:
        value = value / 100
    if not 0.0 <= value <= 1.0:
        return "out_of_range", None
    return "ok", abs(value)  # abs: "-0" states 0.0


def _may_hold_answer(text: str, after: int, stop: int) -> bool:
    """Whether the text from `after` on may hold the answer. Chatter may be dropped, an answer not.

    The rest of the line and the lines below it are judged differently: only below the line are a
    digit or a short phrase on their own likely to be the answer.
    """
    newline = text.find("\n", after, stop)
    line_end = stop if newline < 0 else newline
    if _ANSWER_BEHIND.search(text, after, line_end):
        return True
    below = text[line_end:stop]
    if not below.strip():
        return False
    if _ANSWER_BELOW.search(below):
        return True
    return len(_WORD.findall(below)) < MIN_CHATTER_WORDS


def _first_of_repeated_lines(text: str, start: int) -> int:
    """Start of the first of the confidence lines in a row whose last one begins at `start`.

    They are replaced together: a response must not be left with two confidences.
    """
    while (line := _line_above(text, start)) is not None:
        begin, end = line
        label = _LABEL.match(text, begin, end)
        if label is None or not _read_behind(label, text, end).ends_text:
            break
        start = begin
    return start


def _line_above(text: str, start: int) -> tuple[int, int] | None:
    """Span of the nearest line above `start` that is not blank.

    None if `start` is not the beginning of a line, if there is no such line, or if it is too long
    to be a confidence line.
    """
    if start == 0 or text[start - 1] != "\n":
        return None
    window_start = max(0, start - MAX_LINE_CHARS)
    window = text[window_start:start].rstrip()
    if not window:
        return None
    end = window_start + len(window)
    newline = text.rfind("\n", window_start, end)
    if newline < 0 and window_start > 0:
        return None  # the line begins above the window
    return newline + 1, end
