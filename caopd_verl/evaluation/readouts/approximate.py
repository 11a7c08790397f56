"""The expected confidence from top log-probs along the sampled path: what an endpoint allows.

Only the path that was sampled is known, with a few alternatives at each of its tokens. An
alternative leaves the path with a known beginning, say `0.7` where `0.6` was sampled; what would
have followed it is not known, and is taken to be worth what follows on the sampled path (0.7 + the
mean of the second decimal after `0.6`). So the first decimal's distribution, which carries most of
the value, is exact up to the top-k cut. What is no number in [0, 1], what top-k leaves out, and the
decimals that a sampled `1.00` hides are missing mass; the value is normalised over the rest, and
absent where more than half is missing.

Endpoints are taken to report log-probs at temperature 1 (as OpenAI's and vLLM's do by default); the
mean at the sampling's temperature and top-p follows from them (`decoding`). Exact where the second
decimal does not depend on the first; how far off it is otherwise is measured in the tests and in
the documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from caopd_verl.core.confidence import parse
from caopd_verl.evaluation.readouts.decoding import Decoding, decoded_weights
from caopd_verl.evaluation.readouts.readout import APPROXIMATE, NO_LOG_PROBS, Readout

MIN_SEEN = 0.5
"""With less of the distribution in sight there is no readout.

The largest error on the demo's models was 0.90 without this bound (an improbable 1.00 was drawn,
which hides the decimals of all the rest) and 0.05 with it.
"""

_NUMBER = re.compile(r"(?P<number>[01]?(?:\.[0-9]*)?)(?P<rest>.*)", re.DOTALL | re.ASCII)
_MAX_TOKENS = 12  # "0." and more decimals than any model states
_DECIMALS = 2  # after so many the number is complete: the format has no more


@dataclass(frozen=True)
class TokenStep:
    """One sampled token: its text and log-probability (nats), and those of its alternatives."""

    text: str
    log_prob: float
    top: Mapping[str, float]


def approximate_expected(text: str, steps: Sequence[TokenStep], decoding: Decoding) -> Readout:
    """The readout of one response.

    Args:
        text: the response.
        steps: its tokens; may have more than the text spells (an end-of-turn token) and may be
            empty.
        decoding: how it was sampled.
    """
    if not steps:
        return NO_LOG_PROBS
    stated = parse(text)
    if stated.value_start is None or stated.value_end is None:
        return Readout(reason=f"confidence {stated.status}: no number to read")
    if stated.value is None:
        return Readout(reason=f"confidence {stated.status}")
    behind = text[stated.value_end : stated.value_end + 2]
    if "%" in behind:
        return Readout(reason="the confidence is a percentage: only 0.00 to 1.00 is read")
    first = _token_at(text, steps, stated.value_start)
    if first is None:
        return Readout(reason="the tokens do not spell the response")
    if not any(step.top for step in steps):
        return Readout(reason="the log-probabilities came without alternatives")
    index, before = first
    path = _path(steps, index, before, text[stated.value_start : stated.value_end])
    at_one, mass = path.mean(None)
    if mass < MIN_SEEN:
        reason = "less than half of the probability was seen along the sampled path"
        return Readout(mass=mass, reason=reason)
    value = at_one if decoding.as_model else path.mean(decoding)[0]
    return Readout(_clipped(value), min(mass, 1.0), APPROXIMATE, value_t1=_clipped(at_one))


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _token_at(text: str, steps: Sequence[TokenStep], position: int) -> tuple[int, str] | None:
    """The token that holds the character at `position`, and that token's text before it."""
    at = 0
    for i, step in enumerate(steps):
        after = at + len(step.text)
        # The last token may hold more than the text, from which blanks were stripped.
        if not text.startswith(step.text, at) and after <= len(text):
            return None
        if after > position:
            return i, step.text[: position - at]
        at = after
    return None


@dataclass(frozen=True)
class _Path:
    """The sampled number, and its tokens: what they spell before each of them, and the step."""

    number: str
    tokens: list[tuple[str, TokenStep]]

    def mean(self, decoding: Decoding | None) -> tuple[float, float]:
        """The mean of the numbers that the path and its alternatives spell, and their probability.

        With `decoding` None at temperature 1; else every token is drawn among the candidates as
        decoding does.
        """
        # From the end of the path backwards: what follows a token is known before the token.
        value, mass = float(self.number), 1.0
        after = self.number
        for i in reversed(range(len(self.tokens))):
            start, step = self.tokens[i]
            offset = value - (_base(after) or 0.0)
            values = [value]
            log_probs = [step.log_prob + _log(mass)]
            for worth, log_prob in self._alternatives(i, like=after, offset=offset):
                values.append(worth)
                log_probs.append(log_prob)
            chances = [math.exp(log_prob) for log_prob in log_probs]
            mass = sum(chances)
            if decoding is not None:
                # Whatever follows the sampled token is one of the candidates again.
                log_probs[0] = step.log_prob
                chances = decoded_weights(log_probs, decoding).tolist()
            total = sum(chances)
            if total > 0.0:
                weighted = [c * v for c, v in zip(chances, values, strict=True)]
                value = sum(weighted) / total
            after = start
        return value, mass

    def _alternatives(self, i: int, *, like: str, offset: float) -> Iterator[tuple[float, float]]:
        """Worth and log-probability of each alternative at token `i` that spells a number."""
        start, step = self.tokens[i]
        for other, log_prob in step.top.items():
            if other == step.text:
                continue
            # The first token may bring the blank before the number with it.
            beginning = start + (other.lstrip() if i == 0 else other)
            ended = start == self.number
            worth = _value(beginning, self.number, ended=ended, like=like, offset=offset)
            if worth is not None:
                yield worth, log_prob


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf


def _path(steps: Sequence[TokenStep], index: int, before: str, number: str) -> _Path:
    """The tokens of the number, the first at `index` without the text `before` the number."""
    tokens: list[tuple[str, TokenStep]] = []
    spelled = ""
    for i, step in enumerate(steps[index : index + _MAX_TOKENS]):
        tokens.append((spelled, step))
        spelled += step.text.removeprefix(before) if i == 0 else step.text
        complete = spelled == number and _decimals(number) >= _DECIMALS
        # A shorter number may go on: the token behind it is looked at too.
        if complete or len(spelled) > len(number):
            break
    return _Path(number, tokens)


def _value(beginning: str, number: str, *, ended: bool, like: str, offset: float) -> float | None:
    """What an alternative that leaves the sampled path is worth; None where it is no number.

    Args:
        beginning: the number as the alternative begins it.
        number: as it was sampled.
        ended: whether the alternative stands behind the sampled number.
        like: the path's text after the same step.
        offset: what follows `like` on the path is worth so much on average.
    """
    if ended and not beginning[len(number) : len(number) + 1].isdigit():
        return float(number)
    match = _NUMBER.fullmatch(beginning)
    if match is None or not match["number"]:
        return None
    base, rest = _base(match["number"]), match["rest"]
    if base is None or rest[:1].isdigit() or rest.lstrip().startswith("%"):
        return None
    if base == 1.0 or rest or ended:
        return base if base <= 1.0 else None
    decimals = _decimals(match["number"])
    if not decimals and number.startswith("1"):
        return None  # the sampled 1.00 says nothing about the decimals after "0."
    same_place = decimals == _decimals(like[: len(number)])
    value = base + (offset if same_place else 0.0)
    return value if 0.0 <= value <= 1.0 else None


def _base(text: str) -> float | None:
    """The number that the digits so far are; 0.0 for none yet, None for what is no number."""
    try:
        return float(text) if text.strip(".") else 0.0
    except ValueError:
        return None


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])
