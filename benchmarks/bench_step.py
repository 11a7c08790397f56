"""A steady step of the CPU demo against a plain PyTorch loop, side by side.

The demo's step goes through Ray, TransferQueue, FSDP2 and vLLM. Both run at the same time's load:
the plain loop's steps are timed before and after the real run. Prints the ratio; absolute times
mean little on shared machines.

    python benchmarks/bench_step.py [--steps 12] [--recipe sdpo_caopd]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from caopd_verl.run_files import JOURNAL

WARM_UP = 3  # steps of the real run left out: first-call costs
PARTS = ("gen", "revise", "put", "update_actor", "update_weights")
PLAIN_LOOP = Path(__file__).with_name("plain_loop.py")


def real_steps(recipe: str, steps: int) -> list[dict]:
    """The journal of a run without validation and checkpoints, after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"+recipe={recipe}",
            "+scale=cpu_tiny",
            f"caopd.output_dir={folder}",
            f"trainer.total_training_steps={steps}",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            "trainer.save_freq=-1",
            "trainer.resume_mode=disable",
        ]
        command = [sys.executable, "-m", "caopd_verl.main", *settings]
        subprocess.run(command, check=True, capture_output=True)
        lines = (Path(folder) / JOURNAL).read_text().splitlines()
    return [json.loads(line) for line in lines][WARM_UP:]


def plain_step(recipe: str, steps: int) -> float:
    """Mean seconds of a step of the plain loop."""
    options = ["--method", recipe, "--steps", str(steps), "--n-val", "8", "--threads", "2"]
    command = [sys.executable, str(PLAIN_LOOP), *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    last = json.loads(output.splitlines()[-1])
    return last["seconds_per_step"]


def median_seconds(journal: list[dict], part: str) -> float:
    """Of one part of a step."""
    return statistics.median(row[f"timing_s/{part}"] for row in journal)


def main() -> None:
    """Time both and print the parts of the real step and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--recipe", default="sdpo_caopd")
    args = parser.parse_args()
    before = plain_step(args.recipe, args.steps)
    journal = real_steps(args.recipe, args.steps)
    after = plain_step(args.recipe, args.steps)
    plain = (before + after) / 2
    real = median_seconds(journal, "step")
    for part in PARTS:
        print(f"{part:15} {median_seconds(journal, part):.3f} s")
    print(f"real step       {real:.3f} s (median of {len(journal)})")
    print(f"plain step      {plain:.3f} s (mean of 2 x {args.steps}, before and after)")
    print(f"ratio           {real / plain:.1f}")


if __name__ == "__main__":
    main()
