"""`metrics.json` from the rows of a run: every figure with n and interval, and a count of what became of every row.

The readouts stand side by side: `stated` (the number in the text), `expected` (the mean of the model's distribution
over the confidence tokens as decoding draws from it), `expected_t1` (the same at temperature 1, where that differs),
and, where the rows allow, `p_true`, `self_consistency` and `answer_probability`. Each is measured under the missing
policy, with the parsed-only figures beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.compare import Column
from caopd_verl.evaluation.intervals.estimates import Estimate, estimate_readouts
from caopd_verl.evaluation.intervals.noise import noise_floor
from caopd_verl.evaluation.metrics.calibration import calibration_metrics, reliability_bins
from caopd_verl.evaluation.metrics.posthoc import METHODS, fit, self_consistency, split_groups
from caopd_verl.evaluation.metrics.reference_rule import compat_summary, reference_confidence
from caopd_verl.evaluation.rows.store import ROWS, iter_rows, read_failures
from caopd_verl.evaluation.settings import Summary

COLUMNS = {
    "stated": "confidence",
    "expected": "expected_confidence",
    "expected_t1": "expected_t1_confidence",
    "p_true": "p_true",
    "answer_probability": "answer_probability",
}


@dataclass
class Columns:
    """What the metrics need of the rows, one entry a row; the texts are not kept.

    Rows are in the order of their keys (`order`: their places in the file), so that no figure, resampled ones included,
    depends on the order in which answers came.
    """

    ids: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    readouts: dict[str, list[float | None]] = field(
        default_factory=lambda: {name: [] for name in COLUMNS}
    )
    reference: list[tuple[float, str]] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    tokens: dict[str, list[float]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Columns:
        """Raises `DataError` for a row without `correct` or with a confidence outside [0, 1]."""
        columns = cls()
        for row in rows:
            columns.add(row)
        columns._sort()
        consistency = self_consistency(columns.ids, columns.answers)
        if any(value is not None for value in consistency):
            columns.readouts["self_consistency"] = consistency
        return columns

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row in."""
        if not isinstance(row.get("correct"), bool):
            raise DataError(
                "the row has no verdict", where=f"row {row.get('id')!r}", expected="'correct'"
            )
        self.ids.append(str(row["id"]))
        self.samples.append(int(row.get("sample", 0)))
        self.sources.append(str(row.get("source", "")))
        self.correct.append(row["correct"])
        self.answers.append(row.get("answer"))
        for name, key in COLUMNS.items():
            self.readouts[name].append(row.get(key))
        response = str(row.get("response", ""))
        self.reference.append(reference_confidence(response))
        self._count("verdict", str(row.get("reason")))
        self._count("confidence", str(row.get("confidence_status")))
        self._count("response", _state(response, row.get("truncated")))
        if row.get("expected_confidence") is None:
            self._count("no_expected_confidence", str(row.get("expected_reason")))
        if row.get("p_true") is None:
            self._count("no_p_true", str(row.get("p_true_reason") or "the file holds none"))
        for key in ("n_prompt_tokens", "n_tokens", "latency_s"):
            if row.get(key) is not None:
                self.tokens.setdefault(key, []).append(float(row[key]))

    def _sort(self) -> None:
        self.order = sorted(range(len(self.ids)), key=lambda i: (self.ids[i], self.samples[i]))
        lists: list[list] = [
            self.ids,
            self.samples,
            self.sources,
            self.correct,
            self.answers,
            self.reference,
        ]
        for values in [*lists, *self.readouts.values()]:
            values[:] = [values[i] for i in self.order]

    def column(self, readout: str) -> Column:
        """One readout for `compare.compare`."""
        if readout not in self.readouts:
            raise ConfigError(
                f"no readout {readout!r}", expected="one of " + ", ".join(self.readouts)
            )
        return Column(self.ids, self.readouts[readout], self.correct)

    def present(self) -> dict[str, list[float | None]]:
        """The readouts of which at least one row has a value; `stated` always, `expected_t1` where it is another."""
        found = {
            k: v for k, v in self.readouts.items() if k == "stated" or any(x is not None for x in v)
        }
        if found.get("expected_t1") == found.get("expected"):
            found.pop("expected_t1", None)
        return found

    def _count(self, what: str, name: str) -> None:
        self.counts.setdefault(what, Counter())[name] += 1


def load_columns(folder: str | Path) -> Columns:
    """The columns of a finished run's `rows.jsonl` (or of that file itself).

    Raises:
        DataError: no rows, or a broken line, naming `file:line`.
    """
    path = Path(folder)
    columns = Columns.of(iter_rows(path / ROWS if path.is_dir() else path))
    if not columns.ids:
        raise DataError(
            "there are no evaluated rows",
            where=str(path),
            expected="the folder of a caopd eval run",
        )
    return columns


def summarize(columns: Columns, settings: Summary, *, compat: bool) -> dict[str, Any]:
    """Everything in `metrics.json` that follows from the rows."""
    readouts = columns.present()
    several = len(set(columns.ids)) < len(columns.ids)
    groups = columns.ids if several else None
    options: dict[str, Any] = dict(n_bins=settings.n_bins, groups=groups, seed=settings.seed)
    resampling: dict[str, Any] = dict(n_resamples=settings.n_resamples, level=settings.level)
    main = estimate_readouts(
        readouts, columns.correct, missing=settings.missing, **options, **resampling
    )
    only = main
    if settings.missing != "drop":
        only = estimate_readouts(readouts, columns.correct, missing="drop", **options, **resampling)
    out: dict[str, Any] = {
        "n_rows": len(columns.ids),
        "n_questions": len(set(columns.ids)),
        "settings": asdict(settings),
        "readouts": {},
        "absent": _absent(columns),
    }
    for name, values in readouts.items():
        floor = noise_floor(values, n_simulations=settings.n_simulations, **options)
        bins = reliability_bins(values, columns.correct, n_bins=settings.n_bins)
        out["readouts"][name] = {
            "metrics": _as_dicts(main[name]),
            "parsed_only": _as_dicts(only[name]),
            "noise_floor": None if floor is None else floor.as_dict(),
            "bins": [asdict(cell) for cell in bins],
        }
    out["by_source"] = _by_source(columns, readouts, settings)
    out["posthoc"] = posthoc_summary(columns, settings)
    if compat:
        out["compat"] = compat_summary(columns.reference, columns.correct, n_bins=settings.n_bins)
    return out


def counts(
    columns: Columns, folder: Path, *, expected_rows: int | None, unusable: int = 0
) -> dict[str, Any]:
    """What became of every row: asked for, finished, failed (and why), unusable, not yet asked for."""
    finished = {*zip(columns.ids, columns.samples, strict=True)}
    last = {
        (f.get("id"), f.get("sample")): str(f.get("error"))
        for f in read_failures(folder)
        if "id" in f
    }
    failed = Counter(error for key, error in last.items() if key not in finished)
    total = expected_rows if expected_rows is not None else len(finished) + unusable
    return {
        "rows": total,
        "finished": len(finished),
        "failed": sum(failed.values()),
        "unusable": unusable,
        "not_asked": max(0, total - len(finished) - sum(failed.values()) - unusable),
        "why_failed": dict(failed.most_common(20)),
        **{f"by_{what}": dict(counter.most_common()) for what, counter in columns.counts.items()},
    }


def usage(columns: Columns, *, price_in: float | None, price_out: float | None) -> dict[str, Any]:
    """Tokens, latency and cost of the finished rows, each with the number of rows that told."""
    sums = {key: sum(columns.tokens.get(key, [])) for key in ("n_prompt_tokens", "n_tokens")}
    told = {key: len(columns.tokens.get(key, [])) for key in ("n_prompt_tokens", "n_tokens")}
    latency = columns.tokens.get("latency_s", [])
    cost = None
    if price_in is not None and price_out is not None and min(told.values()) == len(columns.ids):
        cost = (sums["n_prompt_tokens"] * price_in + sums["n_tokens"] * price_out) / 1e6
    return {
        "prompt_tokens": int(sums["n_prompt_tokens"]) if told["n_prompt_tokens"] else None,
        "response_tokens": int(sums["n_tokens"]) if told["n_tokens"] else None,
        "rows_with_usage": min(told.values()),
        "cost_usd": cost,
        "latency_s_median": float(np.median(latency)) if latency else None,
        "latency_s_p95": float(np.quantile(latency, 0.95)) if latency else None,
    }


def posthoc_summary(columns: Columns, settings: Summary) -> dict[str, Any]:
    """Raw and scaled stated confidence on the questions that the scaling was not fitted on."""
    in_fit = split_groups(columns.ids, fraction=settings.posthoc_fraction, seed=settings.seed)
    values = columns.readouts["stated"]
    parsed = np.array([v is not None for v in values])
    scores = np.array([0.0 if v is None else v for v in values])
    correct = np.array(columns.correct)
    train, test = parsed & in_fit, parsed & ~in_fit
    out: dict[str, Any] = {"n_fit": int(train.sum()), "n_test": int(test.sum()), "methods": {}}
    if not test.any():
        return {**out, "reason": "no rows with a confidence are left to test on"}
    methods: dict[str, Any] = {"raw": lambda c: c}
    for method in METHODS:
        try:
            methods[method] = fit(method, scores[train], correct[train])
        except ConfigError as error:
            out["methods"][method] = {"reason": error.what}
    scaled = {name: list(apply(scores[test])) for name, apply in methods.items()}
    estimates = estimate_readouts(
        scaled, correct[test].tolist(), n_bins=settings.n_bins, missing="drop",
        groups=[g for g, t in zip(columns.ids, test, strict=True) if t],
        n_resamples=settings.n_resamples, level=settings.level, seed=settings.seed,
    )  # fmt: skip
    for name, figures in estimates.items():
        out["methods"][name] = _as_dicts(
            figures, ("ece", "ece_debiased", "brier", "nll", "ocg", "spr", "auroc")
        )
    return out


def _by_source(
    columns: Columns, readouts: Mapping[str, Sequence[float | None]], settings: Summary
) -> dict[str, Any]:
    sources = sorted(set(columns.sources))
    if len(sources) < 2:
        return {}
    out: dict[str, Any] = {}
    for source in sources:
        keep = [i for i, own in enumerate(columns.sources) if own == source]
        correct = [columns.correct[i] for i in keep]
        out[source] = {
            name: calibration_metrics(
                [values[i] for i in keep], correct, n_bins=settings.n_bins, missing=settings.missing
            )
            for name, values in readouts.items()
        }
    return out


def _absent(columns: Columns) -> dict[str, str]:
    """For each readout that no row has, the commonest reason."""
    reasons = {}
    for readout, counter in (("expected", "no_expected_confidence"), ("p_true", "no_p_true")):
        if readout not in columns.present():
            reasons[readout] = columns.counts.get(
                counter, Counter({"not asked for": 1})
            ).most_common(1)[0][0]
    if "answer_probability" not in columns.present():
        reasons["answer_probability"] = "no row has log-probabilities of its answer"
    if "self_consistency" not in columns.readouts:
        reasons["self_consistency"] = "every question was sampled once"
    return reasons


def _as_dicts(
    figures: Mapping[str, Estimate], names: Sequence[str] | None = None
) -> dict[str, Any]:
    return {name: figures[name].as_dict() for name in names or figures}


def _state(response: str, truncated: object) -> str:
    if truncated is True:
        return "truncated"
    return "complete" if response.strip() else "empty"
