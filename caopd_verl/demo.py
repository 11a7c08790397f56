"""`make demo`: SDPO and both CaOPD presets from one base model on the arithmetic task, compared.

Runs the real entry point three times (`python -m caopd_verl.main +recipe=... +scale=cpu_tiny`),
then writes `summary.json`, a table and a joint reliability diagram to `outputs/demo`. Each run's
own log, rows, metrics, plots, page and checkpoint are in `outputs/demo/<recipe>`; `base` holds the
validation of the model before its first step.

    python -m caopd_verl.demo [--output outputs/demo] [--seed 0] [key=value ...]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from caopd_verl.config import EvaluationConfig, Missing
from caopd_verl.evaluation.plots.reliability import compare_reliability
from caopd_verl.evaluation.readouts.names import COMPARED_READOUTS, LABELS
from caopd_verl.evaluation.report.training import write_training_report
from caopd_verl.evaluation.rows.results import Result, load_results
from caopd_verl.evaluation.rows.store import iter_rows, write_json, write_validation
from caopd_verl.evaluation.settings import DEFAULTS
from caopd_verl.run_files import VALIDATION, step_file

RECIPES = ("sdpo", "sdpo_caopd", "sdpo_caopd_proper")
BASE = "base"
SUMMARY, LOG = "summary.json", "log.txt"
FIGURES = ("acc", "mean_conf", "ece", "brier", "ocg", "spr", "auroc", "format_adherence")
KEYS = ("n", *FIGURES)
SUMMARISED = ("stated", "expected", "expected_t1")
# Ray passes on what its actors print behind a colour and the actor's name.
_RAY_PREFIX = re.compile(r"\x1b\[[0-9;]*m|^\(\w+ pid=\d+\) ?")
_STEP = re.compile(r"^step (\d+)/(\d+)  (.*)")


def main(argv: list[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(
        description="SDPO against CaOPD on an embedded tiny model, on CPU."
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument(
        "--seed", type=int, default=0, help="of the questions' order and of the sampling"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="config overrides for all runs, e.g. trainer.total_training_steps=5",
    )
    args = parser.parse_args(argv)
    start = time.monotonic()
    summary = run_all(args.output, args.seed, args.overrides)
    print(table(summary))
    minutes = (time.monotonic() - start) / 60
    print(
        f"\nwritten to {args.output} in {minutes:.1f} min: {SUMMARY}, reliability_*.png, "
        "a folder for each run"
    )


def run_all(output: Path, seed: int, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """All runs of one seed; returns what `summary.json` holds."""
    for recipe in RECIPES:
        folder = output / recipe
        # A run appends to its journal: what an earlier demo left would be taken for this one's.
        shutil.rmtree(folder, ignore_errors=True)
        # The base is the same for all: it is validated once, before the first run's first step.
        first = recipe == RECIPES[0]
        command = [sys.executable, "-m", "caopd_verl.main", f"+recipe={recipe}", "+scale=cpu_tiny"]
        command += [f"caopd.output_dir={folder}", f"data.seed={seed}"]
        command += [f"trainer.val_before_train={first}", "trainer.resume_mode=disable", *overrides]
        _run_one(recipe, command, folder)
    return summarise(output)


def summarise(output: Path) -> dict[str, dict[str, Any]]:
    """`summary.json`, the base's own report and the joint diagrams, from the runs' folders."""
    _report_base(output)
    folders = [output / name for name in (BASE, *RECIPES)]
    results = load_results(folders, DEFAULTS.summary)
    summary = {result.folder.name: _figures(result) for result in results}
    write_json(output / SUMMARY, summary)
    _draw(results, output)
    return summary


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as a table, stated confidence above the other readouts."""
    headings = [*KEYS[:-1], "format"]
    lines = [_line("", headings)]
    for name, figures in summary.items():
        lines.append(_line(name, _cells(figures)))
        for readout in SUMMARISED:
            if readout in figures:
                lines.append(_line(f"  {readout} confidence", _cells(figures[readout])))
    return "\n".join(lines)


def _run_one(recipe: str, command: list[str], folder: Path) -> None:
    """One training run: its output goes to its log, its steps to a progress bar."""
    folder.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=25)
    bar = tqdm(desc=f"{recipe}: starting Ray and vLLM", unit="step", dynamic_ncols=True)
    with (folder / LOG).open("w") as log:
        # errors="replace": progress bars of several processes cut each other's characters in two
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            # twice: the name stands at the line's beginning only when the colour is gone
            plain = _RAY_PREFIX.sub("", _RAY_PREFIX.sub("", line)).rstrip()
            tail.append(plain)
            match = _STEP.match(plain)
            if match is not None:
                bar.desc, bar.total = recipe, int(match[2])
                bar.set_postfix_str(match[3], refresh=False)
                bar.update(int(match[1]) - bar.n)
        code = process.wait()
    bar.close()
    if code:
        print("\n".join(tail), file=sys.stderr)
        raise SystemExit(f"{recipe} failed with exit code {code}; the whole log is {folder / LOG}")


def _report_base(output: Path) -> None:
    """The first run's validation before its first step, as a run of its own."""
    first, base = output / RECIPES[0], output / BASE
    rows = list(iter_rows(first / VALIDATION / step_file(0)))
    write_validation(rows, base, 0)
    (trained,) = load_results([first], DEFAULTS.summary)
    settings = trained.metrics["settings"]
    config = EvaluationConfig(settings["n_bins"], Missing(settings["missing"]))
    # The same questions and sampling; nothing had been trained yet.
    run = {**trained.metrics["run"], "method": "none"}
    write_training_report(base, config, step=0, name=BASE, run=run)


def _figures(result: Result) -> dict[str, Any]:
    """Of the stated confidence, and under their names those of the other readouts."""
    figures: dict[str, Any] = {}
    for readout in SUMMARISED:
        if readout not in result.metrics["readouts"]:
            continue
        own: dict[str, Any] = {"n": result.metrics["n_rows"]}
        for name in FIGURES:
            own[name] = result.estimate(readout, name).value
        figures |= own if readout == "stated" else {readout: own}
    return figures


def _draw(results: Sequence[Result], output: Path) -> None:
    for readout in COMPARED_READOUTS:
        having = [result for result in results if readout in result.columns.present()]
        if len(having) < len(results):
            continue  # a diagram without one of the runs would not be the comparison it claims
        label = LABELS[readout]
        settings = having[0].metrics["settings"]
        series = {}
        for result in having:
            columns = result.columns
            series[result.folder.name] = (columns.readouts[readout], columns.correct)
        compare_reliability(
            series,
            output / f"reliability_{readout}.png",
            n_bins=settings["n_bins"],
            title=f"{label} on held-out questions",
            readout=label,
        )


def _cells(figures: dict[str, Any]) -> list[str]:
    cells = [str(figures["n"])]
    for name in FIGURES:
        value = figures[name]
        cells.append("undefined" if value is None else f"{value:.3f}")
    return cells


def _line(label: str, cells: Sequence[str]) -> str:
    right = [f"{cell:>10}" for cell in cells]
    return f"{label:28}{''.join(right)}"


if __name__ == "__main__":
    main()
