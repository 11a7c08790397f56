"""Tasks: loaders that turn rows into `Example`s, one registry for all of them, and the form that verl reads.

`load_task` is the way in. The names are imported on first use, so that `data.prompts` and `data.arithmetic` stay cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
    from caopd_verl.data.registry import TASKS, load_task
    from caopd_verl.data.splits import check_disjoint, subsample, validation_split
    from caopd_verl.data.verl_rows import to_verl_rows, write_parquet

_HOME = {
    "CONFIDENCE_INSTRUCTION": "prompts",
    "TASKS": "registry",
    "check_disjoint": "splits",
    "load_task": "registry",
    "subsample": "splits",
    "to_verl_rows": "verl_rows",
    "validation_split": "splits",
    "write_parquet": "verl_rows",
}

__all__ = [
    "CONFIDENCE_INSTRUCTION",
    "TASKS",
    "check_disjoint",
    "load_task",
    "subsample",
    "to_verl_rows",
    "validation_split",
    "write_parquet",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"caopd_verl.data.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
