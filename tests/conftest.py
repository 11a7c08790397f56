"""What several layers' tests need: composed configs, the embedded tiny model's tokenizer, verl on the CPU platform."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).parents[1] / "caopd_verl" / "configs"


@cache
def _compose(overrides: tuple[str, ...]) -> Any:
    import hydra

    from caopd_verl.main import (
        recipe_before_scale,
    )  # importing main puts the schema of `caopd:` into the ConfigStore

    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        return hydra.compose("caopd_trainer", overrides=recipe_before_scale(list(overrides)))


@pytest.fixture(scope="session")
def compose() -> Callable[..., Any]:
    """`compose("+recipe=sdpo", "key=value")`: a config of the test's own, as the command would compose it."""
    return lambda *overrides: deepcopy(_compose(overrides))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Tokenizer of the embedded tiny model."""
    from caopd_verl.preflight.prepare import load_tokenizer, resolve_model_path

    return load_tokenizer(resolve_model_path("embedded:tiny_arith"), trust_remote_code=False)


@pytest.fixture(scope="session")
def verl_on_cpu() -> None:
    """verl imported on our CPU platform, as in a run with `trainer.device=cpu`; the environment is left as it was."""
    from caopd_verl.verl_ext import compat, runner

    with pytest.MonkeyPatch.context() as patch:
        for key, value in runner.CPU_ENV.items():
            patch.setenv(key, value)
        patch.setenv("PYTHONPATH", "")  # ensure_vllm_metadata adds to it
        compat.ensure_vllm_metadata()
        from verl.plugin.platform import get_platform

        get_platform()  # a singleton, from here on
