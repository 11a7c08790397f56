"""What several layers' tests need: composed configs, the tiny model's tokenizer, verl on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Hydra, transformers and verl are imported where they are asked for: the tests of measuring and
# routing run in an environment without them.


@cache
def _compose_once(overrides: tuple[str, ...]) -> Any:
    from caopd_verl.preflight.compose import compose

    return compose(overrides)


@pytest.fixture(scope="session")
def compose() -> Callable[..., Any]:
    """`compose("+recipe=sdpo", "key=value")`: a config of the test's own, as the command's."""
    return lambda *overrides: deepcopy(_compose_once(overrides))


@pytest.fixture
def demo_config(compose, tmp_path, monkeypatch) -> Any:
    """The CPU demo's config, on a handful of questions, with its output in `tmp_path / "out"`."""
    from omegaconf import OmegaConf

    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # a cluster's devices are not counted
    config = compose("+recipe=sdpo_caopd", "+scale=cpu_tiny")
    OmegaConf.update(config, "caopd.task.n_train", 32)
    OmegaConf.update(config, "caopd.task.n_val", 8)
    OmegaConf.update(config, "caopd.output_dir", str(tmp_path / "out"))
    return config


@pytest.fixture(scope="session")
def tiny_model_path() -> Path:
    """The embedded tiny model's folder."""
    from caopd_verl.preflight.model_files import resolve_model_path

    return Path(resolve_model_path("embedded:tiny_arith"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_path) -> Any:
    """Tokenizer of the embedded tiny model."""
    from caopd_verl.preflight.model_files import load_tokenizer

    return load_tokenizer(str(tiny_model_path), trust_remote_code=False)


@pytest.fixture(scope="session")
def verl_on_cpu() -> None:
    """verl imported on our CPU platform, as in a run with `trainer.device=cpu`.

    The environment is left as it was.
    """
    from caopd_verl.verl_ext import compat, runner

    with pytest.MonkeyPatch.context() as patch:
        for key, value in runner.CPU_ENV.items():
            patch.setenv(key, value)
        patch.setenv("PYTHONPATH", "")  # ensure_vllm_metadata adds to it
        compat.ensure_vllm_metadata()
        from verl.plugin.platform import get_platform

        get_platform()  # a singleton, from here on
