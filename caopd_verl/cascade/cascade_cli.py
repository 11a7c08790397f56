"""The options of `caopd route` and `caopd proxy`, and what each of them calls."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from caopd_verl.cascade.routing_settings import DEFAULTS, Goal
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.options import add_settings

Parser = argparse.ArgumentParser
READOUTS = ("stated", "expected", "expected_t1", "p_true", "self_consistency", "answer_probability")


class RouteCommand:
    """`caopd route`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        parser: Parser = subparsers.add_parser(
            "route",
            help="a small model's confidence as router to a large one: cost, latency, accuracy, coverage",
            description="From the rows of a small and a large model: the threshold is chosen on a validation split of "
            "the questions, and the cascade is measured on the others, against always-small, always-large, random "
            "routing at equal cost and the oracle -> route.json and the cost-accuracy curve.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument(
            "--small", type=Path, action="append", required=True, metavar="DIR",
            help="folder of a caopd eval or training run; repeat it to compare routers: the first against each of the others",
        )  # fmt: skip
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
        goal = parser.add_argument_group(
            f"goal (--max-cost {DEFAULTS.goal.max_cost} where none is given)"
        )
        one = goal.add_mutually_exclusive_group()
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
        cost = parser.add_argument_group(
            "costs: per query in any unit, or prices per million tokens"
        )
        for which in ("small", "large"):
            cost.add_argument(f"--cost-{which}", type=float, help="per query")
            cost.add_argument(f"--{which}-price-in", type=float, help="per million prompt tokens")
            cost.add_argument(
                f"--{which}-price-out", type=float, help="per million response tokens"
            )
        add_settings(
            parser.add_argument_group("split, bootstrap, curve"),
            DEFAULTS.routing,
            choices={"readout": READOUTS},
            help=" ",
        )
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        from caopd_verl.cascade.measure import measure
        from caopd_verl.cascade.paired_rows import Price, align, load_model
        from caopd_verl.cascade.route_report import check_formats, draw, report_dict, report_text
        from caopd_verl.evaluation.rows.store import write_json

        routing, goal = _settings(args, DEFAULTS.routing), _goal(args)
        formats = check_formats(routing.formats)
        prices = {
            which: Price(
                which,
                per_query=getattr(args, f"cost_{which}"),
                price_in=getattr(args, f"{which}_price_in"),
                price_out=getattr(args, f"{which}_price_out"),
            )
            for which in ("small", "large")
        }
        smalls, large = (
            _named([load_model(folder) for folder in args.small], args.names),
            load_model(args.large),
        )
        aligned = align(
            smalls,
            large,
            readout=routing.readout,
            price_small=prices["small"],
            price_large=prices["large"],
        )
        report = measure(aligned, goal, routing)
        settings = {
            "small": {model.name: str(model.folder) for model in smalls},
            "large": {large.name: str(large.folder)},
            "goal": asdict(goal),
            "prices": {which: asdict(price) for which, price in prices.items()},
            **asdict(routing),
        }
        args.output.mkdir(parents=True, exist_ok=True)
        write_json(
            args.output / "route.json", {"settings": settings, **report_dict(report, aligned)}
        )
        plots = draw(report, args.output, formats=formats, title=args.title)
        print(report_text(report, aligned, goal, routing))
        print(f"\nwritten to {args.output}: route.json, {', '.join(path.name for path in plots)}")
        return True


class ProxyCommand:
    """`caopd proxy`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        parser: Parser = subparsers.add_parser(
            "proxy",
            help="route live between two OpenAI-compatible endpoints by the small one's stated confidence",
            description="An OpenAI-compatible endpoint: each request goes to the small model, and on to the large one "
            "where the confidence that the small one states is below the threshold. Prometheus metrics at /metrics.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for which in ("small", "large"):
            parser.add_argument(f"--{which}-url", required=True, help="up to /v1")
            parser.add_argument(f"--{which}-model", required=True, help="as that endpoint calls it")
        parser.add_argument(
            "--threshold",
            type=float,
            required=True,
            help="confidence from which the small model is served, in [0, 1]",
        )
        add_settings(parser.add_argument_group("proxy"), DEFAULTS.proxy, help=" ")
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        try:
            from caopd_verl.cascade.serve import serve
        except ModuleNotFoundError as error:
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
            settings=_settings(args, DEFAULTS.proxy),
        )
        return True


def _goal(args: argparse.Namespace) -> Goal:
    given = {
        name: getattr(args, name) for name in ("max_cost", "min_accuracy") if hasattr(args, name)
    }
    return Goal(**{"max_cost": None, "min_accuracy": None, **given}) if given else DEFAULTS.goal


def _named(models: list[Any], names: str | None) -> list[Any]:
    if names is None:
        return models
    given = [name.strip() for name in names.split(",")]
    if len(given) != len(models) or not all(given):
        raise ConfigError(
            f"{len(given)} names for {len(models)} small models",
            where="--names",
            expected="one each",
        )
    return [replace(model, name=name) for model, name in zip(models, given, strict=True)]


def _settings(args: argparse.Namespace, defaults: Any) -> Any:
    return replace(defaults, **{item.name: getattr(args, item.name) for item in fields(defaults)})


COMMANDS: tuple[Any, ...] = (RouteCommand, ProxyCommand)
