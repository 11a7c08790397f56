"""The demo's trained models on fresh questions, and as routers to a larger model (issue 3, the paper's Appendix F).

    python -m caopd_verl.assets.make_tiny_model --large --out outputs/large
    python benchmarks/cascade_demo.py outputs/demo_seed0 outputs/demo_seed1 outputs/demo_seed2 \
        --large outputs/large --output outputs/cascade

Every model answers the same `--limit` questions of the test split, drawn with another seed than the demo's; a seed's
rows become samples 0, 1, 2 of one result per recipe, so that intervals resample questions with the answers of all
seeds. Prints `caopd route`'s table for SDPO's small models against CaOPD's, by each of the readouts.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

from caopd_verl import assets
from caopd_verl.cli import main as caopd
from caopd_verl.demo import BASE, RECIPES

TASK_SEED = "1"
COSTS = ("--cost-small", "1", "--cost-large", "10")


def evaluate(model: Path, output: Path, name: str, *, limit: int, seed: int) -> None:
    """`caopd eval` of one checkpoint on the fresh questions."""
    where = [
        "--model",
        str(model),
        "--task",
        "arithmetic",
        "--task-seed",
        TASK_SEED,
        "--limit",
        str(limit),
    ]
    more = [
        "--max-tokens",
        "24",
        "--seed",
        str(seed),
        "--threads",
        "1",
        "--batch-size",
        "250",
        "--name",
        name,
    ]
    if caopd(["eval", *where, *more, "--output", str(output), "--no-progress"]):
        raise SystemExit(f"the evaluation of {model} failed")


def checkpoint(demo: Path, recipe: str) -> Path:
    """The last checkpoint of a demo's run, as plain transformers load it."""
    found = sorted(
        (demo / recipe / "checkpoints").glob("global_step_*"), key=lambda path: int(path.name[12:])
    )
    if not found:
        raise SystemExit(f"{demo / recipe} holds no checkpoint: give the folders of finished demos")
    return found[-1] / "actor" / "huggingface"


def pooled(parts: list[Path], output: Path, name: str) -> Path:
    """One result whose samples are the rows of the parts."""
    rows = [
        {**json.loads(line), "sample": sample}
        for sample, part in enumerate(parts)
        for line in (part / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    output.mkdir(parents=True, exist_ok=True)
    source = output / "pooled.jsonl"
    source.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    if caopd(
        [
            "eval",
            "--responses",
            str(source),
            "--name",
            name,
            "--output",
            str(output),
            "--no-progress",
        ]
    ):
        raise SystemExit(f"the rows of {name} can't be pooled")
    return output


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demos", nargs="+", type=Path)
    parser.add_argument("--large", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000)
    args = parser.parse_args()
    evaluate(args.large, args.output / "large", "large", limit=args.limit, seed=0)
    evaluate(
        Path(assets.__path__[0]) / "tiny_arith", args.output / BASE, BASE, limit=args.limit, seed=0
    )
    results = {}
    for recipe in RECIPES:
        parts = [args.output / f"{recipe}_{i}" for i in range(len(args.demos))]
        for i, (demo, part) in enumerate(zip(args.demos, parts, strict=True)):
            evaluate(checkpoint(demo, recipe), part, recipe, limit=args.limit, seed=i)
        results[recipe] = pooled(parts, args.output / recipe, recipe)
    for preset, readout in product(RECIPES[1:], ("stated", "expected", "expected_t1")):
        print(f"\n===== {preset} against {RECIPES[0]}, routing by the {readout} confidence")
        small = [
            item for recipe in (preset, RECIPES[0]) for item in ("--small", str(results[recipe]))
        ]
        where = [
            "--large",
            str(args.output / "large"),
            "--output",
            str(args.output / f"route_{preset}_{readout}"),
        ]
        if caopd(["route", *small, *where, *COSTS, "--readout", readout]):
            raise SystemExit("routing failed")


if __name__ == "__main__":
    main()
