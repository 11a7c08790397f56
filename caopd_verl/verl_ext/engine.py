"""FSDP2 engine of student and teacher: verl's own, registered for CPU too, with two small additions.

* whether the optimizer step was taken is remembered, because the EMA teacher must skip it too (T14);
* the forward-only teacher may stay on its device (stock verl always offloads a forward-only FSDP2 module to the CPU).

Legend: B rows, R response tokens of a micro-batch (all rows packed), V vocabulary.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

MODEL_TYPE = "caopd_language_model"
JaggedTensor = Any  # a nested torch.Tensor; torch's annotations do not know its offsets()


def response_positions(offsets: torch.Tensor, response_lengths: torch.Tensor) -> torch.Tensor:
    """Positions, in a packed batch, whose logits predict the response tokens.

    Args:
        offsets: (B + 1,) int64, row boundaries in the packed sequence (prompt + response per row).
        response_lengths: (B,) int64, tokens of each row's response, at the row's end.

    Returns:
        (R,) int64: for row i the positions `end_i - len_i - 1 .. end_i - 2`.
    """
    ends = offsets[1:] - 1
    starts = torch.repeat_interleave(ends - response_lengths, response_lengths)
    first = torch.repeat_interleave(response_lengths.cumsum(0) - response_lengths, response_lengths)
    return starts + torch.arange(int(response_lengths.sum()), device=offsets.device) - first


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp2"], device=["cpu", "cuda"])
class CaopdEngine(FSDPEngineWithLMHead):
    """verl's FSDP2 language-model engine for self-distillation."""

    step_taken = False

    def _build_module(self) -> torch.nn.Module:
        self.model_config.model_type = (
            "language_model"  # the only other name that stock code loads is value_model
        )
        try:
            return super()._build_module()
        finally:
            self.model_config.model_type = MODEL_TYPE

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        if not self.engine_config.forward_only or self.engine_config.param_offload:
            return super()._build_fsdp_module(module)
        # stock code ties CPU offload to it; ours is ref.fsdp_config.param_offload
        self.engine_config.forward_only = False
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config.forward_only = True

    def optimizer_step(self) -> float:
        grad_norm = super().optimizer_step()
        self.step_taken = math.isfinite(grad_norm)
        return grad_norm

    @torch.no_grad()
    def response_logits(
        self, input_ids: JaggedTensor, response_lengths: torch.Tensor, data: TensorDict
    ) -> torch.Tensor:
        """Logits that predict the response tokens, from a forward pass without gradient.

        Args:
            input_ids: nested (B, prompt + response) int64, this model's own prompts.
            response_lengths: (B,) int64.
            data: the student's micro-batch, for its engine switches and temperature.

        Returns:
            (R, V), in the compute dtype, divided by the temperature.
        """
        lengths = input_ids.offsets().diff()
        positions = torch.cat([torch.arange(int(n), device=input_ids.device) for n in lengths])
        micro = TensorDict(
            {
                "input_ids": input_ids,
                "position_ids": torch.nested.nested_tensor_from_jagged(
                    positions, input_ids.offsets()
                ),
            },
            batch_size=[len(lengths)],
        )
        switches = {
            key: tu.get_non_tensor_data(data, key, None)
            for key in ("use_remove_padding", "temperature")
        }
        tu.assign_non_tensor(micro, use_fused_kernels=False, **switches)
        inputs, _ = self.prepare_model_inputs(micro)
        dtype = self._autocast_dtype
        autocast = (
            nullcontext()
            if dtype == torch.float32
            else torch.autocast(get_device_name(), dtype=dtype)
        )
        with autocast:
            logits = self.module(**inputs, use_cache=False).logits
        index = response_positions(input_ids.offsets(), response_lengths)
        if switches["use_remove_padding"]:
            selected = logits.squeeze(0)[index]
        else:
            row = torch.bucketize(index, input_ids.offsets()[1:], right=True)
            selected = logits[row, index - input_ids.offsets()[row]]
        temperature = float(switches["temperature"])
        return selected if temperature == 1.0 else selected / temperature

    def local_state(self) -> dict[str, Any]:
        """This rank's shards by parameter name (no copy)."""
        from caopd_verl.core.ema import named_shards

        return dict(named_shards(self.module))
