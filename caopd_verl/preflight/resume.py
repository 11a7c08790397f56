"""A run goes on from its last checkpoint only if it is the same run: what is computed must not have changed.

`run.json` in the output folder says what the checkpoints there were trained with. Lengths, validation, logging, devices
and where rollouts are recorded may differ between the parts of a run; everything else is listed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caopd_verl.errors import ConfigError

FILE = "run.json"
_TRAINED_WITH = (
    *(
        "caopd.method",
        "caopd.unsolved",
        "caopd.truncated",
        "caopd.target",
        "caopd.context",
        "caopd.loss",
    ),
    *(
        "caopd.teacher",
        "caopd.task.name",
        "caopd.task.train_path",
        "caopd.task.n_train",
        "caopd.task.seed",
    ),
    *("caopd.task.val_path", "caopd.task.val_fraction", "data.max_response_length"),
    *(
        "actor_rollout_ref.actor.optim.lr_scheduler_type",
        "actor_rollout_ref.actor.optim.lr_warmup_steps",
    ),
    *(
        "actor_rollout_ref.model.path",
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.rollout.temperature",
    ),
    *("actor_rollout_ref.rollout.top_k", "actor_rollout_ref.rollout.top_p"),
    *("actor_rollout_ref.actor.optim.lr", "actor_rollout_ref.actor.optim.betas"),
    *("actor_rollout_ref.actor.optim.weight_decay", "actor_rollout_ref.actor.grad_clip"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.actor.ppo_epochs"),
    *("data.train_batch_size", "data.seed", "data.shuffle", "data.apply_chat_template_kwargs"),
)


def check_resume(config: DictConfig) -> None:
    """Write `run.json` for a run that begins; for one that goes on, compare. The config's paths are resolved already.

    Raises:
        ConfigError: `trainer.resume_mode=auto` would go on from another run's checkpoint.
    """
    if config.trainer.resume_mode == "resume_path":
        return  # named by the user
    path = Path(config.caopd.output_dir) / FILE
    now = {key: _plain(OmegaConf.select(config, key)) for key in _TRAINED_WITH}
    latest = Path(config.trainer.default_local_dir) / "latest_checkpointed_iteration.txt"
    if config.trainer.resume_mode == "disable":
        latest.unlink(
            missing_ok=True
        )  # or a later `auto` would take the old run's checkpoint for this one's
    if config.trainer.resume_mode == "auto" and latest.exists():
        if not path.exists():
            print(
                f"going on from a checkpoint without {path}: whether it is the same run can't be checked"
            )
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in _TRAINED_WITH if before.get(key) != now[key]]
        if other:
            raise ConfigError(
                "the folder holds checkpoints of another run: "
                + ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in other),
                where="caopd.output_dir",
                expected=f"the settings of {path}",
                fix="choose another caopd.output_dir, or start over with trainer.resume_mode=disable",
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Containers as JSON has them."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    return json.loads(json.dumps(value))
