"""What a loss term reads: the response tokens of one micro-batch, and the models when asked.

Legend: B rows, T response tokens of the micro-batch (all rows behind one another), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from caopd_verl.losses.log_probs import token_log_probs
from caopd_verl.types import Role


@dataclass(frozen=True)
class Head:
    """What a model says of each response token, before any softmax.

    Today that is logits. A loss that never holds them would take hidden states and the LM head
    here instead, and no term but the one that uses them would change.
    """

    logits_TV: Tensor  # compute dtype, before any temperature


PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A framework's policy loss: `(old_log_probs, log_probs, advantages, mask, weights)`, all fp32
[B, R] with zeros behind each row's end, to the scalar `sum(weights * mask * loss)`."""


@dataclass(frozen=True)
class TokenBatch:
    """The response tokens of a micro-batch.

    Attributes:
        token_ids_T: int64.
        roles_T: int64, `types.Role`.
        alphas_T: fp32 in [0, 1], the divergence's direction.
        advantages_T: fp32.
        weights_T: fp32, each token's weight in the step's loss, scaled for ranks and mini-batches.
        sampled_T: bool, tokens that are the sampled ones in their sampled context.
        sampler_log_probs_T: fp32, nats; valid where `sampled_T`.
        old_log_probs_T: fp32, nats, of the student before the step's first update; None where the
            step has one update, before which the student is the old one itself.
        lengths_B: int64, response tokens of each row.
        policy_loss: the framework's.
    """

    token_ids_T: Tensor
    roles_T: Tensor
    alphas_T: Tensor
    advantages_T: Tensor
    weights_T: Tensor
    sampled_T: Tensor
    sampler_log_probs_T: Tensor
    old_log_probs_T: Tensor | None
    lengths_B: Tensor
    policy_loss: PolicyLoss

    def has_role(self, roles: frozenset[Role]) -> Tensor:
        """bool [T], tokens whose role is one of `roles`."""
        # A few comparisons: torch.isin sorts, which is slower for four roles.
        found_T = torch.zeros_like(self.roles_T, dtype=torch.bool)
        for role in roles:
            found_T |= self.roles_T == int(role)
        return found_T


@dataclass(frozen=True)
class ModelBatch(TokenBatch):
    """The same, while the student's logits are at hand. What no term reads is never computed.

    Attributes:
        student: the student's head, with gradient.
        run_teacher: a forward pass of the teacher, without gradient.
        temperature: of the sampling; both heads are divided by it, in fp32.
        chunk_tokens: tokens whose fp32 log-probs may be alive at once.
    """

    student: Head
    run_teacher: Callable[[], Head]
    temperature: float
    chunk_tokens: int

    @cached_property
    def teacher(self) -> Head:
        """The teacher's head; runs the teacher when first read."""
        return self.run_teacher()

    @cached_property
    def student_log_probs(self) -> tuple[Tensor, Tensor]:
        """fp32 [T] log-probs of the tokens with gradient, and the entropies without."""
        return token_log_probs(
            self.student.logits_TV,
            self.token_ids_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )
