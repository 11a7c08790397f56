"""What happens after a checkpoint is written: verl's `trainer.checkpoint_callback_class`.

verl calls `on_save` in the driver, at every `trainer.save_freq` steps and after the last step: all
ranks have written their files, and `latest_checkpointed_iteration.txt` names the step. It does not
call it when a run goes on from a checkpoint. An exception from it ends the run. Asynchronous saves,
which would be incomplete here, belong to Megatron and are refused before Ray starts.

A class of the user's own does not replace ours: `keep_own` puts ours in its place, and ours calls
it last, so that it sees the checkpoint as this package leaves it. A subclass of `AfterSave` is
taken as it is, and then calls `super().on_save(...)` where it wants to.

    python -m caopd_verl.main +recipe=sdpo_caopd +scale=cpu_tiny \\
        trainer.checkpoint_callback_class=my_package.uploads.Upload
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.utils.import_utils import load_class_from_fqn

from caopd_verl.errors import ConfigError

KEY = "checkpoint_callback_class"
USERS_KEY = "users_checkpoint_callback_class"  # the class that ours calls last; set by `keep_own`


class AfterSave(CheckpointCallback):
    """Completes a checkpoint, then calls the user's callback.

    The checkpoint folder must be shared by the nodes of a run, as it must for verl's own tracker.

    Args:
        config: the composed config after `keep_own`.
    """

    def __init__(self, config: DictConfig):
        super().__init__(config)
        users = config.trainer[USERS_KEY]
        users_class = CheckpointCallback if users is None else _load(users)
        self.users = users_class(config=config)

    def on_save(
        self,
        trainer: Any,
        global_step: int,
        checkpoint_dir: str,
        async_save: bool = False,
        **kwargs: Any,
    ) -> None:
        """One line for each thing that this package does with a complete checkpoint.

        Args:
            trainer: the trainer that saved.
            global_step: the step that was saved.
            checkpoint_dir: its folder, `global_step_<step>`.
            async_save: always False here.
            kwargs: what later versions of verl tell a callback; the user's gets it too.
        """
        remove_orphaned_teachers(Path(checkpoint_dir))
        self.users.on_save(
            trainer=trainer,
            global_step=global_step,
            checkpoint_dir=checkpoint_dir,
            async_save=async_save,
            **kwargs,
        )


OWN = f"{AfterSave.__module__}.{AfterSave.__qualname__}"


def keep_own(config: DictConfig) -> None:
    """Make sure that `AfterSave` runs, whatever `trainer.checkpoint_callback_class` says.

    Raises:
        ConfigError: the class named there can't be loaded. Found here, before Ray starts.
    """
    named = config.trainer[KEY]
    is_own = bool(named) and issubclass(_load(named), AfterSave)
    with open_dict(config.trainer):
        config.trainer[KEY] = named if is_own else OWN
        config.trainer[USERS_KEY] = None if is_own else named or None


def remove_orphaned_teachers(checkpoint: Path) -> None:
    """Remove the teachers of checkpoints whose student verl has removed.

    verl keeps `trainer.max_actor_ckpt_to_keep` students and does not know of the `teacher` folders
    beside them. All older steps are looked at, so what a killed run left over goes as well.

    Args:
        checkpoint: the folder just written; the others are its siblings.
    """
    for other in checkpoint.parent.glob("global_step_*"):
        is_kept = other.name == checkpoint.name or (other / "actor").exists()
        if not is_kept:
            shutil.rmtree(other / "teacher", ignore_errors=True)


def _load(name: str) -> type:
    """The class of that dotted name, by verl's own rule."""
    try:
        found = load_class_from_fqn(name, KEY)
    except (AttributeError, ImportError, ValueError) as error:
        raise _not_loaded(name, str(error)) from error
    if not isinstance(found, type):
        raise _not_loaded(name, "it is no class")
    return found


def _not_loaded(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{name!r} can't be loaded: {reason}",
        where=f"trainer.{KEY}",
        expected="the dotted name of a subclass of verl's CheckpointCallback, importable here",
    )
