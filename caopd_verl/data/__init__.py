"""Tasks: loaders that turn rows into `Example`s, and the form in which verl reads these.

`load_task` is the way in; it knows every task by its name.
"""

from __future__ import annotations

from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.data.registry import TASKS, load_task
from caopd_verl.data.splits import check_disjoint, subsample, validation_split
from caopd_verl.data.verl_rows import to_verl_rows, write_parquet

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
