"""The options of `caopd compare`, `plot` and `report`, and what each of them calls.

All three take folders of evaluations and of training runs alike.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.eval_cli import add_summary, read_summary
from caopd_verl.evaluation.readouts.names import COMPARED_READOUTS, READOUT_NAMES
from caopd_verl.evaluation.settings import DEFAULTS
from caopd_verl.run_files import JOURNAL, PLOTS, REPORT

FOLDERS = "folders of caopd eval runs or training runs"


class CompareCommand:
    """`caopd compare`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        """Adds the command with its options."""
        parser: argparse.ArgumentParser = subparsers.add_parser(
            "compare",
            help="paired comparison on the same questions",
            description="Each further result against the first, by a paired bootstrap over their "
            "common questions.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument(
            "results", nargs="+", type=Path, help=f"{FOLDERS}, or files of rows: the old one first"
        )
        parser.add_argument(
            "--readout",
            default="stated",
            help=", ".join(READOUT_NAMES),
        )
        parser.add_argument("--against", default=None, help="the old result's readout, if another")
        parser.add_argument("--json", type=Path, help="write the comparison there too")
        add_summary(parser)
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        """Prints the differences; returns True."""
        from caopd_verl.evaluation.metrics.columns import load_columns
        from caopd_verl.evaluation.metrics.summary import compare_columns
        from caopd_verl.evaluation.report.console import comparison_text
        from caopd_verl.evaluation.rows.store import write_json

        settings = read_summary(args)
        first, *others = args.results
        against = args.against or args.readout
        if not others:
            if against == args.readout:
                raise ConfigError(
                    "one result has nothing to be compared with",
                    where="caopd compare",
                    expected="two results, or two readouts of one (--against)",
                )
            others = [first]
        old = load_columns(first).column(against)
        old_name = f"{first} ({against})"
        written: dict[str, Any] = {}
        for other in others:
            new = load_columns(other).column(args.readout)
            found = compare_columns(old, new, settings)
            print(comparison_text(found, old_name, str(other), args.readout), end="\n\n")
            written[str(other)] = {
                metric: difference.as_dict() for metric, difference in found.metrics.items()
            }
        if args.json is not None:
            write_json(args.json, {"old": str(first), "against": written})
        return True


class PlotCommand:
    """`caopd plot`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        """Adds the command with its options."""
        parser: argparse.ArgumentParser = subparsers.add_parser(
            "plot",
            help="reliability, histogram, risk-coverage, models against each other; or a run's "
            "training curves",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("results", nargs="*", type=Path, help=FOLDERS)
        parser.add_argument(
            "--output",
            "-o",
            type=Path,
            help=f"folder of the plots; of a single result, {PLOTS}/ in its folder otherwise",
        )
        parser.add_argument("--formats", default="png,svg", help="some of png, svg, pdf")
        parser.add_argument(
            "--training", type=Path, help=f"a training run's folder, or its {JOURNAL}"
        )
        parser.add_argument(
            "--panel", action="append", default=[], help="of the training plot: Title=metric,metric"
        )
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        """Draws; returns True."""
        from caopd_verl.evaluation.plots.draw import draw_comparison, draw_result
        from caopd_verl.evaluation.rows.results import load_results

        if not args.results and args.training is None:
            raise ConfigError(
                "there is nothing to draw", where="caopd plot", expected="results, or --training"
            )
        sources = list(args.results)
        if args.training is not None:
            sources.append(args.training)
        output = _output(args.output, sources, PLOTS)
        formats = args.formats.split(",")
        if args.training is not None:
            _draw_training(args.training, args.panel, output, formats)
        results = load_results(args.results, DEFAULTS.summary)
        for result in results:
            # the plots of several results have the same names
            folder = output / _file_name(result.name) if len(results) > 1 else output
            draw_result(result, folder, formats=formats)
        if len(results) > 1:
            for readout in COMPARED_READOUTS:
                draw_comparison(results, output, formats=formats, readout=readout)
        drawn = [path for path in output.rglob("*") if path.is_file()]
        print(f"{len(drawn)} plots in {output}")
        return True


class ReportCommand:
    """`caopd report`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        """Adds the command with its options."""
        parser: argparse.ArgumentParser = subparsers.add_parser(
            "report",
            help="one self-contained HTML page",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument(
            "results", nargs="+", type=Path, help=f"{FOLDERS}; the first is the reference"
        )
        parser.add_argument(
            "--output",
            "-o",
            type=Path,
            help=f"the HTML file; of a single result, {REPORT} in its folder otherwise",
        )
        parser.add_argument("--title", default="Calibration report")
        parser.add_argument("--examples", type=int, default=10, help="rows of each kind to show")
        add_summary(parser)
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        """Writes the page; returns True."""
        from caopd_verl.evaluation.report.page import write_report
        from caopd_verl.evaluation.rows.results import load_results

        settings = read_summary(args)
        output = _output(args.output, args.results, REPORT)
        results = load_results(args.results, settings)
        path = write_report(
            results, output, title=args.title, n_examples=args.examples, settings=settings
        )
        megabytes = path.stat().st_size / 1e6
        print(f"written to {path} ({megabytes:.1f} MB)")
        return True


def _output(given: Path | None, sources: Sequence[Path], name: str) -> Path:
    """Where to write: as given, or under this name in the folder of all sources."""
    if given is not None:
        return given
    # A run and its own journal are one place; anything else has no obvious home.
    folders = {source.parent if source.is_file() else source for source in sources}
    if len(folders) > 1:
        raise ConfigError(
            f"{len(folders)} results have no folder in common to write to",
            where="--output",
            expected="a path",
        )
    return folders.pop() / name


def _draw_training(
    source: Path, panels: Sequence[str], output: Path, formats: Sequence[str]
) -> None:
    from caopd_verl.evaluation.plots.curves import training_curves

    journal = source / JOURNAL if source.is_dir() else source
    drawn = {}
    for panel in panels:
        title, _, metrics = panel.partition("=")
        drawn[title] = metrics.split(",")
    for kind in formats:
        training_curves(journal, output / f"training.{kind}", panels=drawn)


def _file_name(name: str) -> str:
    """A name of a run as a folder's: what is no letter, digit, dot or hyphen becomes `_`."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "result"


COMMANDS: tuple[Any, ...] = (CompareCommand, PlotCommand, ReportCommand)
