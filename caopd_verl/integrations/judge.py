"""What the harnesses share: judging a response, and figures from (confidence, correct) pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from caopd_verl.core.confidence import parse
from caopd_verl.errors import DataError
from caopd_verl.evaluation.metrics.calibration import METRIC_NAMES, calibration_metrics
from caopd_verl.evaluation.settings import DEFAULTS
from caopd_verl.types import Example, Messages
from caopd_verl.verifiers import get_verifier

Pair = tuple[float | None, bool]
"""Stated confidence (None where none could be read) and verdict."""


@dataclass(frozen=True)
class Judged:
    """One response.

    Attributes:
        correct, reason: the verdict, and why.
        answer: as read from the response; None where there was none.
        confidence, confidence_status: the stated confidence, and how it was parsed.
    """

    correct: bool
    reason: str
    answer: str | None
    confidence: float | None
    confidence_status: str

    @property
    def pair(self) -> Pair:
        """What the metrics need of it."""
        return self.confidence, self.correct


def judge(response: str, gold: str, verifier: str) -> Judged:
    """Judge `response` as training and `caopd eval` do; never raises on a response, however odd.

    Raises:
        ConfigError: unknown verifier.
        DataError: an unusable gold answer.
    """
    verdict = get_verifier(verifier)(response, gold)
    stated = parse(response)
    return Judged(verdict.correct, verdict.reason, verdict.answer, stated.value, stated.status)


def figure(name: str, pairs: Sequence[Pair]) -> float:
    """The metric `name` of `evaluation.metrics` over all pairs, with `caopd eval`'s defaults.

    NaN where it is undefined, since the harnesses want a number: SPR, AUROC and tie rate where all
    rows are correct or all wrong, everything where no row carries a confidence. Never 0, which
    would read as the worst ranking there is.

    Raises:
        KeyError: no such metric.
        DataError: a confidence outside [0, 1].
    """
    if name not in METRIC_NAMES:
        raise KeyError(name)
    summary = DEFAULTS.summary
    confidences = [confidence for confidence, _ in pairs]
    verdicts = [correct for _, correct in pairs]
    values = calibration_metrics(
        confidences, verdicts, n_bins=summary.n_bins, missing=summary.missing
    )
    value = values[name]
    return math.nan if value is None else float(value)


def system_and_question(example: Example) -> tuple[str, str]:
    """The system message ("" where there is none) and the user's question.

    Apart, since the harnesses build the chat anew.

    Raises:
        DataError: a question of several turns, which they can't ask.
    """
    messages: Messages = list(example.messages)
    system = ""
    if messages and messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise DataError(
            "the question has several turns", where=example.where, expected="one user message"
        )
    return system, messages[0]["content"]
