"""Names of the files in a run's folder: of an evaluation (`caopd eval`) and of a training run.

Defined here once, because four layers write these files and read each other's. Names only, no
content: what is in them says the module that writes them.

| evaluation | training | |
| --- | --- | --- |
| `rows.jsonl` | `validation/step_000050.jsonl` | one judged response a line, one schema |
| `metrics.json` | `metrics.json` | figures of those rows (of the last validation), one shape |
| `run.json` | `run.json` | settings that the run's rows, or checkpoints, depend on |
| `failures.jsonl`, `.lock` | | rows that could not be had; keeps a second writer out |
| | `metrics.jsonl` | the journal: one record a training step |
| | `samples/step_000001.jsonl` | a few sampled rollouts, for people to look at |
| | `checkpoints/` | student, EMA teacher, optimizer |
| `report.html`, `plots/` | `report.html`, `*.png`, `plots/` | `caopd report` and `plot` |
"""

from __future__ import annotations

import re
from pathlib import Path

ROWS = "rows.jsonl"
FAILURES = "failures.jsonl"
METRICS = "metrics.json"
SETTINGS = "run.json"
LOCK = ".lock"
JOURNAL = "metrics.jsonl"
VALIDATION = "validation"
SAMPLES = "samples"
CHECKPOINTS = "checkpoints"
REPORT = "report.html"
PLOTS = "plots"

# Six digits, so that a listing is in the order of the steps; more are read all the same.
_STEP_FILE = re.compile(r"step_(\d+)\.jsonl")


def step_file(step: int) -> str:
    """The file of one training step within `validation/`, `samples/` or recorded rollouts."""
    return f"step_{step:06d}.jsonl"


def step_files(folder: Path) -> dict[int, Path]:
    """Step -> file of all step files in a folder, by step; empty where there is no such folder."""
    found: dict[int, Path] = {}
    for path in folder.glob("step_*.jsonl"):
        # a pattern of `glob` can't ask for digits alone
        match = _STEP_FILE.fullmatch(path.name)
        if match is not None:
            found[int(match[1])] = path
    return dict(sorted(found.items()))
