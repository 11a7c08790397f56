"""Enough devices for the ranks: Ray waits for ever for devices that it does not have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from caopd_verl.errors import ConfigError

if TYPE_CHECKING:
    from caopd_verl.preflight.run_context import Context


def check_devices(context: Context) -> None:
    """Raises `ConfigError` for more ranks than this machine has devices."""
    if context.ranks < 1:
        raise ConfigError(
            f"a run over {context.ranks} ranks",
            where="trainer.n_gpus_per_node",
            expected="at least one node (trainer.nnodes) with at least one rank",
        )
    if os.environ.get("RAY_ADDRESS"):
        return  # the devices are those of a running cluster, which only Ray can count
    if context.config.trainer.device == "cpu":
        _require_logical_devices(context)
    else:
        _require_gpus(context.config.trainer.n_gpus_per_node)


def _require_logical_devices(context: Context) -> None:
    """On CPUs verl places its ranks by logical GPUs, as many as Ray is told that there are."""
    from omegaconf import OmegaConf

    told = OmegaConf.select(context.config, "ray_kwargs.ray_init.num_gpus")
    logical = 0 if told is None else told  # Ray counts only real GPUs unless it is told otherwise
    if context.ranks > logical:
        one_node = context.config.trainer.nnodes == 1
        raise ConfigError(
            f"{context.ranks} ranks on a machine with {logical} logical devices",
            where="trainer.n_gpus_per_node" if one_node else "trainer.nnodes",
            expected=f"at most ray_kwargs.ray_init.num_gpus={logical} ranks in all",
            fix="run with a CPU scale (+scale=cpu_tiny): there the logical devices follow "
            "trainer.n_gpus_per_node",
        )


def _require_gpus(ranks_per_node: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if ranks_per_node > found:
        raise ConfigError(
            f"{ranks_per_node} ranks a node, and this machine has {found} GPUs",
            where="trainer.n_gpus_per_node",
            expected=f"at most {found}",
            fix="set trainer.n_gpus_per_node, or run on CPU: +scale=cpu_tiny",
        )
