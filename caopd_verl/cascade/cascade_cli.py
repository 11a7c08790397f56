"""The options of `caopd route` and `caopd proxy`, and what each of them calls."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caopd_verl.cascade.routing_settings import DEFAULTS, Goal
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.options import add_settings, read_settings

if TYPE_CHECKING:
    from caopd_verl.cascade.paired_rows import ModelRows

Parser = argparse.ArgumentParser
# argparse's formatter shows a default only where there is a help text, so a blank one stands in.
_DEFAULT_ONLY = " "


class RouteCommand:
    """`caopd route`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        """Add the command with its options to argparse's `subparsers`."""
        parser: Parser = subparsers.add_parser(
            "route",
            help="a small model's confidence as router to a large one: "
            "cost, latency, accuracy, coverage",
            description="From the rows of a small and a large model: the threshold is chosen on a "
            "validation split of the questions, and the cascade is measured on the others, against "
            "always-small, always-large, random routing at equal cost and the oracle -> "
            "route.json and the cost-accuracy curve.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        cls._add_results(parser)
        cls._add_goal(parser)
        cls._add_costs(parser)
        group = parser.add_argument_group("split, bootstrap, curve")
        add_settings(group, DEFAULTS.routing, help=_DEFAULT_ONLY)
        parser.set_defaults(run=cls.run)

    @staticmethod
    def _add_results(parser: Parser) -> None:
        parser.add_argument(
            "--small",
            type=Path,
            action="append",
            required=True,
            metavar="DIR",
            help="folder of a caopd eval or training run; repeat it to compare routers: "
            "the first against each of the others",
        )
        parser.add_argument(
            "--large",
            type=Path,
            required=True,
            metavar="DIR",
            help="folder of the large model's run",
        )
        parser.add_argument(
            "--output", "-o", type=Path, required=True, help="folder of route.json and the plots"
        )
        parser.add_argument(
            "--names",
            help="names of the small models, comma-separated; those of the runs otherwise",
        )
        parser.add_argument("--title", help="of the plot")

    @staticmethod
    def _add_goal(parser: Parser) -> None:
        group = parser.add_argument_group(
            f"goal (--max-cost {DEFAULTS.goal.max_cost} where none is given)"
        )
        # No defaults: whichever is given replaces the default goal, the other one then is none.
        one = group.add_mutually_exclusive_group()
        one.add_argument(
            "--max-cost",
            type=float,
            default=argparse.SUPPRESS,
            help="mean cost, as a share of always-large's",
        )
        one.add_argument(
            "--min-accuracy",
            type=float,
            default=argparse.SUPPRESS,
            help="share of the large's accuracy to be kept",
        )

    @staticmethod
    def _add_costs(parser: Parser) -> None:
        group = parser.add_argument_group(
            "costs: per query in any unit, or prices per million tokens"
        )
        for model in ("small", "large"):
            group.add_argument(f"--cost-{model}", type=float, help="per query")
            group.add_argument(f"--{model}-price-in", type=float, help="per million prompt tokens")
            group.add_argument(
                f"--{model}-price-out", type=float, help="per million response tokens"
            )

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        """Measure, write `route.json` and the plots, print the tables; True: it is complete.

        Raises:
            ConfigError: options that can't work.
            DataError: results that can't be read, or don't belong together.
        """
        # Only now, so that `caopd --help` needs neither NumPy nor matplotlib.
        from caopd_verl.cascade.measure import measure
        from caopd_verl.cascade.paired_rows import align, load_model
        from caopd_verl.cascade.prices import Price
        from caopd_verl.cascade.route_plots import draw
        from caopd_verl.cascade.route_report import report_dict, report_text
        from caopd_verl.evaluation.rows.store import write_json

        routing = read_settings(args, DEFAULTS.routing)
        goal = _goal(args)
        formats = _formats(routing.formats)
        price_small = Price("small", args.cost_small, args.small_price_in, args.small_price_out)
        price_large = Price("large", args.cost_large, args.large_price_in, args.large_price_out)
        smalls = _named([load_model(folder) for folder in args.small], args.names)
        large = load_model(args.large)
        aligned = align(
            smalls,
            large,
            readout=routing.readout,
            price_small=price_small,
            price_large=price_large,
        )
        report = measure(aligned, goal, routing)
        settings = {
            "small": _folders(smalls),
            "large": _folders([large]),
            "goal": asdict(goal),
            "prices": {"small": asdict(price_small), "large": asdict(price_large)},
            **asdict(routing),
        }
        args.output.mkdir(parents=True, exist_ok=True)
        content = {"settings": settings, **report_dict(report, aligned)}
        write_json(args.output / "route.json", content)
        plots = draw(report, args.output, formats=formats, title=args.title)
        print(report_text(report, aligned, goal, routing))
        plot_names = ", ".join(path.name for path in plots)
        print(f"\nwritten to {args.output}: route.json, {plot_names}")
        return True


class ProxyCommand:
    """`caopd proxy`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        """Add the command with its options to argparse's `subparsers`."""
        parser: Parser = subparsers.add_parser(
            "proxy",
            help="route live between two OpenAI-compatible endpoints by the small one's stated "
            "confidence",
            description="An OpenAI-compatible endpoint: each request goes to the small model, and "
            "on to the large one where the confidence that the small one states is below the "
            "threshold. Prometheus metrics at /metrics.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for model in ("small", "large"):
            parser.add_argument(f"--{model}-url", required=True, help="up to /v1")
            parser.add_argument(f"--{model}-model", required=True, help="as that endpoint calls it")
        parser.add_argument(
            "--threshold",
            type=float,
            required=True,
            help="confidence from which the small model is served, in [0, 1]",
        )
        add_settings(parser.add_argument_group("proxy"), DEFAULTS.proxy, help=_DEFAULT_ONLY)
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        """Listen until interrupted; True: it is complete.

        Raises:
            ConfigError: options that can't work, or a package of the `proxy` extra is missing.
        """
        try:
            from caopd_verl.cascade.serve import serve
        except ModuleNotFoundError as error:
            # A missing module of this package is a bug, and no extra would bring it.
            if error.name and error.name.startswith("caopd_verl"):
                raise
            raise ConfigError(
                f"the proxy needs {error.name}, which is not installed",
                where="caopd proxy",
                fix="pip install '.[proxy]' in a checkout of caopd_verl",
            ) from None
        serve(
            small=(args.small_url, args.small_model),
            large=(args.large_url, args.large_model),
            threshold=args.threshold,
            settings=read_settings(args, DEFAULTS.proxy),
        )
        return True


def _goal(args: argparse.Namespace) -> Goal:
    options = vars(args)
    given = {name: options[name] for name in ("max_cost", "min_accuracy") if name in options}
    if not given:
        return DEFAULTS.goal
    nothing = Goal(max_cost=None, min_accuracy=None)
    return replace(nothing, **given)


def _formats(text: str) -> list[str]:
    """The formats of a comma-separated list."""
    from caopd_verl.evaluation.plots.draw import FORMATS

    formats = text.split(",")
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(
                f"unknown format {name!r}",
                where="--formats",
                expected="some of " + ", ".join(FORMATS),
            )
    return formats


def _named(models: Sequence[ModelRows], names: str | None) -> list[ModelRows]:
    """The models under the names of a comma-separated list; under their own where there is none."""
    if names is None:
        return list(models)
    given = [name.strip() for name in names.split(",")]
    if len(given) != len(models) or not all(given):
        raise ConfigError(
            f"{len(given)} names for {len(models)} small models",
            where="--names",
            expected="one each",
        )
    renamed = zip(models, given, strict=True)
    return [replace(model, name=name) for model, name in renamed]


def _folders(models: Sequence[ModelRows]) -> dict[str, str]:
    return {model.name: str(model.folder) for model in models}


COMMANDS: tuple[Any, ...] = (RouteCommand, ProxyCommand)
