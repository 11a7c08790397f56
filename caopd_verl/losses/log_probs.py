"""Log-probs of given tokens from logits, in fp32, chunk by chunk.

Legend: T response tokens, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_log_probs(
    logits_TV: Tensor, token_ids_T: Tensor, *, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """The log-prob of each token, and the entropy of each distribution.

    Args:
        logits_TV: float, any precision; row t is the distribution of token t.
        token_ids_T: int64.
        temperature: > 0; the logits are divided by it, in fp32.
        chunk_tokens: > 0; so many rows are upcast to fp32 at once. Each chunk is computed again in
            the backward pass, so that its [chunk, V] copies need not be kept.

    Returns:
        `(log_probs_T, entropies_T)`: fp32 [T] in nats; gradient through the log-probs only.
    """
    log_probs: list[Tensor] = []
    entropies: list[Tensor] = []
    logit_chunks = logits_TV.split(chunk_tokens)
    id_chunks = token_ids_T.split(chunk_tokens)
    for logits_CV, ids_C in zip(logit_chunks, id_chunks, strict=True):
        # Non-reentrant: the reentrant form drops the gradient where no input requires one yet.
        log_probs_C, entropies_C = checkpoint(
            _chunk, logits_CV, ids_C, temperature, use_reentrant=False, preserve_rng_state=False
        )
        log_probs.append(log_probs_C)
        entropies.append(entropies_C)
    return torch.cat(log_probs), torch.cat(entropies)


def _chunk(logits_CV: Tensor, ids_C: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    all_log_probs_CV = (logits_CV.float() / temperature).log_softmax(-1)
    log_probs_C = all_log_probs_CV.gather(-1, ids_C.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        probs_CV = all_log_probs_CV.exp()
        # 0 * -inf is NaN, and a token of probability 0 adds nothing to the entropy
        terms_CV = torch.where(probs_CV > 0, probs_CV * all_log_probs_CV, 0.0)
        entropies_C = -terms_CV.sum(-1)
    return log_probs_C, entropies_C
