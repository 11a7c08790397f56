"""What a readout says of one response: a confidence, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReadoutKind = Literal["exact", "approximate"]
EXACT: ReadoutKind = "exact"
APPROXIMATE: ReadoutKind = "approximate"


@dataclass(frozen=True)
class Readout:
    """The expected confidence (or P(True)) of one response.

    Attributes:
        value: in [0, 1], as decoding draws it; None where there is none.
        mass: the probability, in [0, 1], of everything that the value is a mean of. A low one says
            that the value describes a corner of the model's distribution.
        kind: exact, or approximate where only the sampled path's alternatives were known.
        reason: why there is no value.
        value_t1: the value at temperature 1.
    """

    value: float | None = None
    mass: float | None = None
    kind: str | None = None
    reason: str | None = None
    value_t1: float | None = None


NO_LOG_PROBS = Readout(reason="the responses came without log-probabilities")
