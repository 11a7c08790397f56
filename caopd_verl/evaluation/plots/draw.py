"""`caopd plot`: all the plots of one or more results, in each of the formats that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.plots.histogram import confidence_histogram
from caopd_verl.evaluation.plots.models import accuracy_against_confidence, reliability_bars
from caopd_verl.evaluation.plots.reliability import compare_reliability, reliability_diagram
from caopd_verl.evaluation.plots.risk import risk_coverage
from caopd_verl.evaluation.readouts.names import LABELS
from caopd_verl.evaluation.rows.results import Result

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)


def draw_result(result: Result, folder: Path, *, formats: Sequence[str]) -> dict[str, Path]:
    """The plots of one result, each readout for itself.

    Args:
        result: rows and metrics.
        folder: where the plots go.
        formats: some of `FORMATS`.

    Returns:
        plot name -> path of its first format.

    Raises:
        ConfigError: an unknown format.
    """
    files = _Files(folder, formats)
    correct, questions = result.columns.correct, result.columns.ids
    n_bins = _n_bins(result)
    series = {}
    for name, values in result.columns.present().items():
        if all(value is None for value in values):
            continue
        series[name] = (values, correct, questions)
        label = LABELS[name]
        for path in files.of(f"reliability_{name}"):
            reliability_diagram(
                values,
                correct,
                path,
                title=result.name,
                n_bins=n_bins,
                groups=questions,
                readout=label,
            )
        for path in files.of(f"bars_{name}"):
            title = f"{result.name}, {name}"
            reliability_bars(values, correct, path, title=title, n_bins=n_bins)
        for path in files.of(f"histogram_{name}"):
            confidence_histogram(values, correct, path, title=result.name, readout=label)
    if series:
        for path in files.of("risk_coverage"):
            risk_coverage(series, path, title=result.name)
    return files.first


def draw_comparison(
    results: Sequence[Result], folder: Path, *, formats: Sequence[str], readout: str
) -> dict[str, Path]:
    """The plots over several results: accuracy against mean confidence, reliability, risk-coverage.

    Results without this readout are left out; nothing is drawn where none has it.

    Args:
        results: with names that differ.
        folder, formats: as in `draw_result`.
        readout: its name.

    Returns, raises: as `draw_result`.
    """
    files = _Files(folder, formats)
    having = [result for result in results if _has(result, readout)]
    if not having:
        return {}
    label = LABELS[readout]
    points, rows, series = {}, {}, {}
    for result in having:
        columns = result.columns
        values = columns.readouts[readout]
        mean_conf = result.estimate(readout, "mean_conf")
        points[result.name] = (mean_conf, result.estimate(readout, "acc_scored"))
        rows[result.name] = (values, columns.correct)
        series[result.name] = (values, columns.correct, columns.ids)
    for path in files.of("accuracy_against_confidence", readout):
        accuracy_against_confidence(points, path, title=label)
    for path in files.of("compare_reliability", readout):
        compare_reliability(rows, path, n_bins=_n_bins(having[0]), readout=label)
    for path in files.of("compare_risk_coverage", readout):
        risk_coverage(series, path, title=label)
    return files.first


class _Files:
    """The paths of the plots in a folder.

    Attributes:
        first: plot name -> path of its first format.
    """

    def __init__(self, folder: Path, formats: Sequence[str]):
        for kind in formats:
            if kind not in FORMATS:
                raise ConfigError(
                    f"unknown format {kind!r}",
                    where="--formats",
                    expected="some of " + ", ".join(FORMATS),
                )
        self.folder, self.formats = folder, formats
        self.first: dict[str, Path] = {}

    def of(self, name: str, readout: str | None = None) -> Iterator[Path]:
        """One path for each format; a readout becomes a part of the file's name alone."""
        stem = name if readout is None else f"{name}_{readout}"
        for kind in self.formats:
            path = self.folder / f"{stem}.{kind}"
            self.first.setdefault(name, path)
            yield path


def _n_bins(result: Result) -> int:
    """The bins that the result's own metrics have, so that plots and figures agree."""
    return int(result.metrics["settings"]["n_bins"])


def _has(result: Result, readout: str) -> bool:
    values = result.columns.readouts.get(readout, [])
    return any(value is not None for value in values)
