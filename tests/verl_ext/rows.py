"""Made-up rows, and what verl does with one micro-batch of them; no Ray."""

from __future__ import annotations

import torch

from caopd_verl.config import LossConfig
from caopd_verl.methods.method import TeacherContext, Trajectory, masked

V, EOS = 24, 2
CONTEXT = TeacherContext(lambda demo: [{"role": "user", "content": demo}], "demo")


def make_row(index, *, n_prompt=3, n_response=6, n_confidence=2, kind="full", ids=None):
    """A row of made-up tokens: `full`, `confidence_only`, `masked`, or `overlong` (its teacher prompt did not fit)."""
    from caopd_verl.verl_ext.codec import Row

    generator = torch.Generator().manual_seed(index)
    draw = lambda n: torch.randint(3, V, (n,), generator=generator).tolist()  # noqa: E731
    prompt, response = draw(n_prompt), ids or [*draw(n_response - 1), EOS]
    n = len(response)
    log_probs = tuple((-3 * torch.rand(n, generator=generator)).tolist())
    confidence = tuple(n - 1 - n_confidence <= i < n - 1 for i in range(n))
    trajectory = Trajectory(
        token_ids=tuple(response),
        trained_mask=confidence if kind == "confidence_only" else (True,) * n,
        confidence_mask=confidence,
        value_mask=tuple(i == n - 2 for i in range(n)),
        n_kept=n - 1 - n_confidence,
        context=CONTEXT,
        status="replaced",
        confidence_only=kind == "confidence_only",
    )
    if kind == "masked":
        trajectory = masked(tuple(response), "unsolved")
    teacher = None if kind in ("masked", "overlong") else [*prompt, *draw(4)]
    return Row(f"1-{index}_0_0", prompt, trajectory, teacher, log_probs)


def mixed_rows():
    return [
        make_row(0, n_prompt=2, n_response=7),
        make_row(1, kind="masked", n_response=9),
        make_row(2, kind="confidence_only", n_prompt=5, n_response=8),
        make_row(3, n_prompt=1, n_response=4, n_confidence=1),
        make_row(4, kind="overlong"),
        make_row(5, n_prompt=4, n_response=5),
    ]


def encode(rows, **loss):
    from caopd_verl.verl_ext import codec

    return codec.encode(rows, codec.loss_weights(rows, LossConfig(**loss)))


class TableTeacher:
    """Stands in for the teacher's engine: the next token's logits are a row of a table, chosen by the last token."""

    def __init__(self, table):
        self.table = table

    def response_logits(self, input_ids, response_lengths, data):
        from caopd_verl.verl_ext.engine import response_positions

        return self.table[
            input_ids.values()[response_positions(input_ids.offsets(), response_lengths)]
        ]


def random_tables():
    """Logits (V, V) of student and teacher."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, V, V, generator=generator)
    return student.requires_grad_(), teacher


def loss_of(config, tables, rows, weights=None, *, dp_size=1, n_mini_batches=1, old=None):
    """What verl does with one micro-batch: per-token values, unpacked to the rows, and their sum."""
    from verl.utils import tensordict_utils as tu

    from caopd_verl.verl_ext import codec
    from caopd_verl.verl_ext.loss import N_MINI_BATCHES, CaopdLoss

    student, teacher = tables
    data = codec.encode(rows, codec.loss_weights(rows, config.loss) if weights is None else weights)
    if old is not None:
        data["old_log_probs"] = torch.nested.nested_tensor_from_jagged(
            old, data["responses"].offsets()
        )
    tu.assign_non_tensor(data, dp_size=dp_size, **{N_MINI_BATCHES: n_mini_batches})
    loss = CaopdLoss(config, TableTeacher(teacher))
    values = loss(student_logits=student[data["input_ids"].values()].unsqueeze(0), data=data)
    assert all(v.shape == (1, len(data["input_ids"].values())) for v in values.values())
    offsets = data["input_ids"].offsets()
    unpacked = {
        k: torch.nested.nested_tensor_from_jagged(v.squeeze(0), offsets) for k, v in values.items()
    }
    return loss(model_output=unpacked, data=data)
