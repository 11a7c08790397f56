"""The cheap alternatives to training: post-hoc scaling of the stated confidence, self-consistency.

* `temperature`: sigmoid(logit(c) / T), T > 0 by least NLL. `platt`: sigmoid(a logit(c) + b).
  `isotonic`: the best non-decreasing step function. Each is fitted on a validation part of the
  questions and evaluated on the rest; logits are taken of confidences clipped as for the NLL. Needs
  scikit-learn (the `eval` extra).
* `self_consistency`: the share of a question's n samples that give the row's answer, itself
  included. No training either, but n times the cost of sampling.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.formulas import clipped_logs
from caopd_verl.evaluation.metrics.inputs import BoolArray, FloatArray

Calibrator = Callable[[FloatArray], FloatArray]
Method = Literal["temperature", "platt", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)


def fit(method: Method, confidence: FloatArray, correct: BoolArray) -> Calibrator:
    """A map from confidences to calibrated ones (both float64, shape [n], in [0, 1]).

    Args:
        method: how it is scaled.
        confidence, correct: the rows that it is fitted on, each of shape [n].

    Raises:
        ConfigError: unknown method; no rows, or all correct or all wrong; no scikit-learn.
    """
    if method not in METHODS:
        raise ConfigError(
            f"unknown method {method!r}", where="posthoc", expected="one of " + ", ".join(METHODS)
        )
    values = np.asarray(confidence, dtype=np.float64)
    outcomes = np.asarray(correct, dtype=np.bool_)
    n_correct = int(outcomes.sum())
    if n_correct in (0, len(values)):
        raise ConfigError(
            f"{method} scaling can't be fitted on {len(values)} rows of which {n_correct} are "
            "correct",
            where="posthoc",
            expected="correct and wrong rows",
        )
    if method == "isotonic":
        return _isotonic(values, outcomes)
    return _logistic(values, outcomes, shifted=method == "platt")


def _isotonic(values: FloatArray, outcomes: BoolArray) -> Calibrator:
    regression = _sklearn("isotonic").IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    regression.fit(values, outcomes.astype(np.float64))
    return lambda confidence: np.asarray(regression.predict(confidence), dtype=np.float64)


def _logistic(values: FloatArray, outcomes: BoolArray, *, shifted: bool) -> Calibrator:
    # C=1e9: without the penalty on large slopes that is scikit-learn's default.
    regression = _sklearn("linear_model").LogisticRegression(
        C=1e9, fit_intercept=shifted, tol=1e-8, max_iter=1000
    )
    regression.fit(_logit(values)[:, None], outcomes)
    slope, shift = float(regression.coef_[0, 0]), 0.0
    if shifted:
        shift = float(regression.intercept_[0])
    else:
        # A slope below 0 is no temperature: the best one left is infinite, which says 0.5 to all.
        slope = max(slope, 0.0)

    def apply(confidence: FloatArray) -> FloatArray:
        scaled = slope * _logit(confidence) + shift
        return 1.0 / (1.0 + np.exp(-scaled))

    return apply


def split_groups(groups: Sequence[Hashable], *, fraction: float, seed: int) -> BoolArray:
    """True for the rows (shape [n]) whose question belongs to the validation part.

    A hash of seed and question decides, so that the part of a question does not depend on which
    other questions there are.

    Args:
        groups: the question of each row.
        fraction: share of the questions in the validation part, in (0, 1).
        seed: of the choice.

    Raises:
        ConfigError: `fraction` outside (0, 1).
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(
            f"the fraction is {fraction}", where="posthoc fraction", expected="a number in (0, 1)"
        )
    chosen = {group: _uniform(group, seed) < fraction for group in set(groups)}
    return np.array([chosen[group] for group in groups], dtype=np.bool_)


def _uniform(group: Hashable, seed: int) -> float:
    """A number in [0, 1) that depends on both alone."""
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def self_consistency(
    groups: Sequence[Hashable], answers: Sequence[str | None]
) -> list[float | None]:
    """For each row the share of its question's rows that give its answer.

    None for a row without an answer, and for all rows of a question that was sampled once.

    Args:
        groups: the question of each row.
        answers: the answer of each row as the verifier read it.
    """
    sizes = Counter(groups)
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for group, answer in zip(groups, answers, strict=True):
        if answer is not None:
            counts[group][answer] += 1
    shares: list[float | None] = []
    for group, answer in zip(groups, answers, strict=True):
        if answer is None or sizes[group] < 2:
            shares.append(None)
        else:
            shares.append(counts[group][answer] / sizes[group])
    return shares


def _logit(values: FloatArray) -> FloatArray:
    log_right, log_wrong = clipped_logs(values)
    return log_right - log_wrong


def _sklearn(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{name}")
    except ImportError:
        raise ConfigError(
            "post-hoc scaling needs scikit-learn, which is not installed",
            where="posthoc",
            fix="pip install '.[eval]' in a checkout of caopd_verl",
        ) from None
