"""`metrics.json` of a run: its head, what became of each row, tokens and cost, and the figures.

One shape for an evaluation and for a training run's last validation (which adds `step`). The
figures themselves are those of `summary`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from caopd_verl.evaluation.metrics.columns import Columns
from caopd_verl.evaluation.metrics.summary import figures_of
from caopd_verl.evaluation.rows.row import Key
from caopd_verl.evaluation.rows.store import read_failures
from caopd_verl.evaluation.settings import Summary

SHOWN_REASONS = 20  # of failed rows: an endpoint can refuse in thousands of wordings


@dataclass
class Outcome:
    """What the source of a run's rows did.

    Attributes:
        expected_rows: how many rows there ought to be.
        unusable: lines of a file that are no rows.
        last_run: what the last run that asked for anything says of itself.
    """

    expected_rows: int
    unusable: int = 0
    last_run: dict[str, Any] | None = None


def head_of(name: str, run: Mapping[str, Any], *, step: int | None = None) -> dict[str, Any]:
    """The head of `metrics.json`: what was measured.

    Args:
        name: for plots and reports.
        run: the settings that the rows depend on.
        step: of a training run's validation; None for an evaluation.
    """
    head: dict[str, Any] = {"caopd_verl": _version(), "name": name}
    if step is not None:
        head["step"] = step
    return {**head, "run": dict(run)}


def metrics_of_run(
    columns: Columns,
    folder: Path,
    head: Mapping[str, Any],
    settings: Summary,
    outcome: Outcome | None = None,
    *,
    compat: bool = False,
    prices: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """All of `metrics.json`.

    Args:
        columns: the rows, at least one.
        folder: of the run; its failures are counted.
        head: from `head_of`.
        settings: what the figures are computed with.
        outcome: what the rows' source did; None where it made these rows and no others.
        compat: also the figures as the paper's code counts them.
        prices: US dollars for a million prompt tokens, and response tokens; None where unknown.
    """
    if outcome is None:
        outcome = Outcome(expected_rows=len(columns.ids))
    return {
        **head,
        "counts": _counts(columns, folder, outcome),
        "usage": _usage(columns, *prices),
        "last_run": outcome.last_run,
        **figures_of(columns, settings, compat=compat),
    }


def _counts(columns: Columns, folder: Path, outcome: Outcome) -> dict[str, Any]:
    """What became of every row: finished, failed (and why), unusable, not yet asked for."""
    finished = set(zip(columns.ids, columns.samples, strict=True))
    failed = _failed(folder, finished)
    n_failed = sum(failed.values())
    # A row may have failed often and be there by now, or be lost in no list: what is left over
    # was never asked for.
    left = outcome.expected_rows - len(finished) - n_failed - outcome.unusable
    counts = {
        "rows": outcome.expected_rows,
        "finished": len(finished),
        "failed": n_failed,
        "unusable": outcome.unusable,
        "not_asked": max(0, left),
        "why_failed": dict(failed.most_common(SHOWN_REASONS)),
    }
    for what, counter in columns.counts.items():
        counts[f"by_{what}"] = dict(counter.most_common())
    return counts


def _failed(folder: Path, finished: set[Key]) -> Counter[str]:
    """The last error of every row that failed and was not had in another attempt."""
    last_error: dict[Key, str] = {}
    for failure in read_failures(folder):
        if "id" in failure:  # a line of a file that is no row has none
            key = (failure["id"], failure["sample"])
            last_error[key] = str(failure["error"])
    failed: Counter[str] = Counter()
    for key, error in last_error.items():
        if key not in finished:
            failed[error] += 1
    return failed


def _usage(columns: Columns, price_in: float | None, price_out: float | None) -> dict[str, Any]:
    """Tokens, latency and cost of the finished rows, and of how many rows they are known."""
    prompt = columns.usage.get("n_prompt_tokens", [])
    response = columns.usage.get("n_tokens", [])
    latency = columns.usage.get("latency_s", [])
    told = min(len(prompt), len(response))
    cost = None
    # Rows that do not tell may be the dear ones: a part of the cost would pass for the whole.
    if price_in is not None and price_out is not None and told == len(columns.ids):
        micro_dollars = sum(prompt) * price_in + sum(response) * price_out
        cost = micro_dollars / 1e6
    return {
        "prompt_tokens": int(sum(prompt)) if prompt else None,
        "response_tokens": int(sum(response)) if response else None,
        "rows_with_usage": told,
        "cost_usd": cost,
        "latency_s_median": _quantile(latency, 0.5),
        "latency_s_p95": _quantile(latency, 0.95),
    }


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None


def _version() -> str | None:
    try:
        return version("caopd-verl")
    except PackageNotFoundError:  # a checkout that was never installed
        return None
