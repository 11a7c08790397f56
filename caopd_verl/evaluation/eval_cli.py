"""The options of `caopd`'s commands, and what each of them calls."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from caopd_verl.config import TaskConfig
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.metrics.calibration import MISSING
from caopd_verl.evaluation.options import add_settings, field_type
from caopd_verl.evaluation.settings import DEFAULTS

Parser = argparse.ArgumentParser


class EvalCommand:
    """`caopd eval`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        parser: Parser = subparsers.add_parser(
            "eval",
            help="evaluate finished responses, an endpoint or a checkpoint",
            description="Responses from a file (--responses), an OpenAI-compatible endpoint (--endpoint, --model) or "
            "a local checkpoint (--model) -> rows.jsonl and metrics.json. An interrupted run goes on where it stopped.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        source = parser.add_argument_group("where the responses come from")
        source.add_argument("--responses", type=Path, help="JSONL of finished responses")
        source.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, up to /v1")
        source.add_argument("--model", help="the endpoint's model, or a local checkpoint")
        source.add_argument(
            "--backend", default="transformers", help="for a checkpoint: transformers or vllm"
        )
        task = parser.add_argument_group("what is asked")
        task.add_argument("--task", help="sciknoweval, toolalpaca, arithmetic or jsonl")
        task.add_argument("--data", type=Path, help="the task's file")
        task.add_argument(
            "--split",
            default="test",
            choices=("train", "val", "test"),
            help="test is the whole file",
        )
        task.add_argument(
            "--val-fraction",
            type=float,
            default=TaskConfig.val_fraction,
            help="of a file: what val is, as in training",
        )
        task.add_argument("--limit", type=int, help="so many questions, chosen by a hash")
        task.add_argument("--verifier", help="for rows that name none")
        task.add_argument("--task-seed", type=int, default=0, help="of the choice of questions")
        add_settings(
            parser.add_argument_group("sampling (defaults: the paper's protocol)"),
            DEFAULTS.sampling,
        )
        add_settings(parser.add_argument_group("endpoint"), DEFAULTS.endpoint)
        parser.add_argument(
            "--extra-body", default="{}", help="JSON object merged into each request"
        )
        add_settings(parser.add_argument_group("local checkpoint"), DEFAULTS.local)
        _add_summary(parser)
        parser.add_argument(
            "--output", "-o", type=Path, required=True, help="folder of the results"
        )
        parser.add_argument("--name", help="for plots and reports; the model's otherwise")
        parser.add_argument("--fresh", action="store_true", help="throw away what is in the folder")
        parser.add_argument(
            "--compat", action="store_true", help="also the figures as the paper's code counts them"
        )
        parser.add_argument("--no-progress", action="store_true")
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        from caopd_verl.evaluation.report.console import summary_text
        from caopd_verl.evaluation.run import Request, evaluate

        if args.responses is not None and (args.endpoint or args.model):
            raise ConfigError(
                "both finished responses and a model were given",
                where="--responses",
                fix="choose one",
            )
        if args.p_true and (args.responses is not None or args.endpoint):
            raise ConfigError(
                "only a local checkpoint can be asked for P(True)",
                where="--p-true",
                fix="leave it out",
            )
        request = Request(
            output=args.output,
            responses=args.responses,
            endpoint_url=args.endpoint,
            model=args.model,
            backend=args.backend,
            examples=_examples(args),
            task=_task_name(args),
            verifier=args.verifier,
            name=args.name,
            fresh=args.fresh,
            compat=args.compat,
            progress=not args.no_progress,
            sampling=_settings(args, DEFAULTS.sampling),
            endpoint=_settings(args, DEFAULTS.endpoint),
            local=_settings(args, DEFAULTS.local),
            summary=_settings(args, DEFAULTS.summary),
            extra_body=_json_object(args.extra_body),
        )
        metrics = evaluate(request)
        print(summary_text(metrics))
        print(f"\nwritten to {args.output}: rows.jsonl, metrics.json")
        lost = metrics["counts"]
        return not (lost["failed"] or lost["unusable"] or lost["not_asked"])


class CompareCommand:
    """`caopd compare`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        parser: Parser = subparsers.add_parser(
            "compare",
            help="paired comparison on the same questions",
            description="Each further result against the first, by a paired bootstrap over their common questions.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument(
            "results", nargs="+", type=Path, help="folders (or rows.jsonl files): the old one first"
        )
        parser.add_argument(
            "--readout",
            default="stated",
            help="stated, expected, expected_t1, p_true, self_consistency, answer_probability",
        )
        parser.add_argument("--against", default=None, help="the old result's readout, if another")
        parser.add_argument("--json", type=Path, help="write the comparison there too")
        _add_summary(parser)
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        from caopd_verl.evaluation.intervals.compare import compare
        from caopd_verl.evaluation.metrics.summary import load_columns
        from caopd_verl.evaluation.report.console import comparison_text

        settings = _settings(args, DEFAULTS.summary)
        first, *others = args.results
        against = args.against or args.readout
        if not others:
            if against == args.readout:
                raise ConfigError(
                    "one result has nothing to be compared with", where="caopd compare"
                )
            others = [first]
        old = load_columns(first).column(against)
        out = {}
        for other in others:
            result = compare(
                old, load_columns(other).column(args.readout), n_bins=settings.n_bins, missing=settings.missing,
                n_resamples=settings.n_resamples, level=settings.level, seed=settings.seed,
            )  # fmt: skip
            print(
                comparison_text(result, f"{first} ({against})", f"{other}", args.readout),
                end="\n\n",
            )
            out[str(other)] = {name: d.as_dict() for name, d in result.metrics.items()}
        if args.json is not None:
            args.json.write_text(json.dumps({"old": str(first), "against": out}, indent=2) + "\n")
        return True


class PlotCommand:
    """`caopd plot`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        parser: Parser = subparsers.add_parser(
            "plot",
            help="reliability, histogram, risk-coverage, models against each other; or a run's training curves",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("results", nargs="*", type=Path, help="folders of caopd eval runs")
        parser.add_argument("--output", "-o", type=Path, required=True, help="folder of the plots")
        parser.add_argument("--formats", default="png,svg", help="some of png, svg, pdf")
        parser.add_argument("--training", type=Path, help="a training run's metrics JSONL")
        parser.add_argument(
            "--panel", action="append", default=[], help="of the training plot: Title=metric,metric"
        )
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        from caopd_verl.evaluation.plots.curves import training_curves
        from caopd_verl.evaluation.plots.draw import draw_comparison, draw_result
        from caopd_verl.evaluation.rows.results import load_results

        formats = args.formats.split(",")
        if not args.results and args.training is None:
            raise ConfigError(
                "there is nothing to draw", where="caopd plot", expected="results, or --training"
            )
        if args.training is not None:
            panels = {
                title: keys.split(",") for title, _, keys in (p.partition("=") for p in args.panel)
            }
            for kind in formats:
                training_curves(args.training, args.output / f"training.{kind}", panels=panels)
        results = load_results(args.results)
        for result in results:
            draw_result(
                result,
                args.output / _file_name(result.name) if len(results) > 1 else args.output,
                formats=formats,
            )
        if len(results) > 1:
            for readout in ("stated", "expected"):
                draw_comparison(results, args.output, formats=formats, readout=readout)
        print(f"{sum(1 for p in args.output.rglob('*') if p.is_file())} plots in {args.output}")
        return True


class ReportCommand:
    """`caopd report`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        parser: Parser = subparsers.add_parser(
            "report",
            help="one self-contained HTML page",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument(
            "results",
            nargs="+",
            type=Path,
            help="folders of caopd eval runs; the first is the reference",
        )
        parser.add_argument("--output", "-o", type=Path, required=True, help="the HTML file")
        parser.add_argument("--title", default="Calibration report")
        parser.add_argument("--examples", type=int, default=10, help="rows of each kind to show")
        _add_summary(parser)
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        from caopd_verl.evaluation.report.page import write_report
        from caopd_verl.evaluation.rows.results import load_results

        settings = _settings(args, DEFAULTS.summary)
        path = write_report(
            load_results(args.results),
            args.output,
            title=args.title,
            n_examples=args.examples,
            settings=settings,
        )
        print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")
        return True


def _add_summary(parser: Parser) -> None:
    group = parser.add_argument_group("metrics")
    names = {"seed": "bootstrap_seed"}
    for item in fields(DEFAULTS.summary):
        default = getattr(DEFAULTS.summary, item.name)
        flag = "--" + names.get(item.name, item.name).replace("_", "-")
        choices = MISSING if item.name == "missing" else None
        group.add_argument(
            flag,
            type=field_type(item.type),
            default=default,
            choices=choices,
            dest=f"summary_{item.name}",
        )


def _settings(args: argparse.Namespace, defaults: Any) -> Any:
    prefix = "summary_" if defaults is DEFAULTS.summary else ""
    values = {item.name: getattr(args, prefix + item.name) for item in fields(defaults)}
    for name in ("samples", "concurrency", "max_attempts", "batch_size", "max_tokens"):
        if name in values and values[name] < 1:
            raise ConfigError(
                f"{values[name]} can't work",
                where=f"--{name.replace('_', '-')}",
                expected="at least 1",
            )
    if "temperature" in values and not (
        values["temperature"] >= 0.0 and 0.0 < values["top_p"] <= 1.0
    ):
        raise ConfigError(
            "can't sample like that", where="--temperature", expected="T >= 0 and top-p in (0, 1]"
        )
    return replace(defaults, **values)


def _examples(args: argparse.Namespace) -> Any:
    from caopd_verl.data.registry import GENERATED, load_task

    if args.task is None:
        if args.data is not None:
            raise ConfigError(
                "a data file without a task", where="--data", fix="name the task with --task"
            )
        return None
    options: dict[str, Any] = {}
    if args.task in ("jsonl", "toolalpaca") and args.verifier:
        options["verifier"] = args.verifier
    if args.task not in GENERATED and args.split != "test":
        options["validation_fraction"] = args.val_fraction
    if args.task in GENERATED and args.limit is None:
        raise ConfigError(
            f"the task {args.task} is generated", where="--limit", expected="a number of questions"
        )
    return load_task(
        args.task, path=args.data, seed=args.task_seed, n=args.limit, split=args.split, **options
    )


def _task_name(args: argparse.Namespace) -> str | None:
    return None if args.task is None else f"{args.task}/{args.split}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "result"


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"no JSON ({error})", where="--extra-body") from None
    if not isinstance(value, dict):
        raise DataError("no JSON object", where="--extra-body", expected='such as {"top_k": 20}')
    return value


COMMANDS: tuple[Any, ...] = (EvalCommand, CompareCommand, PlotCommand, ReportCommand)
