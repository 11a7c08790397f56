"""The demo's trained models on fresh questions, and as routers to a larger model.

The paper's Appendix F proposes such a cascade and leaves its validation open.

    python -m caopd_verl.assets.make_tiny_model --large --out outputs/large
    python benchmarks/cascade_demo.py outputs/demo_seed0 outputs/demo_seed1 outputs/demo_seed2 \\
        --large outputs/large --output outputs/cascade

Every model answers the same `--limit` questions of the test split, drawn with another seed than the
demo's. A seed's rows become samples 0, 1, 2 of one result per recipe, so that intervals resample
questions with the answers of all seeds. Prints `caopd route`'s table for SDPO's small models
against CaOPD's, by each of the readouts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from caopd_verl import assets
from caopd_verl.cli import main as caopd
from caopd_verl.demo import BASE, RECIPES
from caopd_verl.run_files import CHECKPOINTS, ROWS

TASK = ("--task", "arithmetic", "--task-seed", "1")
# One thread: on a machine with other work, few are much faster than too many.
LOCAL = ("--max-tokens", "24", "--threads", "1", "--batch-size", "250")
COSTS = ("--cost-small", "1", "--cost-large", "10")
READOUTS = ("stated", "expected", "expected_t1")


def evaluate(model: Path, output: Path, name: str, *, limit: int, seed: int) -> None:
    """`caopd eval` of one checkpoint on the fresh questions."""
    questions = [*TASK, "--limit", str(limit)]
    sampling = [*LOCAL, "--seed", str(seed)]
    where = ["--output", str(output), "--name", name, "--no-progress"]
    if caopd(["eval", "--model", str(model), *questions, *sampling, *where]):
        raise SystemExit(f"the evaluation of {model} failed")


def checkpoint(demo: Path, recipe: str) -> Path:
    """The last checkpoint of a demo's run, as plain transformers load it."""
    steps = {}
    for path in (demo / recipe / CHECKPOINTS).glob("global_step_*"):
        steps[int(path.name.removeprefix("global_step_"))] = path
    if not steps:
        raise SystemExit(f"{demo / recipe} holds no checkpoint: give the folders of finished demos")
    return steps[max(steps)] / "actor" / "huggingface"


def pooled(parts: Sequence[Path], output: Path, name: str) -> Path:
    """One result whose samples are the rows of the parts."""
    lines = []
    for sample, part in enumerate(parts):
        for line in (part / ROWS).read_text(encoding="utf-8").splitlines():
            row = {**json.loads(line), "sample": sample}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    output.mkdir(parents=True, exist_ok=True)
    source = output / "pooled.jsonl"
    source.write_text("".join(lines), encoding="utf-8")
    where = ["--output", str(output), "--name", name, "--no-progress"]
    if caopd(["eval", "--responses", str(source), *where]):
        raise SystemExit(f"the rows of {name} can't be pooled")
    return output


def route(smalls: Sequence[Path], large: Path, output: Path, readout: str) -> None:
    """`caopd route` of the small models, the first against the others."""
    models = ["--large", str(large)]
    for small in smalls:
        models += ["--small", str(small)]
    options = [*COSTS, "--readout", readout, "--output", str(output)]
    if caopd(["route", *models, *options]):
        raise SystemExit("routing failed")


def main() -> None:
    """Evaluate everything, pool the seeds, route."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demos", nargs="+", type=Path)
    parser.add_argument("--large", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000)
    args = parser.parse_args()
    large, base = args.output / "large", args.output / BASE
    evaluate(args.large, large, "large", limit=args.limit, seed=0)
    base_model = Path(assets.__path__[0]) / "tiny_arith"
    evaluate(base_model, base, BASE, limit=args.limit, seed=0)
    results = {}
    for recipe in RECIPES:
        parts = []
        for seed, demo in enumerate(args.demos):
            part = args.output / f"{recipe}_{seed}"
            evaluate(checkpoint(demo, recipe), part, recipe, limit=args.limit, seed=seed)
            parts.append(part)
        results[recipe] = pooled(parts, args.output / recipe, recipe)
    first, *presets = RECIPES
    for preset, readout in product(presets, READOUTS):
        print(f"\n===== {preset} against {first}, routing by the {readout} confidence")
        smalls = [results[preset], results[first]]
        route(smalls, large, args.output / f"route_{preset}_{readout}", readout)


if __name__ == "__main__":
    main()
