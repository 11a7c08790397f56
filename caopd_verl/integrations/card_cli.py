"""The options of `caopd card`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


class CardCommand:
    """`caopd card`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        """Add the command with its options to argparse's `subparsers`."""
        parser: argparse.ArgumentParser = subparsers.add_parser(
            "card",
            help="evaluation results as metadata of a model card (model-index)",
            description="Writes the calibration metrics into the metadata of a README.md for the "
            "hub. A card that is there already keeps its text and its other metadata. "
            "Needs huggingface_hub (pip install '.[card]' in a checkout).",
        )
        parser.add_argument(
            "results", nargs="+", type=Path, help="folders of caopd eval or training runs"
        )
        parser.add_argument("--output", "-o", type=Path, required=True, help="the README.md")
        parser.add_argument(
            "--model-name", help="in the metadata; the card's own, or the run's, otherwise"
        )
        parser.add_argument(
            "--dataset",
            help="the data set's name on the hub, for a single result; the task's otherwise",
        )
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        """Write the card and say what was left out; True: it is complete.

        Raises:
            ConfigError: one data set's name for several results, or none where one is needed.
            DataError: a folder without metrics, or a README.md that is no model card.
        """
        # Only now, so that the other commands work without huggingface_hub.
        from caopd_verl.errors import ConfigError
        from caopd_verl.evaluation.rows.results import load_results
        from caopd_verl.evaluation.settings import DEFAULTS
        from caopd_verl.integrations.model_card import dataset_of, write_card

        results = load_results(args.results, DEFAULTS.summary)
        if args.dataset is not None and len(results) > 1:
            raise ConfigError(
                f"one name for {len(results)} results",
                where="--dataset",
                expected="a single result",
            )
        pairs = [(result, dataset_of(result, id=args.dataset)) for result in results]
        data, left_out = write_card(pairs, args.output, model_name=args.model_name)
        n_written = len(data.eval_results or [])
        print(f"written to {args.output}: {n_written} evaluation results of {data.model_name}")
        for line in left_out:
            print(f"  left out: {line}")
        return True


COMMANDS: tuple[Any, ...] = (CardCommand,)
