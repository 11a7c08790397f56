"""Divergence between student and teacher on the student's top-k tokens with a tail bucket (paper Eq. 7, Table 6).

Shapes: T tokens, V vocabulary, K = k top tokens, B rows (sequences), R response positions.

`alpha` per token: 0 is the forward KL(T||S), 1 is the reverse KL(S||T), between them the generalised Jensen-Shannon
divergence `(1-a) KL(S||M) + a KL(T||M)` with `M = (1-a) S + a T` (it goes to 0, not to the KLs, as alpha goes to 0 or
1). The student's k most probable tokens are buckets of their own, all other tokens together are one more (T15b: the
indices are the student's and carry no gradient; the teacher is read at the same ones). Probabilities are true ones over
V.

Numerics (T15). Everything is computed in fp32 from logits upcast chunk by chunk. The tail is a logsumexp over the
logits outside the top k, not log(1 - sum): no cancellation, no clamp, and its gradient stays right when the top-k mass
is ~1. KL is summed as `p log(p/q) - p + q`, whose terms are each >= 0 and whose sum is the same as both sides sum to 1,
so rounding cannot make it negative. Logits of -inf count as 200 below the row's maximum (probability 0 in fp32).

Memory: each chunk of tokens is checkpointed, so fp32 copies of [chunk, V], not of [T, V], are alive at a time.

    python -m pytest tests/core/test_divergence.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from caopd_verl.errors import ConfigError

Metrics = dict[str, Tensor]

_INF_GAP = 200.0  # how far below the row's maximum a logit of -inf is put; exp(-200) is 0 in fp32


def topk_divergence(
    student_logits_TV: Tensor,
    teacher_logits_TV: Tensor,
    target_ids_T: Tensor,
    *,
    k: int | None,
    alpha_T: Tensor,
    temperature: float,
    chunk_tokens: int,
) -> tuple[Tensor, Metrics]:
    """Per-token divergence, with gradient to the student's logits only.

    Args:
        student_logits_TV, teacher_logits_TV: float, any precision. Row t is the distribution of token t (already
            shifted).
        target_ids_T: int64, the tokens of the (revised) completion, for the log-probs in the metrics.
        k: size of the student's top-k support; None for the full vocabulary.
        alpha_T: float [T] in [0, 1], see the module docstring.
        temperature: > 0; both logits are divided by it.
        chunk_tokens: > 0; tokens per checkpointed chunk.

    Returns:
        `(loss_T, metrics)`: fp32 [T] in nats; and detached fp32 [T] tensors `student_log_probs`, `teacher_log_probs`
        (of `target_ids_T`, over the full vocabulary), `student_entropy`, `teacher_entropy` (full vocabulary),
        `topk_mass` (the student's; 1 where k is None).

    Raises:
        ConfigError: shapes that differ, k outside [1, V], alpha outside [0, 1], temperature or chunk_tokens not
            positive.
    """
    _check(
        student_logits_TV, teacher_logits_TV, target_ids_T, k, alpha_T, temperature, chunk_tokens
    )
    alpha_T = alpha_T.detach().to(device=student_logits_TV.device, dtype=torch.float32)
    teacher_logits_TV = teacher_logits_TV.detach()
    losses: list[Tensor] = []
    metrics: dict[str, list[Tensor]] = {}
    with_grad = torch.is_grad_enabled() and student_logits_TV.requires_grad
    for begin in range(0, student_logits_TV.shape[0], chunk_tokens):
        rows = slice(begin, begin + chunk_tokens)
        student_CV, teacher_CV = student_logits_TV[rows], teacher_logits_TV[rows]
        ids_C, mass_C = _support(student_CV, k, temperature)
        if with_grad:
            args = (student_CV, teacher_CV, ids_C, alpha_T[rows], temperature)
            loss_C = checkpoint(_chunk_loss, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            loss_C = _chunk_loss(student_CV, teacher_CV, ids_C, alpha_T[rows], temperature)
        losses.append(loss_C)
        values = _chunk_metrics(student_CV, teacher_CV, target_ids_T[rows], temperature)
        values["topk_mass"] = mass_C
        for name, value in values.items():
            metrics.setdefault(name, []).append(value)
    if not losses:
        empty = student_logits_TV.float().sum(dim=-1)
        names = (
            "student_log_probs",
            "teacher_log_probs",
            "student_entropy",
            "teacher_entropy",
            "topk_mass",
        )
        return empty, {name: empty.detach() for name in names}
    return torch.cat(losses), {name: torch.cat(parts) for name, parts in metrics.items()}


def reference_divergence(
    student_logits_TV: Tensor, teacher_logits_TV: Tensor, *, alpha_T: Tensor, temperature: float
) -> Tensor:
    """Slow textbook version in fp64 over the full vocabulary, for tests: fp64 [T] with gradient to the student."""
    log_s = (student_logits_TV.double() / temperature).log_softmax(-1)
    log_t = (teacher_logits_TV.detach().double() / temperature).log_softmax(-1)
    rows = []
    for row_s, row_t, alpha in zip(log_s, log_t, alpha_T.tolist(), strict=True):
        s, t = row_s.exp(), row_t.exp()
        if alpha == 0.0:
            rows.append((t * (row_t - row_s)).sum())
        elif alpha == 1.0:
            rows.append((s * (row_s - row_t)).sum())
        else:
            log_m = ((1 - alpha) * s + alpha * t).log()
            rows.append(
                (1 - alpha) * (s * (row_s - log_m)).sum() + alpha * (t * (row_t - log_m)).sum()
            )
    return torch.stack(rows)


def _logits(logits_CV: Tensor, temperature: float) -> Tensor:
    """fp32 logits over temperature; -inf becomes a large finite gap, so that no NaN arises in values or gradients."""
    scaled = logits_CV.float() / temperature
    floor_C1 = scaled.detach().amax(dim=-1, keepdim=True) - _INF_GAP
    return torch.where(torch.isneginf(scaled), floor_C1, scaled)


@torch.no_grad()
def _support(student_CV: Tensor, k: int | None, temperature: float) -> tuple[Tensor | None, Tensor]:
    """Indices [C, K] of the student's top k (None: all) and their mass [C]."""
    if k is None:
        return None, torch.ones(student_CV.shape[0], device=student_CV.device)
    logits_CV = _logits(student_CV, temperature)
    top_CK, ids_CK = logits_CV.topk(k, dim=-1)
    return ids_CK, (top_CK - logits_CV.logsumexp(-1, keepdim=True)).exp().sum(-1)


def _bucket_log_probs(logits_CV: Tensor, ids_CK: Tensor | None, temperature: float) -> Tensor:
    """Log-probs of the K buckets and the tail, [C, K + 1] (fp32); [C, V] over the full vocabulary."""
    logits_CV = _logits(logits_CV, temperature)
    norm_C1 = logits_CV.logsumexp(-1, keepdim=True)
    if ids_CK is None:
        return logits_CV - norm_C1
    top_CK = logits_CV.gather(-1, ids_CK) - norm_C1
    if ids_CK.shape[-1] == logits_CV.shape[-1]:
        return top_CK
    tail_C1 = logits_CV.scatter(-1, ids_CK, -math.inf).logsumexp(-1, keepdim=True) - norm_C1
    return torch.cat([top_CK, tail_C1], dim=-1)


def _chunk_loss(
    student_CV: Tensor,
    teacher_CV: Tensor,
    ids_CK: Tensor | None,
    alpha_C: Tensor,
    temperature: float,
) -> Tensor:
    log_s = _bucket_log_probs(student_CV, ids_CK, temperature)
    with torch.no_grad():
        log_t = _bucket_log_probs(teacher_CV, ids_CK, temperature)
    forward, reverse = alpha_C == 0, alpha_C == 1
    between = ~(forward | reverse)
    loss_C = torch.zeros_like(alpha_C)
    if forward.any():
        loss_C = loss_C.index_put((forward,), _kl(log_t[forward], log_s[forward]))
    if reverse.any():
        loss_C = loss_C.index_put((reverse,), _kl(log_s[reverse], log_t[reverse]))
    if between.any():
        loss_C = loss_C.index_put(
            (between,), _jsd(log_s[between], log_t[between], alpha_C[between])
        )
    return loss_C


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p||q) over the last dimension, as a sum of terms p log(p/q) - p + q >= 0 (both sum to 1)."""
    gap = log_p - log_q
    near = gap.abs() < 0.1
    small = torch.where(near, gap, torch.zeros_like(gap))
    series = (
        small * small * (0.5 - small * (1 / 6 - small * (1 / 24 - small / 120)))
    )  # gap - 1 + exp(-gap)
    p = log_p.exp()
    return torch.where(near, p * series, p * (gap - 1.0) + log_q.exp()).sum(-1)


def _jsd(log_s: Tensor, log_t: Tensor, alpha_C: Tensor) -> Tensor:
    alpha_C1 = alpha_C.unsqueeze(-1)
    log_m = torch.logaddexp(log_s + torch.log1p(-alpha_C1), log_t + alpha_C1.log())
    return (1 - alpha_C) * _kl(log_s, log_m) + alpha_C * _kl(log_t, log_m)


@torch.no_grad()
def _chunk_metrics(
    student_CV: Tensor, teacher_CV: Tensor, ids_C: Tensor, temperature: float
) -> dict[str, Tensor]:
    metrics = {}
    for who, raw_CV in (("student", student_CV), ("teacher", teacher_CV)):
        log_probs_CV = _logits(raw_CV, temperature)
        log_probs_CV = log_probs_CV - log_probs_CV.logsumexp(-1, keepdim=True)
        metrics[f"{who}_log_probs"] = log_probs_CV.gather(-1, ids_C.unsqueeze(-1)).squeeze(-1)
        metrics[f"{who}_entropy"] = -(log_probs_CV.exp() * log_probs_CV).sum(-1)
    return metrics


def _check(
    student: Tensor,
    teacher: Tensor,
    ids: Tensor,
    k: int | None,
    alpha: Tensor,
    temperature: float,
    chunk: int,
) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ConfigError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} do not match",
            expected="both [T, V] over the same tokens and the same vocabulary",
        )
    n_tokens, vocabulary = student.shape
    if ids.shape != (n_tokens,) or alpha.shape != (n_tokens,):
        raise ConfigError(
            f"target ids {tuple(ids.shape)} and alpha {tuple(alpha.shape)} for {n_tokens} tokens",
            expected="[T] each",
        )
    if k is not None and not 1 <= k <= vocabulary:
        raise ConfigError(
            f"top-k of {k} with a vocabulary of {vocabulary} tokens",
            expected=f"k in [1, {vocabulary}], or null for the full vocabulary",
        )
    if not temperature > 0 or chunk < 1:
        raise ConfigError(
            f"temperature {temperature}, chunk_tokens {chunk}", expected="both positive"
        )
    if n_tokens and not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise ConfigError(
            "alpha outside [0, 1]", expected="0 = KL(T||S), 1 = KL(S||T), between: generalised JSD"
        )
