"""What the paper's published evaluation code would print for these responses, quirks included, for comparison only.

Reference: SalesforceAIResearch/CaOPD, eval/ (behaviour described here, nothing copied). What differs from `metrics`:

* Bins: NumPy's float edges linspace(0, 1, n + 1), closed on the left, so 0.3, 0.6 and 0.7 fall one bin lower (T31).
* A response without a readable confidence counts with confidence 0.0 in every figure (T29).
* SPR is 0.0, not undefined, where all rows are correct or all are wrong (T30).
* Reading (`reference_confidence`): the last `Confidence:` in any case that a run of digits and dots follows, clamped to
  [0, 1], so `90%` and `85` read 1.0; `**Confidence:** 0.9` and `-0.5` are not read; then `<confidence>` tags, where a
  value above 10 or with `%` is divided by 100 and one from 1 to 10 by 10. A number such as `0.9.` makes the reference
  raise ValueError and stop; here it counts as unreadable, and `n_reference_crashes` says how often.

    python -c "from caopd_verl.evaluation.metrics.reference_rule import *; print(reference_confidence('Confidence: 90%'))"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from caopd_verl.evaluation.metrics.calibration import _check_bins, _columns, _separation

_LINE = re.compile(r"confidence:\s*([\d.]+)", re.IGNORECASE)
_TAG, _TAG_END = "<confidence>", "</confidence>"
_TAG_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_OPEN_TAG = re.compile(r"<confidence>\s*(\d+(?:\.\d+)?)(\s*%)?")
READ, UNREAD, CRASH = "read", "unread", "crash"


def reference_confidence(text: str) -> tuple[float, str]:
    """What the reference reads in `text`: the value (0.0 where it reads nothing) and `read`, `unread` or `crash`."""
    lines = _LINE.findall(text)
    if lines:
        number = lines[-1]
        if number.count(".") > 1 or number == ".":
            return 0.0, CRASH
        return min(1.0, float(number)), READ
    inside = _last_closed_tag(text)
    if inside is not None:
        found = _TAG_NUMBER.search(inside)
        return (_rescale(float(found[0]), "%" in inside), READ) if found else (0.0, UNREAD)
    opened = list(_OPEN_TAG.finditer(text))
    if opened:
        return _rescale(float(opened[-1][1]), bool(opened[-1][2])), READ
    return 0.0, UNREAD


def _last_closed_tag(text: str) -> str | None:
    """The text of the last closed tag, each opening tag reaching to the next closing one."""
    inside, position = None, 0
    while (start := text.find(_TAG, position)) >= 0 and (end := text.find(_TAG_END, start)) >= 0:
        inside, position = text[start + len(_TAG) : end].strip(), end + len(_TAG_END)
    return inside


def _rescale(value: float, percent: bool) -> float:
    if percent or value > 10:
        return value / 100.0
    return value if 0.0 <= value <= 1.0 else value / 10.0


def reference_metrics(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_bins: int
) -> dict[str, float | int]:
    """The reference's figures: n, acc, mean_conf, ece, brier, ocg, spr. None in `confidence` counts as 0.0.

    Raises:
        DataError, ConfigError: as `metrics.calibration_metrics`; DataError too where there are no rows.
    """
    _check_bins(n_bins)
    values, _, outcomes = _columns(confidence, correct)
    n = len(values)
    if not n:
        return {"n": 0}
    edges = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    bins = np.digitize(values, edges, right=False)
    conf_sums = np.bincount(bins, weights=values, minlength=n_bins)
    right_sums = np.bincount(bins, weights=outcomes, minlength=n_bins)
    spr = _separation(values, outcomes)["spr"]
    acc, mean_conf = float(outcomes.mean()), float(values.mean())
    return {
        "n": n,
        "acc": acc,
        "mean_conf": mean_conf,
        "ece": float(np.abs(conf_sums - right_sums).sum() / n),
        "brier": float(((values - outcomes) ** 2).mean()),
        "ocg": mean_conf - acc,
        "spr": 0.0 if spr is None else spr,
    }


def compat_summary(
    read: Sequence[tuple[float, str]], correct: Sequence[bool], *, n_bins: int
) -> dict[str, Any]:
    """`reference_metrics` over what `reference_confidence` read, and over the rows it could read alone."""
    keep = [i for i, (_, how) in enumerate(read) if how == READ]
    return {
        **reference_metrics([value for value, _ in read], correct, n_bins=n_bins),
        "n_read": len(keep),
        "n_reference_crashes": sum(how == CRASH for _, how in read),
        "read_only": reference_metrics(
            [read[i][0] for i in keep], [correct[i] for i in keep], n_bins=n_bins
        ),
    }
