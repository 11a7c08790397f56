"""`load_task`: every task by its name, with one meaning of `split` and `n` for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from caopd_verl.data import additions
from caopd_verl.data.jsonl import load_jsonl
from caopd_verl.data.sciknoweval import load_sciknoweval
from caopd_verl.data.splits import subsample, validation_split
from caopd_verl.data.toolalpaca import load_toolalpaca
from caopd_verl.errors import ConfigError
from caopd_verl.types import Example

Split = Literal["train", "val", "test"]
GENERATED = ("arithmetic",)
Loader = Callable[..., list[Example]]
FILE_TASKS: dict[str, Loader] = {
    "sciknoweval": load_sciknoweval,
    "toolalpaca": load_toolalpaca,
    "jsonl": load_jsonl,
}
TASKS = (*GENERATED, *FILE_TASKS)


def load_task(
    name: str,
    *,
    path: str | Path | None,
    seed: int,
    n: int | None,
    split: Split,
    validation_fraction: float | None = None,
    **options: Any,
) -> list[Example]:
    """The examples of one split of a task.

    Args:
        name: one of `TASKS`.
        path: the file of a file task; None for a generated one.
        seed: of generated questions, of the validation split and of the choice of `n` rows.
        n: number of examples; None for all of the file (a generated task needs a number). A request
            for more than there are is an error.
        split: "test" is the whole file. "train" and "val" are the two parts of the file that
            `validation_fraction` makes; without it, "train" is the whole file and "val" an error.
            Generated tasks have splits too.
        validation_fraction: the share of the prompts that the validation split gets, in (0, 1).
        options: go to the loader: `placeholders` and `verifier` for toolalpaca, `verifier` for
            jsonl.

    Raises:
        ConfigError: unknown task, split or option; `path`, `n` or `validation_fraction` missing,
            superfluous or out of range.
        DataError: a row that can't be used, naming `file:line`.
    """
    if name not in TASKS:
        raise ConfigError(
            f"unknown task {name!r}", where="task", expected="one of " + ", ".join(TASKS)
        )
    if split not in get_args(Split):
        raise ConfigError(
            f"unknown split {split!r}",
            where="split",
            expected="one of " + ", ".join(get_args(Split)),
        )
    if name in GENERATED:
        return _generate(name, path, seed, n, split, validation_fraction, options)
    if path is None:
        raise ConfigError(
            f"the task {name!r} needs a data file", where="path", expected="the path of a file"
        )
    _check_options(name, options)
    examples = FILE_TASKS[name](path, **options)
    if validation_fraction is not None and split != "test":
        train, validation = validation_split(examples, fraction=validation_fraction, seed=seed)
        examples = train if split == "train" else validation
    elif split == "val":
        raise ConfigError(
            "a validation split was asked for without its size",
            where="validation_fraction",
            expected="a number in (0, 1)",
        )
    return examples if n is None else subsample(examples, n=n, seed=seed)


def _generate(
    name: str,
    path: str | Path | None,
    seed: int,
    n: int | None,
    split: Split,
    validation_fraction: float | None,
    options: dict[str, Any],
) -> list[Example]:
    # Refused and not ignored: with a path given, one would think that its questions are asked.
    refused = {"path": path, "validation_fraction": validation_fraction, **options}
    for key, value in refused.items():
        if value is not None:
            raise ConfigError(
                f"the task {name!r} is generated and takes no {key!r}",
                where=key,
                fix="leave it out",
            )
    if n is None:
        raise ConfigError(
            f"the task {name!r} is generated and needs a number of questions", where="n"
        )
    return additions.generate(n=n, seed=seed, split=split)


def _check_options(name: str, options: dict[str, Any]) -> None:
    # The loader's own keyword arguments, so that there is no second list of them to keep.
    allowed = FILE_TASKS[name].__kwdefaults__ or {}
    for key in options:
        if key not in allowed:
            expected = "one of " + ", ".join(allowed) if allowed else "no options"
            raise ConfigError(
                f"the task {name!r} has no option {key!r}", where=key, expected=expected
            )
