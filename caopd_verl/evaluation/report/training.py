"""What a training run leaves of its last validation: the same files that an evaluation leaves.

`metrics.json`, reliability diagrams and confidence histograms (PNG), and the page of
`caopd report`, all of them in the run's folder, beside the rows that the validation wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from caopd_verl.config import EvaluationConfig
from caopd_verl.evaluation.metrics.columns import load_columns
from caopd_verl.evaluation.metrics.run_metrics import head_of, metrics_of_run
from caopd_verl.evaluation.plots.histogram import confidence_histogram
from caopd_verl.evaluation.plots.reliability import reliability_diagram
from caopd_verl.evaluation.readouts.names import COMPARED_READOUTS, LABELS
from caopd_verl.evaluation.report.page import write_report
from caopd_verl.evaluation.rows.results import Result
from caopd_verl.evaluation.rows.store import write_json
from caopd_verl.evaluation.settings import DEFAULTS, Summary
from caopd_verl.run_files import METRICS, REPORT, VALIDATION, step_file

N_EXAMPLES = 10  # rows of each kind on the page


def write_training_report(
    folder: Path, config: EvaluationConfig, *, step: int, name: str, run: Mapping[str, Any]
) -> Result:
    """Report on one validation of a training run.

    Args:
        folder: of the run; holds the rows of that validation.
        config: bins, and what becomes of responses without a confidence.
        step: of the validation.
        name: of the run, for titles.
        run: the settings that the rows depend on, for `metrics.json`.

    Raises:
        DataError: the validation's rows are not there, or broken.
    """
    # From disk, as every later reader of the run: what they will see is what is reported.
    rows = folder / VALIDATION / step_file(step)
    columns = load_columns(rows)
    settings = replace(DEFAULTS.summary, n_bins=config.n_bins, missing=config.missing)
    head = head_of(name, run, step=step)
    metrics = metrics_of_run(columns, folder, head, settings)
    write_json(folder / METRICS, metrics)
    result = Result(name, folder, rows, columns, metrics)
    _draw(result, settings, title=f"{name}, step {step}")
    write_report([result], folder / REPORT, title=name, n_examples=N_EXAMPLES, settings=settings)
    return result


def _draw(result: Result, settings: Summary, *, title: str) -> None:
    columns, folder = result.columns, result.folder
    for readout in COMPARED_READOUTS:
        values = columns.readouts[readout]
        if all(value is None for value in values):
            if readout == "stated":  # the others are a switch
                print(f"no confidence could be read in {len(values)} responses: no plots")
            continue
        label = LABELS[readout]
        reliability_diagram(
            values,
            columns.correct,
            folder / f"reliability_{readout}.png",
            title=title,
            n_bins=settings.n_bins,
            groups=columns.ids,
            readout=label,
        )
        histogram = folder / f"confidence_{readout}.png"
        confidence_histogram(values, columns.correct, histogram, title=title, readout=label)
