"""The cheap alternatives to training: post-hoc scaling of the stated confidence, and self-consistency.

* `temperature`: sigmoid(logit(c) / T), T > 0 by least NLL. `platt`: sigmoid(a logit(c) + b). `isotonic`: the best
  non-decreasing step function. Each is fitted on a validation part of the questions and evaluated on the rest; logits
  are taken of confidences clipped to [0.005, 0.995], as for the NLL. Needs scikit-learn (the `eval` extra).
* `self_consistency`: the share of a question's n samples that give the row's answer, itself included. No training
  either, but n times the cost of sampling.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.calibration import BoolArray, FloatArray
from caopd_verl.evaluation.metrics.table import NLL_CLIP

Calibrator = Callable[[FloatArray], FloatArray]
METHODS = ("temperature", "platt", "isotonic")


def fit(method: str, confidence: FloatArray, correct: BoolArray) -> Calibrator:
    """A map from confidences to calibrated ones (both float64, shape [n], in [0, 1]), fitted on these rows.

    Raises:
        ConfigError: unknown method; no rows; all rows correct or all wrong; scikit-learn is missing.
    """
    if method not in METHODS:
        raise ConfigError(
            f"unknown method {method!r}", where="posthoc", expected="one of " + ", ".join(METHODS)
        )
    values, outcomes = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    if not len(values) or outcomes.all() or not outcomes.any():
        raise ConfigError(
            f"{method} scaling can't be fitted on {len(values)} rows of which {int(outcomes.sum())} are correct",
            where="posthoc",
            expected="correct and wrong rows",
        )
    if method == "isotonic":
        isotonic = _sklearn("isotonic").IsotonicRegression(
            y_min=0.0, y_max=1.0, out_of_bounds="clip"
        )
        isotonic.fit(values, outcomes.astype(np.float64))
        return lambda c: np.asarray(isotonic.predict(c), dtype=np.float64)
    model = _sklearn("linear_model").LogisticRegression(
        C=1e9, fit_intercept=method == "platt", tol=1e-8, max_iter=1000
    )
    model.fit(_logit(values)[:, None], outcomes)
    # A slope below 0 is no temperature: the best one left is infinite, which says 0.5 to everything.
    slope = float(model.coef_[0, 0]) if method == "platt" else max(float(model.coef_[0, 0]), 0.0)
    shift = float(model.intercept_[0]) if method == "platt" else 0.0
    return lambda c: 1.0 / (1.0 + np.exp(-(slope * _logit(c) + shift)))


def split_groups(groups: Sequence[Hashable], *, fraction: float, seed: int) -> BoolArray:
    """True for the rows (shape [n]) whose question belongs to the validation part: by a hash of seed and question.

    Raises:
        ConfigError: `fraction` outside (0, 1).
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(
            f"the fraction is {fraction}", where="posthoc fraction", expected="a number in (0, 1)"
        )
    chosen = {
        g: int.from_bytes(hashlib.sha256(f"{seed}\n{g}".encode()).digest()[:8], "big") / 2**64
        < fraction
        for g in set(groups)
    }
    return np.array([chosen[g] for g in groups], dtype=np.bool_)


def self_consistency(
    groups: Sequence[Hashable], answers: Sequence[str | None]
) -> list[float | None]:
    """For each row the share of its question's rows that give its answer; None for a row without an answer, and for all
    rows of a question that was sampled once."""
    sizes = Counter(groups)
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for group, answer in zip(groups, answers, strict=True):
        if answer is not None:
            counts[group][answer] += 1
    return [
        None if answer is None or sizes[group] < 2 else counts[group][answer] / sizes[group]
        for group, answer in zip(groups, answers, strict=True)
    ]


def _logit(values: FloatArray) -> FloatArray:
    clipped = np.clip(values, NLL_CLIP, 1.0 - NLL_CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def _sklearn(name: str):
    from importlib import import_module

    try:
        return import_module(f"sklearn.{name}")
    except ImportError:
        raise ConfigError(
            "post-hoc scaling needs scikit-learn, which is not installed",
            where="posthoc",
            fix="pip install '.[eval]' in a checkout of caopd_verl",
        ) from None
