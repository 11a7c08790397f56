"""From per-token losses to one number, the same however the batch is split over micro-batches and ranks.

Shapes: B rows (sequences) of R response positions. Two kinds of rows are trained: full rows, and `confidence_only` rows
(groups without any success, T16), of which only the few confidence tokens are in the mask.

* `token`: every trained token of the whole batch weighs the same: `sum of losses / number of trained tokens`.
* `sequence`: every full row weighs the same: the mean of the rows' means. A confidence token of a `confidence_only` row
  weighs as one token of a response of mean length, so such a row has the weight `n_trained_tokens / mean trained tokens
  of a full row`: a handful of confidence tokens never outweighs whole responses. (Without any full row in the batch
  each of its tokens weighs the same.)

Rows without a trained token do not dilute the loss unless asked (T23): the denominator counts active rows only, or,
with `include_masked_rows`, every row (as SDPO does, where the effective learning rate falls with the share of masked
rows).

`LossCounts` are additive: count on each rank, sum over ranks (`to_list`/`from_list` for an all-reduce), and hand the
total to `aggregate_loss` for each micro-batch; the SUM of its results over micro-batches and ranks is the loss of the
batch. A framework that averages gradients over D data-parallel ranks needs the result times D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from caopd_verl.errors import ConfigError, TeacherContextError

MODES = ("sequence", "token")


@dataclass(frozen=True)
class LossCounts:
    """What the denominators need, summed over the whole batch (all micro-batches, all ranks); adds up with `+`.

    Attributes:
        rows: all rows, masked ones included.
        full_rows, full_tokens: rows with trained tokens that are not `confidence_only`, and their trained tokens.
        confidence_only_rows, confidence_only_tokens: the same for `confidence_only` rows.
    """

    rows: int
    full_rows: int
    full_tokens: int
    confidence_only_rows: int
    confidence_only_tokens: int

    def __add__(self, other: LossCounts) -> LossCounts:
        return LossCounts.from_list(
            [a + b for a, b in zip(self.to_list(), other.to_list(), strict=True)]
        )

    def to_list(self) -> list[int]:
        """The five counts, in the order of the fields, e.g. for an all-reduce."""
        return [
            self.rows,
            self.full_rows,
            self.full_tokens,
            self.confidence_only_rows,
            self.confidence_only_tokens,
        ]

    @classmethod
    def from_list(cls, counts: list[int]) -> LossCounts:
        """Inverse of `to_list`."""
        return cls(*(int(c) for c in counts))

    @property
    def tokens(self) -> int:
        """Number of trained tokens."""
        return self.full_tokens + self.confidence_only_tokens


def count_loss_tokens(mask_BR: Tensor, confidence_only_B: Tensor) -> LossCounts:
    """Counts of one micro-batch or rank.

    Args:
        mask_BR: bool, the trained tokens.
        confidence_only_B: bool, rows of which only confidence tokens are trained.
    """
    n_B = mask_BR.bool().sum(-1)
    only_B = confidence_only_B.bool()
    return LossCounts(
        rows=int(mask_BR.shape[0]),
        full_rows=int(((n_B > 0) & ~only_B).sum()),
        full_tokens=int(n_B[~only_B].sum()),
        confidence_only_rows=int(((n_B > 0) & only_B).sum()),
        confidence_only_tokens=int(n_B[only_B].sum()),
    )


def token_weights(
    mask_BR: Tensor,
    confidence_only_B: Tensor,
    *,
    mode: str,
    counts: LossCounts,
    include_masked_rows: bool,
) -> Tensor:
    """fp32 [B, R] weights w with `loss = sum(w * loss_BR)`; 0 outside the mask; sum to 1 over the batch (see module).

    Raises:
        ConfigError: unknown mode.
        TeacherContextError: the whole batch holds no trained token; no step may train on nothing.
    """
    if mode not in MODES:
        raise ConfigError(f"loss averaging {mode!r}", expected=" or ".join(MODES))
    if counts.tokens == 0:
        raise TeacherContextError(
            "the batch holds no token to train on: no group has a teacher context",
            expected="at least one group with a success, or unsolved groups under confidence_only",
            fix="skip the step and say so, sample more prompts, or train unsolved groups under confidence_only",
        )
    mask_BR = mask_BR.bool()
    n_B1 = mask_BR.sum(-1, keepdim=True).float()
    only_B1 = confidence_only_B.bool().unsqueeze(-1)
    if mode == "token":
        per_token = torch.ones_like(n_B1)
        denominator = float(counts.tokens)
        if include_masked_rows:
            denominator *= counts.rows / (counts.full_rows + counts.confidence_only_rows)
    else:
        mean_length = counts.full_tokens / counts.full_rows if counts.full_rows else 1.0
        per_token = torch.where(only_B1, 1.0 / mean_length, 1.0 / n_B1.clamp(min=1.0))
        denominator = counts.full_rows + counts.confidence_only_tokens / mean_length
        if include_masked_rows:
            active = counts.full_rows + counts.confidence_only_rows
            denominator += (counts.rows - active) * (
                1.0 if counts.full_rows else counts.tokens / active
            )
    return torch.where(mask_BR, per_token / denominator, 0.0)


def aggregate_loss(
    loss_BR: Tensor,
    mask_BR: Tensor,
    confidence_mask_BR: Tensor,
    confidence_only_B: Tensor,
    *,
    mode: str,
    counts: LossCounts,
    include_masked_rows: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's share of the batch's loss, and sums for the log.

    Args:
        loss_BR: float, per-token losses, IS and TIS weights multiplied in. What stands outside the mask is not read
            (not even NaN) and gets a gradient of exactly 0.
        mask_BR: bool, the trained tokens.
        confidence_mask_BR: bool, the tokens of the confidence segment.
        confidence_only_B: bool, rows of which only confidence tokens are trained.
        mode: `sequence` or `token`.
        counts: of the WHOLE batch.
        include_masked_rows: let masked rows dilute the loss (T23).

    Returns:
        `(share, sums)`: fp32 scalar; detached scalars `reasoning_loss_sum`, `reasoning_tokens`, `confidence_loss_sum`,
        `confidence_tokens` (unweighted: add up over micro-batches, divide at the end) and `reasoning_share`,
        `confidence_share` (which add up to the loss).

    Raises:
        ConfigError, TeacherContextError: as `token_weights`.
    """
    mask_BR, confidence_BR = mask_BR.bool(), confidence_mask_BR.bool()
    weights_BR = token_weights(
        mask_BR,
        confidence_only_B,
        mode=mode,
        counts=counts,
        include_masked_rows=include_masked_rows,
    )
    safe_BR = torch.where(mask_BR, loss_BR.float(), 0.0)
    weighted_BR = safe_BR * weights_BR
    sums: dict[str, Tensor] = {}
    for name, part_BR in (
        ("reasoning", mask_BR & ~confidence_BR),
        ("confidence", mask_BR & confidence_BR),
    ):
        sums[f"{name}_loss_sum"] = torch.where(part_BR, safe_BR.detach(), 0.0).sum()
        sums[f"{name}_share"] = torch.where(part_BR, weighted_BR.detach(), 0.0).sum()
        sums[f"{name}_tokens"] = part_BR.sum().float()
    return weighted_BR.sum(), sums
