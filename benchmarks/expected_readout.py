"""Expected against stated confidence on the demo's trained models: paired bootstrap over questions.

    python benchmarks/expected_readout.py outputs/demo_seed0 outputs/demo_seed1 outputs/demo_seed2

Reads the last validation of each run, one folder a seed. For each preset it prints, for each seed
and for all seeds together, what the expected readout changes. The seeds share their questions, so
together they are samples of the same questions: a question is drawn with its answers of all seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from caopd_verl.demo import RECIPES
from caopd_verl.evaluation.intervals.compare import Column, Comparison, Difference, compare
from caopd_verl.evaluation.metrics.columns import load_columns
from caopd_verl.evaluation.settings import DEFAULTS

METRICS = ("spr", "auroc", "brier", "ece", "abs_ocg")


def joined(parts: Sequence[Column]) -> Column:
    """The rows of all seeds as one column."""
    return Column(
        groups=[question for part in parts for question in part.groups],
        confidence=[value for part in parts for value in part.confidence],
        correct=[verdict for part in parts for verdict in part.correct],
    )


def against_stated(stated: Column, expected: Column) -> Comparison:
    """What the expected readout changes, with the evaluation's own settings."""
    settings = DEFAULTS.summary
    return compare(
        stated,
        expected,
        n_bins=settings.n_bins,
        missing=settings.missing,
        n_resamples=settings.n_resamples,
        level=settings.level,
        seed=settings.seed,
    )


def text(difference: Difference) -> str:
    """One metric: both values, the difference with its interval, and the verdict."""
    if difference.difference is None:
        return "undefined"
    values = f"{difference.old:.3f} -> {difference.new:.3f}"
    interval = f"[{difference.low:+.3f}, {difference.high:+.3f}]"
    return f"{values}  {difference.difference:+.3f} {interval}  {difference.verdict}"


def main() -> None:
    """Print one line for each recipe, seed and metric."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demos", nargs="+", type=Path)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    args = parser.parse_args()
    for recipe in args.recipes.split(","):
        stated, expected = {}, {}
        for demo in args.demos:
            columns = load_columns(demo / recipe)
            stated[str(demo)] = columns.column("stated")
            expected[str(demo)] = columns.column("expected")
        stated["all seeds"] = joined(list(stated.values()))
        expected["all seeds"] = joined(list(expected.values()))
        for name, old in stated.items():
            # All metrics at once: the resamples are the same for each.
            differences = against_stated(old, expected[name]).metrics
            for metric in METRICS:
                print(f"{recipe:20} {name:24} {metric:8} {text(differences[metric])}")


if __name__ == "__main__":
    main()
