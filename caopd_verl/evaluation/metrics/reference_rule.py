"""What the paper's published code would print for these responses, quirks included.

For comparison with the paper's tables only. Reference: SalesforceAIResearch/CaOPD, folder eval/
(its behaviour is described here, nothing is copied). What differs from `calibration_metrics`:

* Bins: NumPy's float edges linspace(0, 1, n + 1), closed on the left, so that 0.3, 0.6 and 0.7 fall
  one bin lower.
* A response without a readable confidence counts with confidence 0.0 in every figure. So a wrong
  answer whose confidence cannot be read counts as perfectly calibrated.
* SPR is 0.0, not undefined, where all rows are correct or all are wrong.
* Reading (`reference_confidence`): the last `Confidence:` in any case that a run of digits and dots
  follows, clamped to [0, 1], so `90%` and `85` read 1.0; `**Confidence:** 0.9` and `-0.5` are not
  read; then `<confidence>` tags, where a value above 10 or with `%` is divided by 100 and one from
  1 to 10 by 10. A number such as `0.9.` makes the reference raise ValueError and stop; here it
  counts as unreadable, and `n_reference_crashes` says how often.

    python -c "from caopd_verl.evaluation.metrics.reference_rule import reference_confidence
    print(reference_confidence('Confidence: 90%'))"
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from caopd_verl.config import Missing
from caopd_verl.evaluation.metrics import formulas
from caopd_verl.evaluation.metrics.formulas import first_of_each, table_of
from caopd_verl.evaluation.metrics.inputs import check_bins, read_rows

Reading = Literal["read", "unread", "crash"]

_LINE = re.compile(r"confidence:\s*([\d.]+)", re.IGNORECASE)
_TAG, _TAG_END = "<confidence>", "</confidence>"
_TAG_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_OPEN_TAG = re.compile(r"<confidence>\s*(\d+(?:\.\d+)?)(\s*%)?")


def reference_confidence(text: str) -> tuple[float, Reading]:
    """What the reference reads in `text` (0.0 where it reads nothing), and how that went."""
    lines = _LINE.findall(text)
    if lines:
        number = lines[-1]
        if number.count(".") > 1 or number == ".":
            return 0.0, "crash"  # `float` raises here, and the reference does not catch it
        return min(1.0, float(number)), "read"
    inside = _last_closed_tag(text)
    if inside is not None:
        found = _TAG_NUMBER.search(inside)
        if found is None:
            return 0.0, "unread"
        return _rescale(float(found[0]), "%" in inside), "read"
    opened = list(_OPEN_TAG.finditer(text))
    if opened:
        number, percent = opened[-1].groups()
        return _rescale(float(number), bool(percent)), "read"
    return 0.0, "unread"


def _last_closed_tag(text: str) -> str | None:
    """The text of the last closed tag, each opening tag reaching to the next closing one."""
    # By `find`, not by a regular expression: that one takes quadratic time on many open tags.
    inside, position = None, 0
    while True:
        start = text.find(_TAG, position)
        end = text.find(_TAG_END, start) if start >= 0 else -1
        if end < 0:
            return inside
        inside = text[start + len(_TAG) : end].strip()
        position = end + len(_TAG_END)


def _rescale(value: float, percent: bool) -> float:
    if percent or value > 10:
        return value / 100.0
    return value if 0.0 <= value <= 1.0 else value / 10.0


def reference_metrics(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_bins: int
) -> dict[str, float | int]:
    """The reference's figures: n, acc, mean_conf, ece, brier, ocg, spr; without rows only n.

    Args:
        confidence: for each row a number in [0, 1]; None counts as 0.0.
        correct: for each row the verdict.
        n_bins: bins of the ECE (the reference uses 10).

    Raises:
        DataError, ConfigError: as `calibration_metrics`.
    """
    check_bins(n_bins)
    rows = read_rows(confidence, correct).scored(Missing.zero)
    table = table_of(rows.confidence, rows.correct)
    n = len(rows.correct)
    if not n:
        return {"n": 0}
    inner_edges = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    starts = first_of_each(np.digitize(table.values, inner_edges))
    means = formulas.means(table)
    ece = formulas.ece(formulas.bins_of(table, starts))
    spr = formulas.separation(table).spr
    return {
        "n": n,
        "acc": means.acc,
        "mean_conf": means.mean_conf,
        "ece": float(ece),
        "brier": means.brier,
        "ocg": formulas.overconfidence_gap(means.mean_conf, means.acc),
        "spr": 0.0 if math.isnan(spr) else spr,
    }


def compat_summary(
    read: Sequence[tuple[float, str]], correct: Sequence[bool], *, n_bins: int
) -> dict[str, Any]:
    """The reference's figures of all rows and, as `read_only`, of those that it can read.

    Args:
        read: for each row what `reference_confidence` gave.
        correct: for each row the verdict.
        n_bins: as in `reference_metrics`.
    """
    values, readings = [], []
    only_values, only_correct = [], []
    for (value, reading), verdict in zip(read, correct, strict=True):
        values.append(value)
        readings.append(reading)
        if reading == "read":
            only_values.append(value)
            only_correct.append(verdict)
    return {
        **reference_metrics(values, correct, n_bins=n_bins),
        "n_read": len(only_values),
        "n_reference_crashes": readings.count("crash"),
        "read_only": reference_metrics(only_values, only_correct, n_bins=n_bins),
    }
