"""Configs that cannot work, and the one error that the checks before Ray make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from caopd_verl.errors import CaopdError
from caopd_verl.preflight.prepare import prepare

ROWS = Path(__file__).parent / "data" / "rows"


def set_keys(config: Any, values: dict[str, Any]) -> None:
    """Set dotted keys of a composed config."""
    for key, value in values.items():
        OmegaConf.update(config, key, value)


def refusal(config: Any, values: dict[str, Any]) -> CaopdError:
    """The error that `prepare` raises with these values; it has written nothing by then."""
    set_keys(config, values)
    with pytest.raises(CaopdError) as caught:
        prepare(config)
    assert not Path(config.caopd.output_dir).exists()
    return caught.value


def file_task(path: Path) -> dict[str, Any]:
    """Keys for a task of science questions from a file of few rows."""
    return {
        "caopd.task.name": "sciknoweval",
        "caopd.task.train_path": str(path),
        "caopd.task.val_fraction": 0.34,
        "caopd.task.n_train": None,
        "caopd.task.n_val": None,
        "data.max_prompt_length": 4096,
        "data.train_batch_size": 1,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 1,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
    }


def science_rows() -> list[dict[str, Any]]:
    """Good rows of that task."""
    lines = (ROWS / "sciknoweval.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """One row a line: a string as it is, anything else as JSON."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
