"""Rows of the update: trajectories and teacher prompts to the jagged tensors that verl's workers fetch.

Every mask comes from lengths, never from comparing ids with a pad token (T21). Fields of a row with P prompt tokens,
R response tokens and Q teacher prompt tokens:

* input_ids, position_ids (P + R) int64; responses (R) int64; response_mask, loss_mask (R) int64
* teacher_input_ids (Q + R) int64
* loss_weight (R) fp32: each token's weight in the step's loss, all rows together sum to 1; 0 where nothing is trained
* confidence_mask, value_mask, kept_mask (R) int64; rollout_log_probs (R) fp32, 0 on replaced tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from caopd_verl.config import LossConfig
from caopd_verl.losses.averaging import count_loss_tokens, token_weights
from caopd_verl.methods.method import Trajectory

PARTITION = "train"


@dataclass(frozen=True)
class Row:
    """One sequence of the update, before it becomes tensors."""

    key: str
    prompt_ids: Sequence[int]
    trajectory: Trajectory
    teacher_prompt_ids: Sequence[int] | None  # None: no teacher, nothing is trained
    rollout_log_probs: Sequence[float]

    @property
    def n_trained(self) -> int:
        return 0 if self.teacher_prompt_ids is None else sum(self.trajectory.trained_mask)


def loss_weights(rows: Sequence[Row], loss: LossConfig) -> list[torch.Tensor]:
    """Per-token weights of each row, fp32 (R) each; they sum to 1 over the step (to less with `normalize_by: all`).

    Raises:
        TeacherContextError: no row has anything to train on.
    """
    width = max(len(row.trajectory.token_ids) for row in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        if row.teacher_prompt_ids is not None:
            mask[i, : len(row.trajectory.token_ids)] = torch.tensor(row.trajectory.trained_mask)
    only = torch.tensor([row.trajectory.confidence_only for row in rows])
    weights = token_weights(
        mask,
        only,
        mode=loss.average,
        counts=count_loss_tokens(mask, only),
        include_masked_rows=loss.normalize_by == "all",
    )
    return [
        weight[: len(row.trajectory.token_ids)] for row, weight in zip(rows, weights, strict=True)
    ]


def encode(rows: Sequence[Row], weights: Sequence[torch.Tensor]) -> TensorDict:
    """The rows as one TensorDict of jagged tensors (fields: module docstring)."""
    fields: dict[str, list[torch.Tensor]] = {}
    for row, weight in zip(rows, weights, strict=True):
        for name, tensor in _encode_row(row, weight).items():
            fields.setdefault(name, []).append(tensor)
    nested = {
        name: torch.nested.as_nested_tensor(column, layout=torch.jagged)
        for name, column in fields.items()
    }
    return TensorDict(nested, batch_size=[len(rows)])


def _encode_row(row: Row, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    trajectory, prompt, response = (
        row.trajectory,
        list(row.prompt_ids),
        list(row.trajectory.token_ids),
    )
    if row.n_trained == 0:
        # Nothing of this row is trained. It stays for the batch arithmetic of the ranks, at the cost of two tokens.
        prompt, response = prompt[-1:], response[:1]
    teacher_prompt = (
        prompt
        if row.teacher_prompt_ids is None or row.n_trained == 0
        else list(row.teacher_prompt_ids)
    )
    n = len(response)
    log_probs = torch.zeros(n)
    known = min(n, trajectory.n_kept, len(row.rollout_log_probs))
    log_probs[:known] = torch.tensor(row.rollout_log_probs[:known])
    return {
        "input_ids": torch.tensor(prompt + response, dtype=torch.int64),
        "position_ids": torch.arange(len(prompt) + n),
        "responses": torch.tensor(response, dtype=torch.int64),
        "response_mask": torch.ones(n, dtype=torch.int64),
        "loss_mask": torch.ones(n, dtype=torch.int64),
        "teacher_input_ids": torch.tensor(teacher_prompt + response),
        "loss_weight": weight[:n].clone(),
        "confidence_mask": torch.tensor(trajectory.confidence_mask[:n], dtype=torch.int64),
        "value_mask": torch.tensor(trajectory.value_mask[:n], dtype=torch.int64),
        "kept_mask": (torch.arange(n) < known).to(torch.int64),
        "rollout_log_probs": log_probs,
    }


def put(rows: Sequence[Row], fields: TensorDict, global_step: int) -> KVBatchMeta:
    """Hand the rows to the workers through verl's TransferQueue; they fetch their share by key."""
    keys = [row.key for row in rows]
    own = fields["input_ids"].offsets().diff().tolist()
    teacher = fields["teacher_input_ids"].offsets().diff().tolist()  # costs a forward pass as well
    tags = [
        {"seq_len": a + b, "global_steps": global_step, "status": "success"}
        for a, b in zip(own, teacher, strict=True)
    ]
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=fields, tags=tags)
    return KVBatchMeta(partition_id=PARTITION, keys=keys, tags=tags)


def put_nothing(global_step: int) -> KVBatchMeta:
    """The batch of a step that trains on nothing: one key without fields, since verl clears every step's keys."""
    keys, tags = [f"{global_step}-nothing"], [{"global_steps": global_step, "status": "success"}]
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, tags=tags)
    return KVBatchMeta(partition_id=PARTITION, keys=keys, tags=tags)
