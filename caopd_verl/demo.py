"""`make demo`: SDPO and both CaOPD presets from one base model on the arithmetic task, compared.

Runs the real entry point three times (`python -m caopd_verl.main +recipe=... +scale=cpu_tiny`), then writes
`summary.json`, a table and a joint reliability diagram to `outputs/demo`. Each run's own log, metrics, plots and
checkpoint are in `outputs/demo/<recipe>`.

    python -m caopd_verl.demo [--output outputs/demo] [--seed 0] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from tqdm import tqdm

from caopd_verl.config import EvaluationConfig
from caopd_verl.evaluation.plots.reliability import compare_reliability

RECIPES = ("sdpo", "sdpo_caopd", "sdpo_caopd_proper")
BASE = "base"
KEYS = ("n", "acc", "mean_conf", "ece", "brier", "ocg", "spr", "auroc", "format_adherence")
_RAY_PREFIX = re.compile(r"\x1b\[[0-9;]*m|^\(\w+ pid=\d+\) ?")
_STEP = re.compile(r"^step (\d+)/(\d+)  (.*)")


def main(argv: list[str] | None = None) -> None:
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
        f"\nwritten to {args.output} in {minutes:.1f} min: summary.json, reliability_*.png, a folder for each run"
    )


def run_all(output: Path, seed: int, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """All runs of one seed; returns what `summary.json` holds."""
    for recipe in RECIPES:
        folder = output / recipe
        shutil.rmtree(folder, ignore_errors=True)
        first = (
            recipe == RECIPES[0]
        )  # the base is validated once, before the first run's first step
        command = [
            *(sys.executable, "-m", "caopd_verl.main", f"+recipe={recipe}", "+scale=cpu_tiny"),
            *(
                f"caopd.output_dir={folder}",
                f"data.seed={seed}",
                f"trainer.val_before_train={first}",
            ),
            *("trainer.resume_mode=disable", *overrides),
        ]
        run_one(recipe, command, folder)
    rows = {BASE: _read_rows(sorted((output / RECIPES[0] / "validation").glob("*.jsonl"))[0])}
    rows |= {
        r: _read_rows(sorted((output / r / "validation").glob("*.jsonl"))[-1]) for r in RECIPES
    }
    return write_summary(rows, output)


def run_one(recipe: str, command: list[str], folder: Path) -> None:
    """One training run: its output goes to `log.txt`, its steps to a progress bar."""
    folder.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=25)
    bar = tqdm(desc=f"{recipe}: starting Ray and vLLM", unit="step", dynamic_ncols=True)
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            plain = _RAY_PREFIX.sub("", _RAY_PREFIX.sub("", line)).rstrip()
            tail.append(plain)
            if match := _STEP.match(plain):
                bar.desc, bar.total = recipe, int(match[2])
                bar.set_postfix_str(match[3], refresh=False)
                bar.update(int(match[1]) - bar.n)
        code = process.wait()
    bar.close()
    if code:
        print("\n".join(tail), file=sys.stderr)
        raise SystemExit(
            f"{recipe} failed with exit code {code}; the whole log is {folder / 'log.txt'}"
        )


def write_summary(rows: dict[str, list[dict[str, Any]]], output: Path) -> dict[str, dict[str, Any]]:
    """`summary.json`, the base's own report and the joint reliability diagrams."""
    from caopd_verl.verl_ext.validation import PLOTTED, READOUTS, summarize, write_report

    config = EvaluationConfig()
    summary: dict[str, dict[str, Any]] = {}
    for name, own in rows.items():
        readouts = summarize(own, config)
        summary[name] = {key: readouts["stated"][key] for key in KEYS}
        summary[name] |= {
            key: {k: m[k] for k in KEYS} for key, m in readouts.items() if key != "stated"
        }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    base = output / BASE
    base.mkdir(exist_ok=True)
    write_report(rows[BASE], base, config, step=0, name=BASE)
    for readout in PLOTTED:
        column = READOUTS[readout]
        if column in rows[BASE][0]:
            compare_reliability(
                {
                    name: ([r[column] for r in own], [r["correct"] for r in own])
                    for name, own in rows.items()
                },
                output / f"reliability_{readout}.png",
                n_bins=config.n_bins,
                title=f"{readout.capitalize()} confidence on held-out questions",
                readout=f"{readout.capitalize()} confidence",
            )
    return summary


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as a table, stated confidence above expected."""
    lines = [f"{'':28}" + "".join(f"{key:>10}" for key in KEYS[:-1]) + f"{'format':>10}"]
    for name, metrics in summary.items():
        readouts = {"stated": metrics, **{k: v for k, v in metrics.items() if isinstance(v, dict)}}
        for readout, values in readouts.items():
            cells = [
                "undefined" if values[k] is None else f"{values[k]:.3f}".rstrip() for k in KEYS[1:]
            ]
            label = name if readout == "stated" else f"  {readout} confidence"
            lines.append(f"{label:28}{values['n']:>10}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
