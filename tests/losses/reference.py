"""The divergence as a textbook has it, to compare the product's with.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_divergence(
    student_logits_TV: Tensor, teacher_logits_TV: Tensor, *, alpha_T: Tensor, temperature: float
) -> Tensor:
    """Slow, token by token, over the whole vocabulary: fp64 [T] with gradient to the student."""
    log_s_TV = (student_logits_TV.double() / temperature).log_softmax(-1)
    log_t_TV = (teacher_logits_TV.detach().double() / temperature).log_softmax(-1)
    losses = []
    for log_s_V, log_t_V, alpha in zip(log_s_TV, log_t_TV, alpha_T.tolist(), strict=True):
        if alpha == 0.0:
            losses.append(_kl(log_t_V, log_s_V))
        elif alpha == 1.0:
            losses.append(_kl(log_s_V, log_t_V))
        else:
            log_m_V = ((1 - alpha) * log_s_V.exp() + alpha * log_t_V.exp()).log()
            student_part = (1 - alpha) * _kl(log_s_V, log_m_V)
            teacher_part = alpha * _kl(log_t_V, log_m_V)
            losses.append(student_part + teacher_part)
    return torch.stack(losses)


def _kl(log_p_V: Tensor, log_q_V: Tensor) -> Tensor:
    return (log_p_V.exp() * (log_p_V - log_q_V)).sum()
