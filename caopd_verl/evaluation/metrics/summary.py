"""`metrics.json`: every figure of a run with n and interval, and what became of each row.

One shape for an evaluation and for a training run's last validation (which adds `step`). The
readouts stand side by side: `stated` (the number in the text), `expected` (the mean of the model's
distribution over the confidence tokens as decoding draws from it), `expected_t1` (the same at
temperature 1, where that differs), and, where the rows allow, `p_true`, `self_consistency` and
`answer_probability`. Each is measured under the policy for rows without a confidence, with the
figures of the rows that have one beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from caopd_verl.config import Missing
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.compare import Column, Comparison, compare
from caopd_verl.evaluation.intervals.estimates import Estimate, estimate_readouts
from caopd_verl.evaluation.intervals.noise import noise_floor
from caopd_verl.evaluation.metrics.calibration import calibration_metrics, reliability_bins
from caopd_verl.evaluation.metrics.columns import SELF_CONSISTENCY, Columns
from caopd_verl.evaluation.metrics.posthoc import METHODS, fit, split_groups
from caopd_verl.evaluation.metrics.reference_rule import compat_summary
from caopd_verl.evaluation.rows.row import Key
from caopd_verl.evaluation.rows.store import read_failures
from caopd_verl.evaluation.settings import Summary

POSTHOC_METRICS = ("ece", "ece_debiased", "brier", "nll", "ocg", "spr", "auroc")
SHOWN_REASONS = 20  # of failed rows: an endpoint can refuse in thousands of wordings
Readouts = Mapping[str, Sequence[float | None]]


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
        **_figures(columns, settings, compat=compat),
    }


def compare_columns(old: Column, new: Column, settings: Summary) -> Comparison:
    """Two readouts of one or two runs, question by question. Raises as `intervals.compare`."""
    return compare(
        old,
        new,
        n_bins=settings.n_bins,
        missing=settings.missing,
        n_resamples=settings.n_resamples,
        level=settings.level,
        seed=settings.seed,
    )


def _figures(columns: Columns, settings: Summary, *, compat: bool) -> dict[str, Any]:
    """Everything that follows from the rows alone."""
    readouts = columns.present()
    figures: dict[str, Any] = {
        "n_rows": len(columns.ids),
        "n_questions": len(set(columns.ids)),
        "settings": asdict(settings),
        "readouts": _readouts(columns, readouts, settings),
        "absent": _absent(columns, readouts),
        "by_source": _by_source(columns, readouts, settings),
        "posthoc": _posthoc(columns, settings),
    }
    if compat:
        n_bins = settings.n_bins
        figures["compat"] = compat_summary(columns.reference, columns.correct, n_bins=n_bins)
    return figures


def _readouts(columns: Columns, readouts: Readouts, settings: Summary) -> dict[str, Any]:
    # Samples of one question are not independent: where it has several, questions are resampled.
    several = len(set(columns.ids)) < len(columns.ids)
    groups = columns.ids if several else None
    n_bins, seed = settings.n_bins, settings.seed
    main = _estimates(readouts, columns.correct, groups, settings, missing=settings.missing)
    only = main
    if settings.missing != Missing.drop:
        only = _estimates(readouts, columns.correct, groups, settings, missing=Missing.drop)
    figures = {}
    for name, values in readouts.items():
        floor = noise_floor(
            values, n_bins=n_bins, groups=groups, n_simulations=settings.n_simulations, seed=seed
        )
        cells = reliability_bins(values, columns.correct, n_bins=n_bins)
        bins = [asdict(cell) for cell in cells]
        figures[name] = {
            "metrics": _as_dicts(main[name]),
            "parsed_only": _as_dicts(only[name]),
            "noise_floor": None if floor is None else floor.as_dict(),
            "bins": bins,
        }
    return figures


def _estimates(
    readouts: Readouts,
    correct: Sequence[bool],
    groups: Sequence[str] | None,
    settings: Summary,
    *,
    missing: Missing,
) -> dict[str, dict[str, Estimate]]:
    return estimate_readouts(
        readouts,
        correct,
        n_bins=settings.n_bins,
        missing=missing,
        groups=groups,
        n_resamples=settings.n_resamples,
        level=settings.level,
        seed=settings.seed,
    )


def _counts(columns: Columns, folder: Path, outcome: Outcome) -> dict[str, Any]:
    """What became of every row: finished, failed (and why), unusable, not yet asked for."""
    finished = set(zip(columns.ids, columns.samples, strict=True))
    failed = _failed(folder, finished)
    n_failed = sum(failed.values())
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


def _posthoc(columns: Columns, settings: Summary) -> dict[str, Any]:
    """Raw and scaled stated confidence on the questions that the scaling was not fitted on."""
    in_fit = split_groups(columns.ids, fraction=settings.posthoc_fraction, seed=settings.seed)
    values = columns.readouts["stated"]
    parsed = np.array([value is not None for value in values])
    scores = np.array([0.0 if value is None else value for value in values])
    correct = np.array(columns.correct)
    train, test = parsed & in_fit, parsed & ~in_fit
    out: dict[str, Any] = {"n_fit": int(train.sum()), "n_test": int(test.sum())}
    out["methods"] = {}
    if not test.any():
        return {**out, "reason": "no rows with a confidence are left to test on"}
    scaled: dict[str, list[float]] = {"raw": scores[test].tolist()}
    for method in METHODS:
        try:
            calibrate = fit(method, scores[train], correct[train])
        except ConfigError as error:
            out["methods"][method] = {"reason": error.what}
            continue
        scaled[method] = calibrate(scores[test]).tolist()
    places = np.flatnonzero(test)
    groups = [columns.ids[place] for place in places]
    outcomes = correct[test].tolist()
    estimates = _estimates(scaled, outcomes, groups, settings, missing=Missing.drop)
    for scaling, figures in estimates.items():
        chosen = {name: figures[name] for name in POSTHOC_METRICS}
        out["methods"][scaling] = _as_dicts(chosen)
    return out


def _by_source(columns: Columns, readouts: Readouts, settings: Summary) -> dict[str, Any]:
    """The metrics of each source by itself, where there are several."""
    sources = sorted(set(columns.sources))
    if len(sources) < 2:
        return {}
    n_bins, missing = settings.n_bins, settings.missing
    out: dict[str, Any] = {}
    for source in sources:
        places = [place for place, own in enumerate(columns.sources) if own == source]
        correct = [columns.correct[place] for place in places]
        figures = {}
        for name, values in readouts.items():
            own = [values[place] for place in places]
            figures[name] = calibration_metrics(own, correct, n_bins=n_bins, missing=missing)
        out[source] = figures
    return out


def _absent(columns: Columns, readouts: Readouts) -> dict[str, str]:
    """For each readout that no row has, the commonest reason."""
    reasons = {}
    for name, counter in (("expected", "no_expected_confidence"), ("p_true", "no_p_true")):
        if name not in readouts:
            commonest = columns.counts[counter].most_common(1)
            reasons[name] = commonest[0][0]
    if "answer_probability" not in readouts:
        reasons["answer_probability"] = "no row has log-probabilities of its answer"
    if SELF_CONSISTENCY not in columns.readouts:
        reasons[SELF_CONSISTENCY] = "every question was sampled once"
    return reasons


def _as_dicts(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: figure.as_dict() for name, figure in figures.items()}


def _version() -> str | None:
    try:
        return version("caopd-verl")
    except PackageNotFoundError:  # a checkout that was never installed
        return None
