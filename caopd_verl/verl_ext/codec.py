"""Rows of the update as the jagged tensors that verl's workers fetch.

Every mask comes from lengths, never from comparing ids with a pad token: the pad id may be the
end-of-turn id. Fields of a row with P prompt tokens, R response tokens, Q teacher prompt tokens:

* input_ids, position_ids (P + R) int64; responses (R) int64
* response_mask, loss_mask (R) int64, all ones: verl wants them
* teacher_input_ids (Q + R) int64; the student's own prompt where a row has no teacher; absent
  where the method has none
* loss_weight (R) fp32: each token's weight in the step's loss, all rows together sum to 1
* roles (R) int64, `types.Role`; alphas, advantages (R) fp32
* sampled_mask (R) int64; rollout_log_probs (R) fp32, 0 where the mask is 0
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from caopd_verl.pipeline import UpdateRow
from caopd_verl.types import Role, Trajectory

PARTITION = "train"
DONE = "success"  # verl's word for a row that is ready


def encode(
    rows: Sequence[UpdateRow], weights: Sequence[Tensor], *, with_teacher: bool
) -> TensorDict:
    """The rows as one TensorDict of jagged tensors (fields: module docstring)."""
    columns: dict[str, list[Tensor]] = {}
    for row, weights_R in zip(rows, weights, strict=True):
        for name, tensor in _encode_row(row, weights_R).items():
            columns.setdefault(name, []).append(tensor)
    if not with_teacher:  # it would travel to the ranks for nobody
        del columns["teacher_input_ids"]
    nested = {
        name: torch.nested.as_nested_tensor(column, layout=torch.jagged)
        for name, column in columns.items()
    }
    return TensorDict(nested, batch_size=[len(rows)])


def _encode_row(row: UpdateRow, weights_R: Tensor) -> dict[str, Tensor]:
    trajectory = row.trajectory
    prompt = list(trajectory.prompt_ids)
    response = list(trajectory.token_ids)
    teacher_prompt = row.teacher_prompt_ids
    if trajectory.n_trained == 0:
        # The row stays for the batch arithmetic of the ranks, at the cost of two tokens.
        prompt, response, teacher_prompt = prompt[-1:], response[:1], None
    if teacher_prompt is None:
        teacher_prompt = prompt
    n_tokens = len(response)
    n_sampled = min(n_tokens, trajectory.n_sampled, len(trajectory.sampler_log_probs))
    log_probs_R = torch.zeros(n_tokens)
    log_probs_R[:n_sampled] = torch.tensor(trajectory.sampler_log_probs[:n_sampled])
    ones_R = torch.ones(n_tokens, dtype=torch.int64)
    return {
        "input_ids": torch.tensor(prompt + response, dtype=torch.int64),
        "position_ids": torch.arange(len(prompt) + n_tokens),
        "responses": torch.tensor(response, dtype=torch.int64),
        "response_mask": ones_R,
        "loss_mask": ones_R.clone(),
        "teacher_input_ids": torch.tensor(teacher_prompt + response),
        "loss_weight": weights_R[:n_tokens].clone(),
        "roles": torch.tensor(trajectory.roles[:n_tokens], dtype=torch.int64),
        "alphas": torch.tensor(trajectory.alphas[:n_tokens], dtype=torch.float32),
        "advantages": torch.tensor(trajectory.advantages[:n_tokens], dtype=torch.float32),
        "sampled_mask": (torch.arange(n_tokens) < n_sampled).to(torch.int64),
        "rollout_log_probs": log_probs_R,
    }


def filler(like: Trajectory, index: int) -> UpdateRow:
    """A row of which nothing is trained, to fill a batch up to a size that the ranks can split."""
    last, first = like.prompt_ids[-1:], like.token_ids[:1]
    trajectory = Trajectory(
        uid=f"filler{index}",
        prompt_ids=last,
        token_ids=first,
        n_sampled=0,
        sampler_log_probs=(),
        roles=(Role.REASONING,) * len(first),
        weights=(0.0,) * len(first),
        alphas=(0.0,) * len(first),
        advantages=(0.0,) * len(first),
        status="filler",
    )
    return UpdateRow(trajectory, None)


def keys_of(rows: Sequence[UpdateRow]) -> list[str]:
    """verl's keys: the group's uid, and the row's place in its group."""
    # verl cuts keys at underscores and takes the first part for the prompt
    seen: dict[str, int] = {}
    keys = []
    for row in rows:
        uid = row.trajectory.uid
        place = seen.setdefault(uid, 0)
        seen[uid] = place + 1
        keys.append(f"{uid}_{place}_0")
    return keys


def put(rows: Sequence[UpdateRow], fields: TensorDict, global_step: int) -> KVBatchMeta:
    """Hand the rows to the workers through verl's TransferQueue; they fetch their share by key.

    A row's length counts the teacher's tokens too: they cost a forward pass, and the ranks are
    balanced by these lengths.
    """
    keys = keys_of(rows)
    lengths_B = fields["input_ids"].offsets().diff()
    if "teacher_input_ids" in fields.keys():  # noqa: SIM118 (a TensorDict has no `in`)
        lengths_B = lengths_B + fields["teacher_input_ids"].offsets().diff()
    tags = [
        {"seq_len": length, "global_steps": global_step, "status": DONE}
        for length in lengths_B.tolist()
    ]
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=fields, tags=tags)
    return KVBatchMeta(partition_id=PARTITION, keys=keys, tags=tags)


def put_nothing(global_step: int) -> KVBatchMeta:
    """The batch of a step that trains on nothing: one key, since verl clears every step's keys."""
    keys = [f"{global_step}-nothing"]
    tags = [{"global_steps": global_step, "status": DONE}]
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, tags=tags)
    return KVBatchMeta(partition_id=PARTITION, keys=keys, tags=tags)
