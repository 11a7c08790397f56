"""A training run's folder as training leaves it, without training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from caopd_verl.config import EvaluationConfig
from caopd_verl.data.additions import generate
from caopd_verl.evaluation.metrics.columns import load_columns
from caopd_verl.evaluation.metrics.run_metrics import head_of, metrics_of_run
from caopd_verl.evaluation.readouts.readout import EXACT, Readout
from caopd_verl.evaluation.report.training import write_training_report
from caopd_verl.evaluation.rows.row import Generation, Job, make_row
from caopd_verl.evaluation.rows.store import write_json, write_validation
from caopd_verl.evaluation.settings import Summary
from caopd_verl.run_files import METRICS, SAMPLES, step_file
from caopd_verl.types import Verdict

RUN = {"source": "training", "method": "sdpo_caopd", "task": "arithmetic/val"}


def validation_rows(*, n: int, shift: float, seed: int = 0) -> list[dict[str, Any]]:
    """`n` additions, right as often as the confidence less `shift` says."""
    rng = random.Random(seed)
    rows = []
    for example in generate(n=n, seed=0, split="test"):
        confidence = round(rng.uniform(0.3, 1.0), 2)
        right = rng.random() < confidence - shift
        text = f"{example.answer if right else 10**6}\nConfidence: {confidence:.2f}"
        generation = Generation(
            text,
            truncated=False,
            n_prompt_tokens=40,
            n_tokens=11,
            expected=Readout(confidence - 0.01, 0.99, EXACT, value_t1=confidence - 0.02),
            verdict=Verdict(right, "correct" if right else "wrong", text.split("\n")[0]),
        )
        rows.append(make_row(Job(example, 0), generation))
    return rows


def training_run(folder: Path, *, name: str) -> Path:
    """A finished run with validations at steps 5 and 10, and its report."""
    write_validation(validation_rows(n=40, shift=0.5), folder, 5)
    write_validation(validation_rows(n=40, shift=0.4), folder, 10)
    write_training_report(folder, EvaluationConfig(expected=True), step=10, name=name, run=RUN)
    return folder


def measured_run(folder: Path, *, name: str, settings: Summary, n: int = 20) -> Path:
    """`n` rows of step 10 and their metrics: what a report, which takes seconds, is made of."""
    rows = write_validation(validation_rows(n=n, shift=0.0), folder, 10)
    head = head_of(name, RUN, step=10)
    metrics = metrics_of_run(load_columns(rows), folder, head, settings)
    write_json(folder / METRICS, metrics)
    return folder


def write_samples(folder: Path, step: int, samples: list[dict[str, Any]]) -> None:
    """Sampled rollouts as the trainer writes them."""
    path = folder / SAMPLES / step_file(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
