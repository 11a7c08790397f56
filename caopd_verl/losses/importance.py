"""Importance weights of single tokens: student against old student, and trainer against sampler.

Weights are per token and clipped from above. They are never multiplied along a sequence: after a
revision the log-probs of the replaced tokens do not exist, and a product would carry their absence
into every other token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caopd_verl.errors import ConfigError

LOG_RATIO_LIMIT = 20.0  # beyond exp(20) the clip decides anyway, and exp would overflow


def importance_weights(logp_T: Tensor, old_logp_T: Tensor, *, clip: float | None) -> Tensor:
    """Per-token `min(pi / pi_old, clip)`; exactly 1 where the policies agree.

    Source: Table 6 of arXiv 2604.16830 (IS clip 2).

    Args:
        logp_T: the student's log-probs now.
        old_logp_T: its log-probs before the step's first update, of the same (revised) sequence.
        clip: upper bound, > 0; None for no weighting, all ones.

    Returns:
        fp32 [T], detached.

    Raises:
        ConfigError: the clip is not positive.
    """
    if clip is None:
        return torch.ones_like(logp_T, dtype=torch.float32).detach()
    return _clipped_ratio(logp_T, old_logp_T, clip)


def tis_weights(
    old_logp_T: Tensor, sampler_logp_T: Tensor, sampled_T: Tensor, *, clip: float | None
) -> Tensor:
    """Truncated importance weights of the trainer against the sampler.

    Args:
        old_logp_T: the trainer's log-probs of the (revised) sequence.
        sampler_logp_T: the sampler's; what stands where `sampled_T` is False is not read, NaN
            included.
        sampled_T: bool, tokens that are the sampled ones in their sampled context. Elsewhere the
            weight is 1, because the sampler never gave those tokens a probability.
        clip: upper bound, > 0; None for all ones.

    Returns:
        fp32 [T], detached.

    Raises:
        ConfigError: the clip is not positive.
    """
    ones_T = torch.ones_like(old_logp_T, dtype=torch.float32).detach()
    if clip is None:
        return ones_T
    old_T = old_logp_T.detach()
    readable_T = torch.where(sampled_T, sampler_logp_T.detach(), old_T)
    return torch.where(sampled_T, _clipped_ratio(old_T, readable_T, clip), ones_T)


def _clipped_ratio(new_T: Tensor, old_T: Tensor, clip: float) -> Tensor:
    if not clip > 0:
        raise ConfigError(
            f"importance weights clipped at {clip}", expected="a positive number, or null for none"
        )
    log_ratio_T = new_T.detach().float() - old_T.detach().float()
    bounded_T = log_ratio_T.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return bounded_T.exp().clamp(max=clip)
