"""The options of `caopd eval`, and what it calls."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from caopd_verl.config import TaskConfig
from caopd_verl.data.registry import GENERATED, TASKS, Split, load_task
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.options import add_settings, json_object, read_settings
from caopd_verl.evaluation.settings import DEFAULTS, Local, Sampling, Summary
from caopd_verl.run_files import METRICS, ROWS
from caopd_verl.types import Example

DESCRIPTION = f"""Responses from a file (--responses), an OpenAI-compatible endpoint (--endpoint,
--model) or a local checkpoint (--model) -> {ROWS} and {METRICS}. An interrupted run goes on where
it stopped."""
SUMMARY_NAMES = {"seed": "bootstrap_seed"}  # `--seed` is the sampling's
FROM_ONE = ("samples", "max_tokens", "concurrency", "max_attempts", "batch_size")
# Arguments of the tokenizer's method, which `encode_prompt` gives itself.
OF_THE_TEMPLATE = ("tokenize", "add_generation_prompt", "conversation")


class EvalCommand:
    """`caopd eval`."""

    @classmethod
    def add_parser(cls, subparsers: Any) -> None:
        """Adds the command with its options."""
        parser: argparse.ArgumentParser = subparsers.add_parser(
            "eval",
            help="evaluate finished responses, an endpoint or a checkpoint",
            description=DESCRIPTION,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        _add_source(parser.add_argument_group("where the responses come from"))
        _add_task(parser.add_argument_group("what is asked"))
        sampling = parser.add_argument_group("sampling (defaults: the paper's protocol)")
        add_settings(sampling, DEFAULTS.sampling)
        endpoint = parser.add_argument_group("endpoint")
        add_settings(endpoint, DEFAULTS.endpoint)
        endpoint.add_argument(
            "--extra-body", metavar="JSON", default="{}", help="object merged into each request"
        )
        add_settings(parser.add_argument_group("local checkpoint"), DEFAULTS.local)
        add_summary(parser)
        _add_output(parser.add_argument_group("output"))
        parser.set_defaults(run=cls.run)

    @staticmethod
    def run(args: argparse.Namespace) -> bool:
        """Returns whether every row was finished."""
        from caopd_verl.evaluation.report.console import summary_text
        from caopd_verl.evaluation.run import Request, evaluate

        _check_source(args)
        request = Request(
            output=args.output,
            responses=args.responses,
            endpoint_url=args.endpoint,
            model=args.model,
            backend=args.backend,
            examples=examples_of(args),
            task=None if args.task is None else f"{args.task}/{args.split}",
            verifier=args.verifier,
            name=args.name,
            fresh=args.fresh,
            compat=args.compat,
            progress=not args.no_progress,
            sampling=_sampling(args),
            endpoint=_checked(read_settings(args, DEFAULTS.endpoint)),
            local=_local(args),
            summary=read_summary(args),
            extra_body=json_object(args.extra_body, where="--extra-body"),
        )
        metrics = evaluate(request)
        print(summary_text(metrics))
        print(f"\nwritten to {args.output}: {ROWS}, {METRICS}")
        # Exit code 3 where something is missing, so that a script notices.
        lost = metrics["counts"]
        return not (lost["failed"] or lost["unusable"] or lost["not_asked"])


def add_summary(parser: argparse.ArgumentParser) -> None:
    """The options of the metrics, for every command that computes them."""
    group = parser.add_argument_group("metrics")
    add_settings(group, DEFAULTS.summary, names=SUMMARY_NAMES)


def read_summary(args: argparse.Namespace) -> Summary:
    """What was given for the options of `add_summary`."""
    return read_settings(args, DEFAULTS.summary, names=SUMMARY_NAMES)


def examples_of(args: argparse.Namespace) -> list[Example] | None:
    """The questions that the options name; None where they name no task.

    Raises:
        ConfigError: options that do not go together. DataError: a row that can't be used.
    """
    if args.task is None:
        # finished responses may bring their own gold answers: no task is no error by itself
        if args.data is not None:
            raise ConfigError(
                "a data file without a task", where="--data", fix="name the task with --task"
            )
        return None
    if args.task in GENERATED and args.limit is None:
        raise ConfigError(
            f"the task {args.task} is generated", where="--limit", expected="a number of questions"
        )
    # Loaders refuse options that they don't have, so each gets its own alone.
    options: dict[str, Any] = {}
    if args.task in ("jsonl", "toolalpaca") and args.verifier:
        options["verifier"] = args.verifier
    if args.task not in GENERATED and args.split != "test":
        options["validation_fraction"] = args.val_fraction
    return load_task(
        args.task, path=args.data, seed=args.task_seed, n=args.limit, split=args.split, **options
    )


def _add_source(group: Any) -> None:
    group.add_argument("--responses", type=Path, help="JSONL of finished responses")
    group.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, up to /v1")
    group.add_argument("--model", help="the endpoint's model, or a local checkpoint")
    group.add_argument(
        "--backend", default="transformers", help="for a checkpoint: transformers or vllm"
    )


def _add_task(group: Any) -> None:
    group.add_argument("--task", help=f"one of {', '.join(TASKS)}")
    group.add_argument("--data", type=Path, help="the task's file")
    group.add_argument(
        "--split", default="test", choices=get_args(Split), help="test is the whole file"
    )
    group.add_argument(
        "--val-fraction",
        type=float,
        default=TaskConfig.val_fraction,
        help="of a file: what val is, as in training",
    )
    group.add_argument("--limit", type=int, help="so many questions, chosen by a hash")
    group.add_argument("--verifier", help="for rows that name none")
    group.add_argument("--task-seed", type=int, default=0, help="of the choice of questions")


def _add_output(group: Any) -> None:
    group.add_argument("--output", "-o", type=Path, required=True, help="folder of the results")
    group.add_argument("--name", help="for plots and reports; the model's otherwise")
    group.add_argument("--fresh", action="store_true", help="throw away what is in the folder")
    group.add_argument(
        "--compat", action="store_true", help="also the figures as the paper's code counts them"
    )
    group.add_argument("--no-progress", action="store_true")


def _check_source(args: argparse.Namespace) -> None:
    """Options of one source with another would be ignored. Raises `ConfigError`."""
    if args.responses is not None and (args.endpoint or args.model):
        raise ConfigError(
            "both finished responses and a model were given", where="--responses", fix="choose one"
        )
    if args.responses is None and not args.endpoint:
        return
    if args.p_true:
        raise ConfigError(
            "only a local checkpoint can be asked for P(True)",
            where="--p-true",
            fix="leave it out",
        )
    if json_object(args.chat_template_kwargs, where="--chat-template-kwargs"):
        raise ConfigError(
            "only a local checkpoint's prompts are encoded here",
            where="--chat-template-kwargs",
            fix="leave it out; for an endpoint that takes them, such as vLLM's: "
            """--extra-body '{"chat_template_kwargs": {"enable_thinking": false}}'""",
        )


def _sampling(args: argparse.Namespace) -> Sampling:
    sampling = _checked(read_settings(args, DEFAULTS.sampling))
    if sampling.temperature < 0.0 or not 0.0 < sampling.top_p <= 1.0:
        raise ConfigError(
            f"can't sample at temperature {sampling.temperature} and top-p {sampling.top_p}",
            where="--temperature",
            expected="a temperature >= 0 and a top-p in (0, 1]",
        )
    return sampling


def _local(args: argparse.Namespace) -> Local:
    local = _checked(read_settings(args, DEFAULTS.local))
    for name in OF_THE_TEMPLATE:
        if name in local.chat_template_kwargs:
            raise ConfigError(
                f"{name!r} is not the chat template's: a prompt is always encoded in one way",
                where="--chat-template-kwargs",
                expected="""arguments of the template alone, such as {"enable_thinking": false}""",
            )
    return local


def _checked(settings: Any) -> Any:
    for name in FROM_ONE:
        value = getattr(settings, name, None)
        if value is not None and value < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"{value} can't work", where=f"--{flag}", expected="at least 1")
    return settings


COMMANDS: tuple[Any, ...] = (EvalCommand,)
