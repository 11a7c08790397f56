"""One chunk of logits as the log-probs of a few buckets, and the divergence between two such sets.

Legend: C tokens of a chunk, V vocabulary, K top tokens, B = K + 1 buckets (V for the full
vocabulary).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Logits of -inf, and any so far below the row's maximum, are put here: exp(-200) is 0 in fp32, and
# nothing becomes NaN in values or gradients.
GAP = 200.0
# Below this mass a sum of fp32 exponentials loses digits, and the tail is summed in logs instead.
_TINY_TAIL = 1e-30
# Where |log(p/q)| is below this, gap - 1 + exp(-gap) cancels, and its series is exact to fp32.
_NEAR = 0.1


@dataclass(frozen=True)
class Buckets:
    """What one pass over a model's logits gives, all fp32 but the ids.

    Attributes:
        log_probs: [C, B], of the buckets; they sum to 1.
        target_log_probs, entropies: [C], over the full vocabulary.
        log_tails: [C], logsumexp of the shifted logits outside the top k; empty for the full
            vocabulary.
        top_mass: [C], the probability of the K top tokens.
        ids_CK: int64, which tokens they are; an empty tensor for the full vocabulary.
    """

    log_probs: Tensor
    target_log_probs: Tensor
    entropies: Tensor
    log_tails: Tensor
    top_mass: Tensor
    ids_CK: Tensor


def read_chunk(
    student_CV: Tensor, teacher_CV: Tensor, target_ids_C: Tensor, k: int | None, temperature: float
) -> tuple[Buckets, Buckets]:
    """Both models' buckets, which the student chooses: its k most probable tokens, and the rest."""
    shifted_CV = shifted_logits(student_CV, temperature)
    ids_CK = None if k is None else shifted_CV.topk(k, dim=-1).indices
    student = _read(shifted_CV, target_ids_C, ids_CK)
    del shifted_CV  # before the teacher's copy is made
    teacher = _read(shifted_logits(teacher_CV, temperature), target_ids_C, ids_CK)
    return student, teacher


def shifted_logits(logits_CV: Tensor, temperature: float) -> Tensor:
    """A new fp32 tensor: logits over temperature, less their maximum, at least -GAP."""
    scaled_CV = logits_CV.float()
    if temperature != 1.0:
        scaled_CV = scaled_CV / temperature
    shifted_CV = scaled_CV - scaled_CV.amax(dim=-1, keepdim=True)
    return shifted_CV.clamp_(min=-GAP)


def _read(shifted_CV: Tensor, target_ids_C: Tensor, ids_CK: Tensor | None) -> Buckets:
    exps_CV = shifted_CV.exp()
    norms_C = exps_CV.sum(-1)
    log_norms_C = norms_C.log()
    # sum(e * z), without a [C, V] tensor for the products
    products_C11 = torch.bmm(exps_CV.unsqueeze(1), shifted_CV.unsqueeze(2))
    products_C = products_C11.view(-1)
    targets_C = shifted_CV.gather(-1, target_ids_C.unsqueeze(-1)).squeeze(-1)
    if ids_CK is None:
        log_probs = shifted_CV - log_norms_C.unsqueeze(-1)
        mass_C = torch.ones_like(norms_C)
        ids_CK = target_ids_C.new_empty((len(norms_C), 0))
        log_tails_C = norms_C.new_empty(0)
    else:
        top_CK = shifted_CV.gather(-1, ids_CK) - log_norms_C.unsqueeze(-1)
        mass_C = exps_CV.gather(-1, ids_CK).sum(-1) / norms_C
        log_tails_C = _log_tails(shifted_CV, exps_CV, ids_CK)
        tail_C1 = (log_tails_C - log_norms_C).unsqueeze(-1)
        log_probs = torch.cat([top_CK, tail_C1], dim=-1)
    return Buckets(
        log_probs=log_probs,
        target_log_probs=targets_C - log_norms_C,
        entropies=log_norms_C - products_C / norms_C,
        log_tails=log_tails_C,
        top_mass=mass_C,
        ids_CK=ids_CK,
    )


def _log_tails(shifted_CV: Tensor, exps_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Log of the sum of the exponentials outside the top k; `exps_CV` is used up."""
    sums_C = exps_CV.scatter_(-1, ids_CK, 0.0).sum(-1)
    log_tails_C = sums_C.log()
    lost_C = sums_C < _TINY_TAIL
    if bool(lost_C.any()):
        lost_ids = ids_CK[lost_C]
        others = shifted_CV[lost_C].scatter(-1, lost_ids, -math.inf)
        log_tails_C[lost_C] = others.logsumexp(-1)
    return log_tails_C


def bucket_divergence(log_s: Tensor, log_t: Tensor, alpha_C: Tensor) -> Tensor:
    """The divergence between the buckets' distributions, fp32 [C] in nats.

    Args:
        log_s, log_t: [C, B] log-probs of student and teacher.
        alpha_C: in [0, 1]: 0 KL(T||S), 1 KL(S||T), between the generalised JSD.
    """
    forward_C, reverse_C = alpha_C == 0, alpha_C == 1
    between_C = ~(forward_C | reverse_C)
    loss_C = torch.zeros_like(alpha_C)
    if bool(forward_C.any()):
        loss_C[forward_C] = _kl(log_t[forward_C], log_s[forward_C])
    if bool(reverse_C.any()):
        loss_C[reverse_C] = _kl(log_s[reverse_C], log_t[reverse_C])
    if bool(between_C.any()):
        own_s, own_t = log_s[between_C], log_t[between_C]
        alpha = alpha_C[between_C]
        log_m = _log_mixture(own_s, own_t, alpha.unsqueeze(-1))
        student_part = (1 - alpha) * _kl(own_s, log_m)
        teacher_part = alpha * _kl(own_t, log_m)
        loss_C[between_C] = student_part + teacher_part
    return loss_C


def bucket_gradients(log_s: Tensor, log_t: Tensor, alpha_C: Tensor) -> Tensor:
    """The gradient of the divergence at a logit that all of a bucket's logits are raised by.

    `d_b = s_b (g_b - sum_b s_b g_b)` with `g_b = dD/ds_b`: `log(s_b/t_b)` for the reverse KL,
    `-t_b/s_b` for the forward KL, where d_b is simply `s_b - t_b`, and `(1-a) log(s_b/m_b)` for
    the JSD; constants cancel in the difference.

    Returns:
        fp32 [C, B].
    """
    alpha_C1 = alpha_C.unsqueeze(-1)
    forward_C1, reverse_C1 = alpha_C1 == 0, alpha_C1 == 1
    slopes = log_s - log_t
    if bool((~(forward_C1 | reverse_C1)).any()):
        # alphas of 0 and 1 would give log(0), in rows that are not read
        inner_C1 = torch.where(forward_C1 | reverse_C1, 0.5, alpha_C1)
        jsd_slopes = (1 - inner_C1) * (log_s - _log_mixture(log_s, log_t, inner_C1))
        slopes = torch.where(reverse_C1, slopes, jsd_slopes)
    s = log_s.exp()
    centred = slopes - (s * slopes).sum(-1, keepdim=True)
    return torch.where(forward_C1, s - log_t.exp(), s * centred)


def _log_mixture(log_s: Tensor, log_t: Tensor, alpha_C1: Tensor) -> Tensor:
    """log((1 - alpha) s + alpha t)."""
    student_share = log_s + torch.log1p(-alpha_C1)
    teacher_share = log_t + alpha_C1.log()
    return torch.logaddexp(student_share, teacher_share)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p||q) over the last dimension, as a sum of terms `p log(p/q) - p + q`.

    Each term is at least 0, and their sum is the same as both sides sum to 1: rounding cannot make
    the result negative, as low-precision sums of `p log(p/q)` are in nearly half of all cases.
    """
    gap = log_p - log_q
    near = gap.abs() < _NEAR
    # x - 1 + exp(-x) = x^2/2 - x^3/6 + x^4/24 - x^5/120 + ..., by Horner's rule
    x = torch.where(near, gap, 0.0)
    from_third_order = 1 / 6 - x * (1 / 24 - x / 120)
    series = x * x * (0.5 - x * from_third_order)
    p = log_p.exp()
    far_terms = p * (gap - 1.0) + log_q.exp()
    return torch.where(near, p * series, far_terms).sum(-1)
