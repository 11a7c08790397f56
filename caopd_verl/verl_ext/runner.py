"""Starts Ray and runs the trainer in a Ray actor, as verl's own `main_ppo` does, with our trainer and report."""

from __future__ import annotations

import os

import ray
from omegaconf import DictConfig, OmegaConf

from caopd_verl.verl_ext import compat
from caopd_verl.verl_ext.vllm_plugin import KEEP_WEIGHTS_ENV

CPU_ENV = {
    "VERL_PLATFORM": "cpu",
    KEEP_WEIGHTS_ENV: "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinning collides with Ray's other processes on few cores
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_SLEEP_WHEN_IDLE": "1",  # idle engine loops otherwise take the cores from the trainer
    "VERL_DISABLE_FLASH_ATTN_CE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TQ_LOGGING_LEVEL": "WARNING",
}


def prepare_environment(config: DictConfig) -> None:
    """Environment of this process and, through Ray, of all others; before verl or vLLM is imported."""
    # verl warns about every engine that is not installed, in every process
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore::UserWarning,ignore::FutureWarning,ignore::DeprecationWarning"
    )
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if config.trainer.device == "cpu":
        for key, value in CPU_ENV.items():
            os.environ.setdefault(key, value)
    compat.ensure_vllm_metadata()


def check(config: DictConfig) -> None:
    """What can be checked with verl imported alone: its version and names, and its own checks."""
    prepare_environment(config)
    compat.check()
    from verl.utils.config import validate_config

    from caopd_verl.verl_ext.plugin import register

    register()
    validate_config(config=config, use_reference_policy=True, use_critic=False)


def run(config: DictConfig) -> None:
    """Train. The config must have passed `preflight`. Blocks until the run's report is written."""
    check(config)
    from verl.trainer.main_ppo import run_ppo

    try:
        run_ppo(config, task_runner_class=TaskRunner)
    finally:
        ray.shutdown()


@ray.remote(num_cpus=1)
class TaskRunner:
    """The driver of a run, as a Ray actor: it may live on another node than the submitting process."""

    def run(self, config: DictConfig) -> None:
        prepare_environment(config)
        import transfer_queue as tq
        from verl.trainer.ppo.v1 import get_trainer_cls
        from verl.utils.logging_utils import configure_verl_logging

        from caopd_verl.verl_ext import trainer  # noqa: F401  (registers trainer_mode caopd)

        configure_verl_logging()
        OmegaConf.resolve(config)
        config.transfer_queue.enable = True
        tq.init(config.transfer_queue)
        instance = get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)
        succeeded = False
        try:
            instance.init()
            instance.fit(None)
            instance.write_report()
            succeeded = True
        finally:
            logger = getattr(instance, "logger", None)
            if logger is not None:
                logger.finish(exit_code=0 if succeeded else 1)
            tq.close()
