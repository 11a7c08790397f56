"""A steady step of the CPU demo (Ray, TransferQueue, FSDP2, vLLM) against a plain PyTorch loop, side by side.

Both run at the same time's load: the plain loop's steps are timed before and after the real run, in the same process
tree. Prints the ratio; absolute times mean little on shared machines.

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

WARM_UP = 3  # steps of the real run left out: first-call costs


def real_steps(recipe: str, steps: int) -> list[dict]:
    """The journal of a run without validation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "caopd_verl.main", f"+recipe={recipe}", "+scale=cpu_tiny"),
            *(
                f"caopd.output_dir={folder}",
                f"trainer.total_training_steps={steps}",
                "trainer.val_before_train=false",
            ),
            *("trainer.test_freq=-1", "trainer.save_freq=-1", "trainer.resume_mode=disable"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][WARM_UP:]


def plain_step(recipe: str, steps: int) -> float:
    """Mean seconds of a step of the plain loop."""
    command = [
        *(sys.executable, str(Path(__file__).with_name("plain_loop.py")), "--method", recipe),
        *("--steps", str(steps), "--n-val", "8", "--threads", "2"),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["seconds_per_step"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--recipe", default="sdpo_caopd")
    args = parser.parse_args()
    before = plain_step(args.recipe, args.steps)
    real = real_steps(args.recipe, args.steps)
    plain = (before + plain_step(args.recipe, args.steps)) / 2
    seconds = [row["timing_s/step"] for row in real]
    for name in ("gen", "revise", "put", "update_actor", "update_weights"):
        print(f"{name:15} {statistics.median(row[f'timing_s/{name}'] for row in real):.3f} s")
    print(f"real step       {statistics.median(seconds):.3f} s (median of {len(seconds)})")
    print(f"plain step      {plain:.3f} s (mean of 2 x {args.steps}, before and after)")
    print(f"ratio           {statistics.median(seconds) / plain:.1f}")


if __name__ == "__main__":
    main()
