"""Divergence between student and teacher on the student's top-k tokens with a tail bucket.

Source: Eq. 7 and Table 6 of arXiv 2604.16830; the generalised Jensen-Shannon divergence is that of
GKD (arXiv 2306.13649). Legend: T tokens, V vocabulary, K top tokens, C tokens of a chunk.

`alpha` per token: 0 is the forward KL(T||S), 1 is the reverse KL(S||T), between them the
divergence is `(1-a) KL(S||M) + a KL(T||M)` with `M = (1-a) S + a T` (it goes to 0, not to the KLs,
as alpha goes to 0 or 1). The student's k most probable tokens are buckets of their own, all others
together are one more. The choice of buckets carries no gradient, and the teacher is read at the
same ones. Probabilities are true ones over V.

One pass over each model's logits, chunk by chunk, in fp32: maximum, exponentials, their sum. From
those come the buckets, the log-probs and the entropies. The tail is the sum of the exponentials
outside the top k, never 1 minus the others: no cancellation, and its gradient stays right where
the top k hold nearly everything.

The backward pass has a closed form: the gradient at a logit is its bucket's gradient d_b
(`buckets.bucket_gradients`), shared within the tail by probability. So only the logits, the
buckets' ids and gradients are kept, and the exponentials are taken once more: no [T, V] buffer
besides the logits and their gradient is ever alive.

    python benchmarks/loss.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caopd_verl.errors import ConfigError
from caopd_verl.losses.buckets import (
    bucket_divergence,
    bucket_gradients,
    read_chunk,
    shifted_logits,
)

READINGS = (
    "student_log_probs",
    "teacher_log_probs",
    "student_entropy",
    "teacher_entropy",
    "topk_mass",
)


def topk_divergence(
    student_logits_TV: Tensor,
    teacher_logits_TV: Tensor,
    target_ids_T: Tensor,
    *,
    k: int | None,
    alpha_T: Tensor,
    temperature: float,
    chunk_tokens: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token divergence, with gradient to the student's logits only.

    Args:
        student_logits_TV, teacher_logits_TV: float, any precision. Row t is the distribution of
            token t (already shifted).
        target_ids_T: int64, the tokens of the (revised) completion, for the readings.
        k: size of the student's top-k support; None for the full vocabulary.
        alpha_T: float [T] in [0, 1], see the module docstring.
        temperature: > 0; both logits are divided by it, in fp32.
        chunk_tokens: > 0; tokens whose fp32 copies are alive at once.

    Returns:
        `(loss_T, readings)`: fp32 [T] in nats; and detached fp32 [T] tensors: `student_log_probs`,
        `teacher_log_probs` (of `target_ids_T`, over the full vocabulary), `student_entropy`,
        `teacher_entropy` (full vocabulary), `topk_mass` (the student's; 1 where k is None).

    Raises:
        ConfigError: shapes that differ, k outside [1, V], alpha outside [0, 1], temperature or
            chunk_tokens not positive.
    """
    _check_shapes(student_logits_TV, teacher_logits_TV, target_ids_T, alpha_T)
    _check_numbers(student_logits_TV.shape[1], k, alpha_T, temperature, chunk_tokens)
    alpha_T = alpha_T.detach().to(device=student_logits_TV.device, dtype=torch.float32)
    # With every token among the top k there is no tail: the full vocabulary is the simpler case.
    top_k = None if k == student_logits_TV.shape[1] else k
    options = _Options(top_k, temperature, chunk_tokens)
    teacher_logits_TV = teacher_logits_TV.detach()
    tensors = (student_logits_TV, teacher_logits_TV, target_ids_T, alpha_T)
    loss_T, *readings = _Divergence.apply(*tensors, options)
    return loss_T, dict(zip(READINGS, readings, strict=True))


@dataclass(frozen=True)
class _Options:
    """The arguments that are no tensors; `k` is None for the full vocabulary."""

    k: int | None
    temperature: float
    chunk_tokens: int


class _Divergence(torch.autograd.Function):
    """The divergence and its closed-form gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        student_TV: Tensor,
        teacher_TV: Tensor,
        target_ids_T: Tensor,
        alpha_T: Tensor,
        options: _Options,
    ) -> tuple[Tensor, ...]:
        n_tokens = student_TV.shape[0]
        n_columns = 1 + len(READINGS)
        columns = [torch.empty(n_tokens, device=student_TV.device) for _ in range(n_columns)]
        kept: list[tuple[Tensor, ...]] = []
        for start in range(0, n_tokens, options.chunk_tokens):
            rows = slice(start, start + options.chunk_tokens)
            student_CV, teacher_CV = student_TV[rows], teacher_TV[rows]
            ids_C, alpha_C = target_ids_T[rows], alpha_T[rows]
            student, teacher = read_chunk(
                student_CV, teacher_CV, ids_C, options.k, options.temperature
            )
            loss_C = bucket_divergence(student.log_probs, teacher.log_probs, alpha_C)
            values = (
                loss_C,
                student.target_log_probs,
                teacher.target_log_probs,
                student.entropies,
                teacher.entropies,
                student.top_mass,
            )
            for column, value in zip(columns, values, strict=True):
                column[rows] = value
            if options.k is not None and ctx.needs_input_grad[0]:
                gradients = bucket_gradients(student.log_probs, teacher.log_probs, alpha_C)
                kept.append((student.ids_CK, gradients, student.log_tails))
        ctx.options = options
        ctx.mark_non_differentiable(*columns[1:])
        if options.k is None:
            # Every token is a bucket, so their gradients would be as large as the teacher is.
            ctx.save_for_backward(student_TV, teacher_TV, target_ids_T, alpha_T)
        elif kept:
            joined = [torch.cat(parts) for parts in zip(*kept, strict=True)]
            ctx.save_for_backward(student_TV, *joined)
        else:
            ctx.save_for_backward(student_TV)
        return tuple(columns)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # type: ignore[override]
        student_TV, *saved = ctx.saved_tensors
        upstream_T = upstream[0]  # the readings have no gradient
        options = ctx.options
        own_gradient = _full_gradient if options.k is None else _topk_gradient
        gradient_TV = torch.empty_like(student_TV)
        for start in range(0, student_TV.shape[0], options.chunk_tokens):
            rows = slice(start, start + options.chunk_tokens)
            parts = [tensor[rows] for tensor in saved]
            gradient_TV[rows] = own_gradient(student_TV[rows], parts, upstream_T[rows], options)
        return gradient_TV, None, None, None, None


def _topk_gradient(
    student_CV: Tensor, saved: list[Tensor], upstream_C: Tensor, options: _Options
) -> Tensor:
    ids_CK, gradients_CB, log_tails_C = saved
    scale_C1 = (upstream_C / options.temperature).unsqueeze(-1)
    scaled_CB = gradients_CB * scale_C1
    shares_CV = shifted_logits(student_CV, options.temperature)
    shares_CV -= log_tails_C.unsqueeze(-1)
    # The top tokens' shares of the tail mean nothing, may overflow, and are replaced below.
    shares_CV.exp_().mul_(scaled_CB[:, -1:])
    return shares_CV.scatter_(-1, ids_CK, scaled_CB[:, :-1])


def _full_gradient(
    student_CV: Tensor, saved: list[Tensor], upstream_C: Tensor, options: _Options
) -> Tensor:
    teacher_CV, target_ids_C, alpha_C = saved
    student, teacher = read_chunk(student_CV, teacher_CV, target_ids_C, None, options.temperature)
    gradients_CV = bucket_gradients(student.log_probs, teacher.log_probs, alpha_C)
    return gradients_CV * (upstream_C / options.temperature).unsqueeze(-1)


def _check_shapes(student: Tensor, teacher: Tensor, ids: Tensor, alpha: Tensor) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ConfigError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "do not match",
            expected="both [T, V] over the same tokens and the same vocabulary",
        )
    n_tokens = student.shape[0]
    if ids.shape != (n_tokens,) or alpha.shape != (n_tokens,):
        raise ConfigError(
            f"target ids {tuple(ids.shape)} and alpha {tuple(alpha.shape)} for {n_tokens} tokens",
            expected="[T] each",
        )


def _check_numbers(
    vocabulary: int, k: int | None, alpha: Tensor, temperature: float, chunk_tokens: int
) -> None:
    if k is not None and not 1 <= k <= vocabulary:
        raise ConfigError(
            f"top-k of {k} with a vocabulary of {vocabulary} tokens",
            expected=f"k in [1, {vocabulary}], or null for the full vocabulary",
        )
    if not temperature > 0 or chunk_tokens < 1:
        raise ConfigError(
            f"temperature {temperature}, chunk_tokens {chunk_tokens}", expected="both positive"
        )
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise ConfigError(
            "alpha outside [0, 1]", expected="0 = KL(T||S), 1 = KL(S||T), between: generalised JSD"
        )
