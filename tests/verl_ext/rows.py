"""Made-up rows, and what verl does with one micro-batch of them; no Ray."""

from __future__ import annotations

import torch

from caopd_verl.config import CaopdConfig
from caopd_verl.losses.terms import Divergence
from caopd_verl.pipeline import UpdateRow, token_weights
from caopd_verl.types import CONFIDENCE_ROLES, Role, TeacherPrompt, Trajectory

V, EOS = 24, 2
PROMPT = TeacherPrompt([{"role": "user", "content": "question"}], "demo", "solution")


def make_row(
    index, *, n_prompt=3, n_response=6, n_confidence=2, kind="full", ids=None, alphas=(1, 1)
):
    """A row of made-up tokens.

    Args:
        kind: `full`, `by_tokens` (the confidence alone), `masked`, or `overlong` (masked, because
            its teacher prompt did not fit).
        alphas: of reasoning and confidence tokens.
    """
    generator = torch.Generator().manual_seed(index)

    def draw(n):
        return torch.randint(3, V, (n,), generator=generator).tolist()

    prompt, response = draw(n_prompt), ids or [*draw(n_response - 1), EOS]
    n = len(response)
    log_probs = tuple((-3 * torch.rand(n, generator=generator)).tolist())
    roles = [Role.REASONING] * n
    roles[n - 1 - n_confidence : n] = [
        *[Role.CONFIDENCE_LABEL] * (n_confidence - 1),
        Role.CONFIDENCE_VALUE,
        Role.END_OF_TURN,
    ]
    inside = [role in CONFIDENCE_ROLES for role in roles]
    by_tokens = kind == "by_tokens"
    trajectory = Trajectory(
        uid=f"1-{index}",
        prompt_ids=tuple(prompt),
        token_ids=tuple(response),
        n_sampled=n - 1 - n_confidence,
        sampler_log_probs=log_probs,
        roles=tuple(roles),
        weights=tuple(float(own) for own in inside) if by_tokens else (1.0,) * n,
        alphas=tuple(float(alphas[own]) for own in inside),
        advantages=(0.0,) * n,
        teacher_prompt=PROMPT,
        counts_as="tokens" if by_tokens else "row",
        status="replaced",
    )
    teacher = [*prompt, *draw(4)]
    if kind in ("masked", "overlong"):
        reason = "unsolved" if kind == "masked" else "teacher_overlong"
        return UpdateRow(trajectory.masked(reason), None)
    return UpdateRow(trajectory, teacher)


def mixed_rows(alphas=(1, 1)):
    return [
        make_row(0, n_prompt=2, n_response=7, alphas=alphas),
        make_row(1, kind="masked", n_response=9, alphas=alphas),
        make_row(2, kind="by_tokens", n_prompt=5, n_response=8, alphas=alphas),
        make_row(3, n_prompt=1, n_response=4, n_confidence=1, alphas=alphas),
        make_row(4, kind="overlong", alphas=alphas),
        make_row(5, n_prompt=4, n_response=5, alphas=alphas),
    ]


def weights_of(rows, config=None):
    return token_weights([row.trajectory for row in rows], config or CaopdConfig())


def encode(rows, config=None):
    from caopd_verl.verl_ext import codec

    return codec.encode(rows, weights_of(rows, config), with_teacher=True)


class TableTeacher:
    """Stands in for the teacher's engine: the next token's logits are a row of a table."""

    def __init__(self, table):
        self.table = table

    def response_logits(self, input_ids, response_lengths, data, *, max_tokens):
        from caopd_verl.verl_ext.engine import response_positions

        positions = response_positions(input_ids.offsets(), response_lengths)
        return self.table[input_ids.values()[positions]]


def random_tables():
    """Logits (V, V) of student and teacher."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, V, V, generator=generator)
    return student.requires_grad_(), teacher


def no_policy_loss(*_):
    raise AssertionError("no term of this method is a policy gradient")


def default_terms(config):
    loss = config.loss
    return [Divergence(loss.top_k, is_clip=loss.is_clip, tis_clip=loss.tis_clip)]


def loss_of(
    config,
    tables,
    rows,
    weights=None,
    *,
    dp_size=1,
    n_mini_batches=1,
    old=None,
    terms=None,
    temperature=1.0,
):
    """What the engine does with one micro-batch: values of tokens, and their sum."""
    from verl.utils import tensordict_utils as tu

    from caopd_verl.verl_ext import codec
    from caopd_verl.verl_ext.engine import response_positions
    from caopd_verl.verl_ext.loss import N_MINI_BATCHES, SAMPLING_TEMPERATURE, MethodLoss

    student, teacher = tables
    weights = weights_of(rows, config) if weights is None else weights
    data = codec.encode(rows, weights, with_teacher=True)
    offsets = data["responses"].offsets()
    if old is not None:
        data["old_log_probs"] = torch.nested.nested_tensor_from_jagged(old, offsets)
    own = {N_MINI_BATCHES: n_mini_batches, SAMPLING_TEMPERATURE: temperature}
    tu.assign_non_tensor(data, dp_size=dp_size, **own)
    loss = MethodLoss(
        default_terms(config) if terms is None else terms,
        TableTeacher(teacher) if isinstance(teacher, torch.Tensor) else teacher,
        policy_loss=no_policy_loss,
        chunk_tokens=config.loss.chunk_tokens,
        teacher_tokens=1000,
    )
    ids = data["input_ids"]
    positions = response_positions(ids.offsets(), offsets.diff())
    values = loss(student_logits=student[ids.values()[positions]], data=data)
    assert all(value.shape == positions.shape for value in values.values())
    output = {
        name: torch.nested.nested_tensor_from_jagged(value, offsets)
        for name, value in values.items()
    }
    return loss(model_output=output, data=data)
