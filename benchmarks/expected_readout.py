"""Expected against stated confidence on the demo's trained models: paired bootstrap over the questions.

    python benchmarks/expected_readout.py outputs/demo_seed0 outputs/demo_seed1 outputs/demo_seed2

Reads the last validation of each run (`<folder>/<recipe>/validation/<step>.jsonl`), one folder a seed. For each preset
it prints, for each seed and for all seeds together, what the expected readout changes. The seeds share their questions,
so together they are samples of the same questions: a question is drawn with its answers of all seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from caopd_verl.demo import RECIPES
from caopd_verl.evaluation.intervals.compare import Column, Comparison, compare
from caopd_verl.evaluation.metrics.columns import load_columns
from caopd_verl.evaluation.settings import DEFAULTS

METRICS = ("spr", "auroc", "brier", "ece", "abs_ocg")


def joined(parts: list[Column]) -> Column:
    """The rows of all seeds as one column."""
    return Column(
        [group for part in parts for group in part.groups],
        [value for part in parts for value in part.confidence],
        [right for part in parts for right in part.correct],
    )


def against_stated(stated: Column, expected: Column) -> Comparison:
    """What the expected readout changes, with the evaluation's own settings."""
    settings = DEFAULTS.summary
    return compare(
        stated, expected, n_bins=settings.n_bins, missing=settings.missing, n_resamples=settings.n_resamples,
        level=settings.level, seed=settings.seed,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demos", nargs="+", type=Path)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    args = parser.parse_args()
    for recipe in args.recipes.split(","):
        runs = [load_columns(demo / recipe) for demo in args.demos]
        stated, expected = (
            [run.column(readout) for run in runs] for readout in ("stated", "expected")
        )
        pairs = {str(demo): pair for demo, *pair in zip(args.demos, stated, expected, strict=True)}
        pairs["all seeds"] = [joined(stated), joined(expected)]
        for name, (old, new) in pairs.items():
            for metric in METRICS:
                d = against_stated(old, new).metrics[metric]
                if d.difference is None:
                    print(f"{recipe:20} {name:24} {metric:8} undefined")
                else:
                    print(
                        f"{recipe:20} {name:24} {metric:8} {d.old:.3f} -> {d.new:.3f}  "
                        f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]  {d.verdict}"
                    )


if __name__ == "__main__":
    main()
