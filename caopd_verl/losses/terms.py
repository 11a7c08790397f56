"""The terms that a method's loss is made of. A term chooses its tokens by their role.

verl 0.9.1 calls a loss twice for each micro-batch: while the student's logits are at hand, for
values of single tokens, and afterwards, for one number. A term answers both calls: `token_values`
with the models, `reduce` without. The loss of a step is the sum of its terms.

Legend: T response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from caopd_verl.losses.batch import ModelBatch, TokenBatch
from caopd_verl.losses.divergence import topk_divergence
from caopd_verl.losses.importance import importance_weights, tis_weights
from caopd_verl.types import ALL_ROLES, Role

STUDENT_LOG_PROBS = "student_log_probs"  # every term's first value, without gradient

TokenValues = dict[str, Tensor]


@dataclass(frozen=True)
class Reduced:
    """One term's share of a micro-batch's loss.

    Attributes:
        loss: fp32 scalar with gradient.
        token_losses_T: fp32 [T], detached, what each token adds to it; None where the term cannot
            say.
    """

    loss: Tensor
    token_losses_T: Tensor | None


class LossTerm(Protocol):
    """One term of a loss: frozen and picklable, since the workers make it from the config."""

    @property
    def name(self) -> str:
        """Name in the log."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the term reads the teacher. If no term does, none is built, run or moved."""

    def token_values(self, batch: ModelBatch) -> TokenValues:
        """fp32 [T] tensors by name: what `reduce` needs, and readings for the log."""

    def reduce(self, values: Mapping[str, Tensor], batch: TokenBatch) -> Reduced:
        """The term's share of the loss, from the tensors that `token_values` gave."""


@dataclass(frozen=True)
class Divergence:
    """The divergence between student and teacher on the student's top k tokens (Eq. 7).

    Each token is weighted by two clipped ratios: student against old student, and old student
    against the sampler where the token is the sampled one.
    """

    top_k: int | None
    is_clip: float
    tis_clip: float | None
    roles: frozenset[Role] = ALL_ROLES
    name: str = "divergence"
    needs_teacher: bool = True

    def token_values(self, batch: ModelBatch) -> TokenValues:
        """`divergence` with gradient, and the readings of `topk_divergence`."""
        loss_T, readings = topk_divergence(
            batch.student.logits_TV,
            batch.teacher.logits_TV,
            batch.token_ids_T,
            k=self.top_k,
            alpha_T=batch.alphas_T,
            temperature=batch.temperature,
            chunk_tokens=batch.chunk_tokens,
        )
        return {self.name: loss_T, **readings}

    def reduce(self, values: Mapping[str, Tensor], batch: TokenBatch) -> Reduced:
        """Weighted sum over the term's tokens."""
        student_T = values[STUDENT_LOG_PROBS].detach()
        old_T = _old_log_probs(batch, student_T)
        weights_T = _masked_weights(batch, self.roles)
        weights_T = weights_T * importance_weights(student_T, old_T, clip=self.is_clip)
        weights_T = weights_T * _tis(batch, old_T, self.tis_clip)
        return _weighted_sum(weights_T, values[self.name])


@dataclass(frozen=True)
class ConfidenceCrossEntropy:
    """Cross-entropy on the tokens of the stated number, which spell p-hat after the revision.

    This is the forward KL to a teacher that copies p-hat perfectly. It needs no teacher, and does
    what the divergence cannot where a real teacher does not take the number up.
    """

    roles: frozenset[Role] = frozenset({Role.CONFIDENCE_VALUE})
    name: str = "confidence_cross_entropy"
    needs_teacher: bool = False

    def token_values(self, batch: ModelBatch) -> TokenValues:
        """The negative log-prob of each token, with gradient."""
        log_probs_T, entropies_T = batch.student_log_probs
        return {
            self.name: -log_probs_T,
            STUDENT_LOG_PROBS: log_probs_T.detach(),
            "student_entropy": entropies_T,
        }

    def reduce(self, values: Mapping[str, Tensor], batch: TokenBatch) -> Reduced:
        """Weighted sum over the numbers' tokens; a label needs no importance weight."""
        return _weighted_sum(_masked_weights(batch, self.roles), values[self.name])


@dataclass(frozen=True)
class PolicyGradient:
    """The framework's own clipped policy loss on the trajectories' advantages.

    Args:
        tis_clip: bound of the ratio of trainer to sampler; None for none.
    """

    tis_clip: float | None
    roles: frozenset[Role] = ALL_ROLES
    name: str = "policy_gradient"
    needs_teacher: bool = False

    def token_values(self, batch: ModelBatch) -> TokenValues:
        """The tokens' log-probs, with gradient."""
        log_probs_T, entropies_T = batch.student_log_probs
        return {
            "log_probs": log_probs_T,
            STUDENT_LOG_PROBS: log_probs_T.detach(),
            "student_entropy": entropies_T,
        }

    def reduce(self, values: Mapping[str, Tensor], batch: TokenBatch) -> Reduced:
        """The framework's loss, each token weighted by its weight in the step."""
        log_probs_T = values["log_probs"]
        old_T = _old_log_probs(batch, log_probs_T.detach())
        weights_T = _masked_weights(batch, self.roles) * _tis(batch, old_T, self.tis_clip)
        # Policy losses of whole sequences need rows, so the tokens go back to [B, R].
        mask_T = (weights_T != 0).float()
        padded = [
            _to_rows(flat_T, batch.lengths_B)
            for flat_T in (old_T, log_probs_T, batch.advantages_T, mask_T, weights_T)
        ]
        return Reduced(batch.policy_loss(*padded), None)


def _weighted_sum(weights_T: Tensor, losses_T: Tensor) -> Reduced:
    """What stands at untrained tokens is not read, not even NaN, and gets a gradient of 0."""
    safe_T = torch.where(weights_T != 0, losses_T, 0.0)
    weighted_T = weights_T * safe_T
    return Reduced(weighted_T.sum(), weighted_T.detach())


def _masked_weights(batch: TokenBatch, roles: frozenset[Role]) -> Tensor:
    """The step's weights, 0 for tokens that the term leaves to others."""
    if roles == ALL_ROLES:
        return batch.weights_T
    return torch.where(batch.has_role(roles), batch.weights_T, 0.0)


def _old_log_probs(batch: TokenBatch, student_T: Tensor) -> Tensor:
    """With one update a step the old student is this one, and the ratio exactly 1."""
    return student_T if batch.old_log_probs_T is None else batch.old_log_probs_T


def _tis(batch: TokenBatch, old_T: Tensor, clip: float | None) -> Tensor:
    return tis_weights(old_T, batch.sampler_log_probs_T, batch.sampled_T, clip=clip)


def _to_rows(flat_T: Tensor, lengths_B: Tensor) -> Tensor:
    """[T] to [B, R], zeros behind each row's end."""
    rows = flat_T.split(lengths_B.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
