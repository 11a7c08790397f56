"""The expected confidence from top log-probs along the sampled path: what an endpoint allows.

Only the path that was sampled is known, with a few alternatives at each of its tokens. An alternative leaves the path
with a known beginning, say `0.7` where `0.6` was sampled; what would have followed it is not known, and is taken to be
worth what follows on the sampled path (0.7 + the mean of the second decimal after `0.6`). So the first decimal's
distribution, which carries most of the value, is exact up to the top-k cut. What is no number in [0, 1], what top-k
leaves out, and the decimals that a sampled `1.00` hides are missing mass; the value is normalised over the rest, and
absent where more than half is missing.

Endpoints are taken to report log-probs at temperature 1 (as OpenAI's and vLLM's do by default); the mean at the
sampling's temperature and top-p follows from them (`decoding`). Exact where the second decimal does not depend on the
first; how far off it is otherwise is measured in the tests and in the documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caopd_verl.core.confidence import parse
from caopd_verl.evaluation.readouts.decoding import Decoding, decoded_weights
from caopd_verl.evaluation.rows.row import APPROXIMATE, Readout

_NUMBER = re.compile(r"([01]?(?:\.[0-9]*)?)(.*)", re.DOTALL | re.ASCII)
# With less of the distribution in sight there is no readout: the largest error on the demo's models was 0.90 without
# this bound (an improbable 1.00 was drawn, which hides the decimals of all the rest) and 0.05 with it.
MIN_SEEN = 0.5
_MAX_TOKENS = 12
_PLACES = 2


@dataclass(frozen=True)
class TokenStep:
    """One sampled token: text, log-probability (nats), and the alternatives' log-probabilities by their text."""

    text: str
    log_prob: float
    top: Mapping[str, float]


def approximate_expected(text: str, steps: Sequence[TokenStep], decoding: Decoding) -> Readout:
    """The readout of one response.

    Args:
        text: the response.
        decoding: how it was sampled.
        steps: its tokens; may have more than the text spells (an end-of-turn token) and may be empty.
    """
    if not steps:
        return Readout(reason="the responses came without log-probabilities")
    stated = parse(text)
    if stated.value_start is None or stated.value_end is None:
        return Readout(reason=f"confidence {stated.status}: no number to read")
    if stated.value is None:
        return Readout(reason=f"confidence {stated.status}")
    if "%" in text[stated.value_end : stated.value_end + 2]:
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
        return Readout(
            mass=mass, reason="less than half of the probability was seen along the sampled path"
        )
    value = at_one if decoding.as_model else path.mean(decoding)[0]
    return Readout(
        min(1.0, max(0.0, value)), min(mass, 1.0), APPROXIMATE, value_t1=min(1.0, max(0.0, at_one))
    )


def _token_at(text: str, steps: Sequence[TokenStep], position: int) -> tuple[int, str] | None:
    """The token that holds the character at `position`, and that token's text before it."""
    at = 0
    for i, step in enumerate(steps):
        if not text.startswith(step.text, at) and at + len(step.text) <= len(text):
            return None
        if at + len(step.text) > position:
            return i, step.text[: position - at]
        at += len(step.text)
    return None


@dataclass(frozen=True)
class _Path:
    """The sampled number, and its tokens: what they spell before each of them, and the step."""

    number: str
    tokens: list[tuple[str, TokenStep]]

    def mean(self, decoding: Decoding | None) -> tuple[float, float]:
        """The mean of the numbers that the path and its alternatives spell, and the probability that they hold.

        With `decoding` None at temperature 1; else every token is drawn among the candidates as decoding does.
        """
        value, mass = float(self.number), 1.0  # at the end of the path, then backwards
        after = self.number
        for i, (start, step) in reversed(list(enumerate(self.tokens))):
            values, log_probs = [value], [step.log_prob + _log(mass)]
            for other, log_prob in step.top.items():
                if other == step.text:
                    continue
                beginning = start + (other.lstrip() if i == 0 else other)
                worth = _value(
                    beginning,
                    self.number,
                    ended=start == self.number,
                    like=after,
                    offset=value - (_base(after) or 0.0),
                )
                if worth is not None:
                    values.append(worth)
                    log_probs.append(log_prob)
            chances = [math.exp(log_prob) for log_prob in log_probs]
            mass = sum(chances)
            if decoding is not None:
                log_probs[0] = step.log_prob  # whatever follows is one of the candidates again
                chances = decoded_weights(log_probs, decoding).tolist()
            total = sum(chances)
            if total > 0.0:
                value = sum(c * v for c, v in zip(chances, values, strict=True)) / total
            after = start
        return value, mass


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf


def _path(steps: Sequence[TokenStep], index: int, before: str, number: str) -> _Path:
    """The tokens of the number, the first of them the one at `index` without the text `before` the number."""
    tokens: list[tuple[str, TokenStep]] = []
    spelled = ""
    for i, step in enumerate(steps[index : index + _MAX_TOKENS]):
        tokens.append((spelled, step))
        spelled += step.text[len(before) :] if i == 0 else step.text
        if len(spelled) > len(number) or (spelled == number and _decimals(number) >= _PLACES):
            break
    return _Path(number, tokens)


def _value(beginning: str, number: str, *, ended: bool, like: str, offset: float) -> float | None:
    """What an alternative that leaves the sampled path with this beginning is worth; None where it is no number.

    `offset` is what follows `like`, the path's text after the same step, is worth on average.
    """
    if ended and not beginning[len(number) : len(number) + 1].isdigit():
        return float(number)
    match = _NUMBER.fullmatch(beginning)
    base = _base(match[1]) if match and match[1] else None
    if match is None or base is None or match[2][:1].isdigit() or match[2].lstrip().startswith("%"):
        return None
    if base == 1.0 or match[2] or ended:
        return base if base <= 1.0 else None
    if not _decimals(match[1]) and number.startswith("1"):
        return None  # the sampled 1.00 says nothing about the decimals after "0."
    same_place = _decimals(match[1]) == _decimals(like[: len(number)])
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
