"""Entry point `vllm.general_plugins`: keeps vLLM's CPU linear layers reloadable.

vLLM's CPU backend packs the weights of linear layers at load and drops the originals, after which
verl's weight sync fails ("'Parameter' object has no attribute 'weight_loader'"). With plain
`torch.nn.functional.linear` the weights stay where the loader finds them. On other platforms, and
outside our runs, nothing is touched.
"""

from __future__ import annotations

import os
from typing import Any

KEEP_WEIGHTS_ENV = "CAOPD_VLLM_KEEP_CPU_WEIGHTS"  # set by `runner` for trainer.device=cpu


def register() -> None:
    """Replace vLLM's choice of a linear kernel, if `KEEP_WEIGHTS_ENV` is "1".

    Called by vLLM in each of its processes.

    Raises:
        IncompatibleVersionError: this vLLM chooses its kernel elsewhere.
    """
    if os.environ.get(KEEP_WEIGHTS_ENV) != "1":
        return
    import torch
    from vllm.model_executor.layers import utils

    def keep_plain_linear(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    # Also looked up before Ray starts; here for a vLLM that was started by hand. Setting a name
    # that nobody calls would leave the packed weights, and an error far from its cause.
    if not hasattr(utils, "dispatch_cpu_unquantized_gemm"):
        from caopd_verl.errors import IncompatibleVersionError
        from caopd_verl.verl_ext.compat import VLLM_CPU

        raise IncompatibleVersionError(
            "vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm does not exist",
            expected=VLLM_CPU,
            fix="install the pinned CPU stack: `make setup` in a checkout",
        )
    utils.dispatch_cpu_unquantized_gemm = keep_plain_linear  # its callers import it when they run
