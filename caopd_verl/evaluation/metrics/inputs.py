"""Rows as the metrics take them: checked, as arrays, with what becomes of missing confidences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caopd_verl.config import Missing
from caopd_verl.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ScoredRows:
    """The rows that the calibration figures are about.

    Attributes:
        places: their numbers among all rows, shape [m].
        confidence: float64 in [0, 1], shape [m].
        correct: shape [m].
    """

    places: IntArray
    confidence: FloatArray
    correct: BoolArray


@dataclass(frozen=True)
class Rows:
    """All rows, each array of shape [n].

    Attributes:
        confidence: float64 in [0, 1]; 0 where none could be read.
        parsed: whether a confidence could be read.
        correct: the verdicts.
    """

    confidence: FloatArray
    parsed: BoolArray
    correct: BoolArray

    def scored(self, missing: Missing) -> ScoredRows:
        """The rows to be scored, under the policy for those without a confidence.

        Raises:
            ConfigError: an unknown policy.
        """
        policy = missing_policy(missing)
        if policy is Missing.drop:
            places = np.flatnonzero(self.parsed)
            return ScoredRows(places, self.confidence[places], self.correct[places])
        filled = self.confidence
        if policy is Missing.worst:
            # As far from the verdict as a confidence can be.
            worst = np.where(self.correct, 0.0, 1.0)
            filled = np.where(self.parsed, self.confidence, worst)
        return ScoredRows(np.arange(len(filled)), filled, self.correct)


def read_rows(confidence: Sequence[float | None], correct: Sequence[bool]) -> Rows:
    """Check rows and turn them into arrays.

    Args:
        confidence: for each row a number in [0, 1], or None where none could be read.
        correct: for each row the verdict.

    Raises:
        DataError: unequal lengths; a confidence that is NaN or outside [0, 1], naming its row; a
            verdict that is neither true nor false.
    """
    if len(confidence) != len(correct):
        raise DataError(
            f"{len(confidence)} confidences but {len(correct)} verdicts",
            expected="one of each a row",
        )
    parsed = np.array([value is not None for value in confidence], dtype=np.bool_)
    values = np.array(confidence, dtype=np.float64)  # None becomes NaN
    in_range = (values >= 0.0) & (values <= 1.0)  # False for NaN
    bad = parsed & ~in_range
    if bad.any():
        row = int(np.argmax(bad))
        value = float(values[row])
        raise DataError(
            f"the confidence is {value!r}",
            where=f"confidence of row {row}",
            expected="a number in [0, 1], or None where none could be parsed",
            fix="read confidences with caopd_verl.core.confidence.parse",
        )
    outcomes = np.array(correct)
    # A number such as 0.5 would turn into True without a word.
    if outcomes.size and not np.isin(outcomes, (0, 1)).all():
        raise DataError("a verdict is neither true nor false", where="correct", expected="booleans")
    return Rows(np.where(parsed, values, 0.0), parsed, outcomes.astype(np.bool_))


def check_bins(n_bins: int) -> None:
    """Raise `ConfigError` unless there is at least one bin."""
    if n_bins < 1:
        raise ConfigError(f"{n_bins} bins", where="n_bins", expected="at least 1")


def missing_policy(missing: Missing) -> Missing:
    """The policy itself, also from its name. Raises `ConfigError` for an unknown one."""
    try:
        return Missing(missing)
    except ValueError:
        names = ", ".join(Missing)
        raise ConfigError(
            f"unknown policy {missing!r}", where="missing", expected=f"one of {names}"
        ) from None
