"""FSDP2 engine of student and teacher: verl's own, registered for CPU too, with three additions.

* The LM head is run at the positions that predict response tokens and at no others: logits are
  the largest tensors of an update, and those of the prompts would be thrown away.

* Whether the optimizer step was taken is remembered, because the EMA teacher must skip it too.
* The forward-only teacher may stay on its device. Stock verl always offloads a forward-only FSDP2
  module to the CPU.

Legend: B rows, T response tokens of a micro-batch (all rows packed), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from caopd_verl.core.ema import named_shards

MODEL_TYPE = "caopd_language_model"
JaggedTensor = Any  # a nested torch.Tensor; torch's annotations do not know its offsets()


def response_positions(offsets: Tensor, response_lengths: Tensor) -> Tensor:
    """Positions, in a packed batch, whose logits predict the response tokens.

    Args:
        offsets: (B + 1,) int64, row boundaries in the packed sequence (prompt + response per row).
        response_lengths: (B,) int64, tokens of each row's response, at the row's end.

    Returns:
        (T,) int64: for row i the positions `end_i - len_i - 1 .. end_i - 2`.
    """
    ends_B = offsets[1:] - 1
    starts_B = ends_B - response_lengths
    first_tokens_B = response_lengths.cumsum(0) - response_lengths
    starts_T = torch.repeat_interleave(starts_B, response_lengths)
    first_T = torch.repeat_interleave(first_tokens_B, response_lengths)
    n_tokens = int(response_lengths.sum())
    return starts_T + torch.arange(n_tokens, device=offsets.device) - first_T


def kept_positions(offsets: Tensor, response_lengths: Tensor, *, packed: bool) -> Tensor:
    """Positions that the LM head is run at (`logits_to_keep` of the model).

    Args:
        offsets, response_lengths: as in `response_positions`.
        packed: whether all rows stand in one sequence. Padded rows have their responses in
            different columns, and the head is run from the first such column to the last.

    Returns:
        int64: (T,) positions of the packed sequence, or a range of columns.
    """
    if packed:
        return response_positions(offsets, response_lengths)
    ends_B = offsets.diff() - 1
    first = int((ends_B - response_lengths).min())
    return torch.arange(first, int(ends_B.max()), device=offsets.device)


def response_rows(
    logits: Tensor, offsets: Tensor, response_lengths: Tensor, *, packed: bool
) -> Tensor:
    """The logits that predict the response tokens, (T, V), of those at `kept_positions`.

    Args:
        logits: (1, T, V) where the rows are packed, else (B, kept columns, V).
        offsets, response_lengths: as in `response_positions`.
        packed: which of the two.
    """
    if packed:
        return logits.squeeze(0)
    first = kept_positions(offsets, response_lengths, packed=False)[0]
    index_T = response_positions(offsets, response_lengths)
    row_T = torch.bucketize(index_T, offsets[1:], right=True)
    column_T = index_T - offsets[row_T] - first
    return logits[row_T, column_T]


def _is_update(micro_batch: TensorDict) -> bool:
    """Whether our loss reads the logits; verl's pass for old log-probs reads them all."""
    return bool(tu.get_non_tensor_data(micro_batch, "distillation_use_topk", False))


def row_chunks(lengths: Sequence[int], max_tokens: int, *, packed: bool) -> list[range]:
    """Rows in order, in chunks of at most `max_tokens`; a longer row is a chunk of its own.

    Args:
        lengths: tokens of each row.
        max_tokens: of a chunk; a padded chunk costs its longest row for each of its rows.
        packed: whether rows are packed, or padded to the longest.
    """
    chunks: list[range] = []
    start = 0
    for stop in range(1, len(lengths) + 1):
        own = lengths[start:stop]
        cost = sum(own) if packed else max(own) * len(own)
        if cost > max_tokens and stop - start > 1:
            chunks.append(range(start, stop - 1))
            start = stop - 1
    chunks.append(range(start, len(lengths)))
    return chunks


def was_taken(grad_norm: float) -> bool:
    """Whether verl took the optimizer step: it skips one whose gradient norm is not finite."""
    return math.isfinite(grad_norm)


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp2"], device=["cpu", "cuda"])
class CaopdEngine(FSDPEngineWithLMHead):
    """verl's FSDP2 language-model engine for self-distillation."""

    step_taken = False

    def _build_module(self) -> torch.nn.Module:
        # Stock code loads two model types only, and the other one is the value model.
        self.model_config.model_type = "language_model"
        try:
            return super()._build_module()
        finally:
            self.model_config.model_type = MODEL_TYPE

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        if not self.engine_config.forward_only or self.engine_config.param_offload:
            return super()._build_fsdp_module(module)
        # Stock code ties CPU offload to `forward_only`; here ref.fsdp_config.param_offload decides.
        self.engine_config.forward_only = False
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config.forward_only = True

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
        """verl's inputs; in an update, which positions the LM head is run at beside them."""
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        # The pass for old log-probs goes through verl's own code, which wants all logits.
        if _is_update(micro_batch):
            inputs["logits_to_keep"] = kept_positions(
                micro_batch["input_ids"].offsets(),
                micro_batch["responses"].offsets().diff(),
                packed=tu.get_non_tensor_data(micro_batch, "use_remove_padding", None),
            )
        return inputs, output_args

    def prepare_model_outputs(
        self, output: Any, output_args: dict, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, JaggedTensor]:
        """In an update, what the loss has to say of each response token: jagged (B, response)."""
        if not _is_update(micro_batch):
            return super().prepare_model_outputs(
                output, output_args, micro_batch, logits_processor_func
            )
        responses = micro_batch["responses"].offsets()
        logits_TV = response_rows(
            output.logits,
            micro_batch["input_ids"].offsets(),
            responses.diff(),
            packed=tu.get_non_tensor_data(micro_batch, "use_remove_padding", None),
        )
        values = logits_processor_func(student_logits=logits_TV, data=micro_batch)
        return {
            name: torch.nested.nested_tensor_from_jagged(value_T, responses)
            for name, value_T in values.items()
        }

    def optimizer_step(self) -> float:
        """verl's step, which it skips where the gradient's norm is not finite."""
        grad_norm = super().optimizer_step()
        self.step_taken = was_taken(grad_norm)
        return grad_norm

    @torch.no_grad()
    def response_logits(
        self,
        input_ids: JaggedTensor,
        response_lengths: Tensor,
        data: TensorDict,
        *,
        max_tokens: int,
    ) -> Tensor:
        """Logits that predict the response tokens, from forward passes without gradient.

        verl packs micro-batches by the student's tokens, and this model's own prompts may be many
        times as long. So the rows go through in chunks of at most `max_tokens`, and the LM head
        only sees the positions of the response tokens.

        Args:
            input_ids: nested (B, prompt + response) int64, this model's own prompts.
            response_lengths: (B,) int64.
            data: the student's micro-batch, for its engine switches.
            max_tokens: of one forward pass, padding included; a longer row goes alone.

        Returns:
            (T, V), in the compute dtype, before any temperature.
        """
        packed = tu.get_non_tensor_data(data, "use_remove_padding", None)
        rows = input_ids.unbind()
        lengths = [len(row) for row in rows]
        logits = []
        for chunk in row_chunks(lengths, max_tokens, packed=packed):
            chosen = [rows[row] for row in chunk]
            nested = torch.nested.as_nested_tensor(chosen, layout=torch.jagged)
            own_lengths = response_lengths[chunk.start : chunk.stop]
            logits.append(self._forward_responses(nested, own_lengths, packed=packed))
        return torch.cat(logits)

    def _forward_responses(
        self, input_ids: JaggedTensor, response_lengths: Tensor, *, packed: bool
    ) -> Tensor:
        offsets = input_ids.offsets()
        lengths = offsets.diff()
        positions = torch.cat([torch.arange(int(n), device=offsets.device) for n in lengths])
        fields = {
            "input_ids": input_ids,
            "position_ids": torch.nested.nested_tensor_from_jagged(positions, offsets),
        }
        micro_batch = TensorDict(fields, batch_size=[len(lengths)])
        tu.assign_non_tensor(
            micro_batch, use_fused_kernels=False, use_remove_padding=packed, temperature=1.0
        )
        inputs, _ = self.prepare_model_inputs(micro_batch)
        kept = kept_positions(offsets, response_lengths, packed=packed)
        dtype = self._autocast_dtype
        autocast = (
            nullcontext()
            if dtype == torch.float32
            else torch.autocast(get_device_name(), dtype=dtype)
        )
        with autocast:
            logits = self.module(**inputs, use_cache=False, logits_to_keep=kept).logits
        return response_rows(logits, offsets, response_lengths, packed=packed)

    def local_state(self) -> dict[str, Any]:
        """This rank's shards by parameter name (no copy)."""
        return dict(named_shards(self.module))
