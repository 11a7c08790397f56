"""The figures of `metrics.json`: everything that follows from a run's rows, with n and interval.

The readouts stand side by side: `stated` (the number in the text), `expected` (the mean of the
model's distribution over the confidence tokens as decoding draws from it), `expected_t1` (the same
at temperature 1, where that differs), and, where the rows allow, `p_true`, `self_consistency` and
`answer_probability`. Each is measured under the policy for rows without a confidence, with the
figures of the rows that have one beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from caopd_verl.config import Missing
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.intervals.compare import Column, Comparison, compare
from caopd_verl.evaluation.intervals.estimates import Estimate, estimate_readouts
from caopd_verl.evaluation.intervals.noise import noise_floor
from caopd_verl.evaluation.metrics.calibration import calibration_metrics, reliability_bins
from caopd_verl.evaluation.metrics.columns import Columns
from caopd_verl.evaluation.metrics.posthoc import METHODS, fit, split_groups
from caopd_verl.evaluation.metrics.reference_rule import compat_summary
from caopd_verl.evaluation.readouts.names import SELF_CONSISTENCY
from caopd_verl.evaluation.settings import Summary

POSTHOC_METRICS = ("ece", "ece_debiased", "brier", "nll", "ocg", "spr", "auroc")
Readouts = Mapping[str, Sequence[float | None]]


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


def figures_of(columns: Columns, settings: Summary, *, compat: bool) -> dict[str, Any]:
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
    # Beside the policy's figures: a policy that fills in numbers may flatter or slander a model.
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


def _posthoc(columns: Columns, settings: Summary) -> dict[str, Any]:
    """Raw and scaled stated confidence on the questions that the scaling was not fitted on."""
    in_fit = split_groups(columns.ids, fraction=settings.posthoc_fraction, seed=settings.seed)
    # Split by question, so that no question is on both sides. Of the stated confidence alone: it
    # is the readout that every model has.
    values = columns.readouts["stated"]
    parsed = np.array([value is not None for value in values])
    scores = np.array([0.0 if value is None else value for value in values])
    correct = np.array(columns.correct)
    train, test = parsed & in_fit, parsed & ~in_fit
    n_fit, n_test = int(train.sum()), int(test.sum())
    out: dict[str, Any] = {"n_fit": n_fit, "n_test": n_test, "methods": {}}
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
