"""Starts Ray and runs the trainer in a Ray actor, as verl's own `main_ppo` does.

Ours differs in three things: the trainer, the environment of a CPU run, and the report at the end.
"""

from __future__ import annotations

import os
from typing import cast

from omegaconf import DictConfig, OmegaConf

from caopd_verl.config import CaopdConfig
from caopd_verl.methods import METHODS
from caopd_verl.methods.method import needs_teacher
from caopd_verl.verl_ext import compat
from caopd_verl.verl_ext.vllm_plugin import KEEP_WEIGHTS_ENV

CPU_ENV = {
    "VERL_PLATFORM": "cpu",
    KEEP_WEIGHTS_ENV: "1",
    # pinning collides with Ray's other processes on few cores
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # idle engine loops otherwise take the cores from the trainer
    "VLLM_SLEEP_WHEN_IDLE": "1",
    "VERL_DISABLE_FLASH_ATTN_CE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TQ_LOGGING_LEVEL": "WARNING",
}


def prepare_environment(config: DictConfig) -> None:
    """Environment of this process and, through Ray, of all others.

    To be called before Ray, verl or vLLM is imported: they read it then, which is why this file
    imports them in functions alone. What the user has set stays.
    """
    # verl warns about every engine that is not installed, in every process
    quiet = "ignore::UserWarning,ignore::FutureWarning,ignore::DeprecationWarning"
    os.environ.setdefault("PYTHONWARNINGS", quiet)
    # under `uv run` Ray's own handling of workers' environments fails on what verl hands it
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if config.trainer.device == "cpu":
        for key, value in CPU_ENV.items():
            os.environ.setdefault(key, value)
    compat.ensure_vllm_metadata()


def check(config: DictConfig) -> None:
    """What can be checked with verl imported alone: its version and names, and its own checks.

    Args:
        config: composed, and passed by `preflight`; what verl still needs is filled in.

    Raises:
        IncompatibleVersionError: verl or vLLM is not what this package extends.
        ConfigError: the user's checkpoint callback can't be loaded.
    """
    prepare_environment(config)
    compat.check(cpu=config.trainer.device == "cpu")
    from verl.utils.config import validate_config

    from caopd_verl.verl_ext.checkpoint_callback import keep_own
    from caopd_verl.verl_ext.plugin import register

    register()
    keep_own(config)
    # the EMA teacher takes the place of verl's reference policy
    caopd = cast(CaopdConfig, OmegaConf.to_object(config.caopd))
    has_teacher = needs_teacher(METHODS[caopd.method], caopd)
    validate_config(config=config, use_reference_policy=has_teacher, use_critic=False)


def run(config: DictConfig) -> None:
    """Train. The config must have passed `preflight`. Blocks until the run's report is written.

    Raises:
        IncompatibleVersionError, ConfigError: as `check`.
    """
    check(config)
    import ray
    from verl.trainer.main_ppo import run_ppo

    try:
        run_ppo(config, task_runner_class=ray.remote(num_cpus=1)(TaskRunner))
    finally:
        ray.shutdown()


class TaskRunner:
    """The driver of a run. As a Ray actor: it may live on another node than the submitter."""

    def run(self, config: DictConfig) -> None:
        """Start the queue, the workers and the servers; train; write the report."""
        prepare_environment(config)
        import transfer_queue as tq
        from verl.trainer.ppo.v1 import get_trainer_cls
        from verl.utils.logging_utils import configure_verl_logging

        from caopd_verl.verl_ext import trainer  # noqa: F401  (registers trainer_mode caopd)

        configure_verl_logging()
        OmegaConf.resolve(config)
        config.transfer_queue.enable = True
        tq.init(config.transfer_queue)
        trainer_class = get_trainer_cls(config.trainer.v1.trainer_mode)
        instance = trainer_class(config=config)
        succeeded = False
        try:
            instance.init()
            instance.fit(None)
            instance.write_report()
            succeeded = True
        finally:
            # absent where `init` failed before the logger was made
            logger = getattr(instance, "logger", None)
            if logger is not None:
                logger.finish(exit_code=0 if succeeded else 1)
            tq.close()
