"""A run goes on from its last checkpoint only if it is the same run.

`run.json` in the output folder says what the checkpoints there were trained with. Lengths,
validation, logging, devices and where rollouts are recorded may differ between the parts of a run;
what is computed may not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caopd_verl.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from caopd_verl.preflight.run_context import Context

FILE = "run.json"
MODEL_PATH = "actor_rollout_ref.model.path"
# The caopd block is bound to the run as a whole, so that a new setting is bound by default. Free
# are the keys that begin with one of these.
FREE = (
    "caopd.output_dir",
    "caopd.empty_batch",
    "caopd.evaluation.",
    "caopd.rollout.",
    "caopd.task.n_val",
)
# Of verl's settings, those that change what is computed.
BOUND_OF_VERL = (
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_k",
    "actor_rollout_ref.rollout.top_p",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.optim.lr_scheduler_type",
    "actor_rollout_ref.actor.optim.lr_warmup_steps",
    "actor_rollout_ref.actor.optim.betas",
    "actor_rollout_ref.actor.optim.weight_decay",
    "actor_rollout_ref.actor.grad_clip",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "data.train_batch_size",
    "data.max_response_length",
    "data.seed",
    "data.shuffle",
    "data.apply_chat_template_kwargs",
)


def check_resume(context: Context) -> None:
    """Raises `ConfigError` where `trainer.resume_mode=auto` would take another run's checkpoint."""
    config = context.config
    recorded = _run_file(config)
    if not _goes_on(config) or not recorded.exists():
        return
    before = json.loads(recorded.read_text(encoding="utf-8"))
    now = trained_with(config, context.model_path)
    changes = []
    # a setting that is younger than the run is not in its file, and not held against it
    for key, value in before.items():
        if now.get(key) != value:
            changes.append(f"{key} was {value!r}, is {now.get(key)!r}")
    if changes:
        raise ConfigError(
            "the folder holds checkpoints of another run: " + ", ".join(changes),
            where="caopd.output_dir",
            expected=f"the settings of {recorded}",
            fix="choose another caopd.output_dir, or start over with trainer.resume_mode=disable",
        )


def record_run(config: DictConfig, model_path: str) -> None:
    """Write `run.json` for a run that begins; one that goes on keeps its own.

    Under `trainer.resume_mode=disable` the folder's last checkpoint is forgotten. Otherwise a run
    that is killed before its own first checkpoint would go on, by `auto`, from the old run's.
    """
    mode = config.trainer.resume_mode
    path = _run_file(config)
    if mode == "resume_path":
        return  # from a checkpoint that the user names, wherever it comes from
    if mode == "disable":
        _latest_checkpoint(config).unlink(missing_ok=True)
    if _goes_on(config):
        if not path.exists():
            print(
                f"going on from a checkpoint without {path}: whether it is the same run "
                "can't be checked"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = trained_with(config, model_path)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def trained_with(config: DictConfig, model_path: str) -> dict[str, Any]:
    """Every setting that decides what is computed, from its dotted key, as JSON has it.

    Args:
        config: a run's config.
        model_path: the model's folder or hub id, from `resolve_model_path`: two spellings of one
            folder are one model.
    """
    from omegaconf import OmegaConf

    settings = _leaves(_plain(config.caopd), "caopd")
    bound = {key: value for key, value in settings.items() if not key.startswith(FREE)}
    of_verl = {key: _plain(OmegaConf.select(config, key)) for key in BOUND_OF_VERL}
    return {**bound, **of_verl, MODEL_PATH: model_path}


def _leaves(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A nested mapping as one, from dotted keys to values."""
    found: dict[str, Any] = {}
    for name, value in block.items():
        key = f"{where}.{name}"
        if isinstance(value, Mapping):
            found.update(_leaves(value, key))
        else:
            found[key] = value
    return found


def _goes_on(config: DictConfig) -> bool:
    return config.trainer.resume_mode == "auto" and _latest_checkpoint(config).exists()


def _run_file(config: DictConfig) -> Path:
    return Path(config.caopd.output_dir) / FILE


def _latest_checkpoint(config: DictConfig) -> Path:
    """Where verl writes the number of the step that it saved last."""
    return Path(config.trainer.default_local_dir) / "latest_checkpointed_iteration.txt"


def _plain(value: Any) -> Any:
    """Containers and enums as they are read back from JSON."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    return json.loads(json.dumps(value))
