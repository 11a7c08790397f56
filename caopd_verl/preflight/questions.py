"""The questions that a run trains and validates on."""

from __future__ import annotations

from dataclasses import dataclass

from caopd_verl.config import TaskConfig
from caopd_verl.data.registry import FILE_TASKS, GENERATED, Split, load_task
from caopd_verl.data.splits import check_disjoint
from caopd_verl.errors import ConfigError
from caopd_verl.types import Example


@dataclass(frozen=True)
class Questions:
    """Two lists of questions without a common prompt."""

    train: list[Example]
    validation: list[Example]

    @property
    def all(self) -> list[Example]:
        """Training questions first."""
        return [*self.train, *self.validation]


def load_questions(task: TaskConfig) -> Questions:
    """The questions of a task.

    A generated task makes both lists. Otherwise validation has a file of its own (`val_path`), or
    is a part of the training file (`val_fraction`).

    Raises:
        ConfigError: naming the key under `caopd.task`.
        DataError: naming file and line of the row.
    """
    if task.name in FILE_TASKS and task.train_path is None:
        raise ConfigError(
            f"the task {task.name!r} needs a data file",
            where="caopd.task.train_path",
            expected="the path of a JSONL file",
            fix="see docs/data.md, or set +scale=cpu_tiny to try the generated task",
        )
    if task.name in GENERATED:  # what it makes for two splits never overlaps
        train = _load(task, "train", task.train_path)
        return Questions(train, _load(task, "test", task.val_path))
    if task.val_path is None:
        train = _load(task, "train", task.train_path, fraction=task.val_fraction)
        validation = _load(task, "val", task.train_path, fraction=task.val_fraction)
        return Questions(train, validation)
    train = _load(task, "train", task.train_path)
    validation = _load(task, "test", task.val_path)
    check_disjoint(train, validation, names=("caopd.task.train_path", "caopd.task.val_path"))
    return Questions(train, validation)


def _load(
    task: TaskConfig, split: Split, path: str | None, *, fraction: float | None = None
) -> list[Example]:
    """One list; what `load_task` says of its own arguments is said of the config's keys."""
    part = "train" if split == "train" else "val"
    n = task.n_train if split == "train" else task.n_val
    keys = {
        "task": "name",
        "path": f"{part}_path",
        "n": f"n_{part}",
        "arithmetic n": f"n_{part}",
        "validation_fraction": "val_fraction",
    }
    try:
        return load_task(
            task.name, path=path, seed=task.seed, n=n, split=split, validation_fraction=fraction
        )
    except ConfigError as error:
        if error.where not in keys:
            raise
        key = f"caopd.task.{keys[error.where]}"
        raise ConfigError(error.what, where=key, expected=error.expected, fix=error.fix) from error
