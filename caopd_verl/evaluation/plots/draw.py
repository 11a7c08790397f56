"""`caopd plot`: all the plots of one or more results, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.plots.models import (
    accuracy_against_confidence,
    reliability_bars,
    risk_coverage,
)
from caopd_verl.evaluation.plots.reliability import (
    compare_reliability,
    confidence_histogram,
    reliability_diagram,
)
from caopd_verl.evaluation.rows.results import Result

READOUTS = {
    "stated": "Stated confidence",
    "expected": "Expected confidence",
    "expected_t1": "Expected confidence at temperature 1",
    "p_true": "P(True)",
    "answer_probability": "Probability of the answer's tokens",
    "self_consistency": "Agreement among the samples",
}
FORMATS = ("png", "svg", "pdf")


def draw_result(
    result: Result, folder: Path, *, formats: Sequence[str], prefix: str = ""
) -> dict[str, Path]:
    """The plots of one result, each readout for itself; returns plot name -> path of its first format."""
    n_bins = int(result.metrics["settings"]["n_bins"])
    columns = result.columns
    paths: dict[str, Path] = {}
    readouts = {
        name: values
        for name, values in columns.present().items()
        if any(v is not None for v in values)
    }
    for kind in _checked(formats):
        for name, values in readouts.items():
            label = READOUTS[name]
            out = folder / f"{prefix}reliability_{name}.{kind}"
            paths.setdefault(f"reliability_{name}", out)
            reliability_diagram(
                values,
                columns.correct,
                out,
                title=result.name,
                n_bins=n_bins,
                groups=columns.ids,
                readout=label,
            )
            out = folder / f"{prefix}bars_{name}.{kind}"
            paths.setdefault(f"bars_{name}", out)
            reliability_bars(
                values, columns.correct, out, title=f"{result.name}, {name}", n_bins=n_bins
            )
            out = folder / f"{prefix}histogram_{name}.{kind}"
            paths.setdefault(f"histogram_{name}", out)
            confidence_histogram(values, columns.correct, out, title=result.name, readout=label)
        if readouts:
            out = folder / f"{prefix}risk_coverage.{kind}"
            paths.setdefault("risk_coverage", out)
            series = {
                name: (values, columns.correct, columns.ids) for name, values in readouts.items()
            }
            risk_coverage(series, out, title=result.name)
    return paths


def draw_comparison(
    results: Sequence[Result], folder: Path, *, formats: Sequence[str], readout: str
) -> dict[str, Path]:
    """The plots over several results: accuracy against mean confidence, small reliability diagrams, risk-coverage.

    Results without this readout are left out; nothing is drawn where none has it.
    """
    having = {
        r.name: r
        for r in results
        if any(v is not None for v in r.columns.readouts.get(readout, []))
    }
    if not having:
        return {}
    paths: dict[str, Path] = {}
    first = next(iter(having.values()))
    n_bins = int(first.metrics["settings"]["n_bins"])
    for kind in _checked(formats):
        out = folder / f"accuracy_against_confidence_{readout}.{kind}"
        paths.setdefault("accuracy_against_confidence", out)
        points = {
            name: (r.estimate(readout, "mean_conf"), r.estimate(readout, "acc_scored"))
            for name, r in having.items()
        }
        accuracy_against_confidence(points, out, title=READOUTS[readout])
        out = folder / f"compare_reliability_{readout}.{kind}"
        paths.setdefault("compare_reliability", out)
        rows = {
            name: (r.columns.readouts[readout], r.columns.correct) for name, r in having.items()
        }
        compare_reliability(rows, out, n_bins=n_bins, readout=READOUTS[readout])
        out = folder / f"compare_risk_coverage_{readout}.{kind}"
        paths.setdefault("compare_risk_coverage", out)
        series = {
            name: (r.columns.readouts[readout], r.columns.correct, r.columns.ids)
            for name, r in having.items()
        }
        risk_coverage(series, out, title=READOUTS[readout])
    return paths


def _checked(formats: Sequence[str]) -> Sequence[str]:
    for kind in formats:
        if kind not in FORMATS:
            raise ConfigError(
                f"unknown format {kind!r}",
                where="--formats",
                expected="some of " + ", ".join(FORMATS),
            )
    return formats
