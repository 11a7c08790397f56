"""The config of a run, from what was typed: verl's defaults, our schema, a recipe, a scale, values.

Composing imports the package verl, because Hydra looks for `ppo_trainer` in `verl.trainer.config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig

from caopd_verl.config import CaopdConfig
from caopd_verl.errors import ConfigError

# absolute, so that a config can be composed from any folder and by an importer too
CONFIGS = Path(__file__).parents[1] / "configs"
CONFIG_NAME = "caopd_trainer"


def register_schema() -> None:
    """Give Hydra the schema of the `caopd` block, which `caopd_trainer.yaml` names."""
    ConfigStore.instance().store(group="caopd", name="schema", node=CaopdConfig)


def recipe_before_scale(arguments: Sequence[str]) -> list[str]:
    """The arguments with the scale right behind the recipe, in whatever order they were typed.

    Hydra lets the later of two override the earlier, and a scale has to override its recipe.
    """
    scales = [argument for argument in arguments if argument.startswith("+scale=")]
    others = [argument for argument in arguments if argument not in scales]
    recipes = [index for index, other in enumerate(others) if other.startswith("+recipe=")]
    behind_recipe = recipes[-1] + 1 if recipes else 0
    return [*others[:behind_recipe], *scales, *others[behind_recipe:]]


def compose(overrides: Sequence[str]) -> DictConfig:
    """The config that `python -m caopd_verl.main` would run with these overrides.

    Raises:
        ConfigError: a recipe, scale, key or value that does not exist, in Hydra's words.
    """
    register_schema()
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
            return hydra.compose(CONFIG_NAME, overrides=recipe_before_scale(overrides))
    except HydraException as error:
        # Hydra names the override, and what it is raised from says what is wrong with it
        words = [str(part) for part in (error, error.__cause__) if part is not None]
        raise ConfigError("\n".join(words), where="the config cannot be composed") from error
