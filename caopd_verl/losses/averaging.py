"""From per-token losses to one number: the weight of each token in the loss of a step.

Shapes: B rows (sequences) of R response positions.

A row counts as one row of the average, or only by its tokens (`Trajectory.counts_as`): of a group
without any success only a few confidence tokens may be trained, and they must not weigh as much as
a whole response.

* `token`: every trained token of the step weighs the same: `sum of losses / number of tokens`.
* `sequence`: every row weighs the same: the mean of the rows' means. A token of a row that counts
  by its tokens weighs as one token of a response of mean length, so such a row has the weight
  `its trained tokens / mean trained tokens of a whole row`. (Without any whole row in the step each
  of its tokens weighs the same.)

Rows without a trained token do not dilute the loss unless asked: the denominator counts trained
rows only, or every row with `include_masked_rows`, as SDPO does, whose effective learning rate
falls with the share of masked rows.

The weights are taken over the whole step before it is split, so the sum of `weight * loss` over
micro-batches and ranks is the same however the step is split. A framework that averages gradients
over D data-parallel ranks needs the result times D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caopd_verl.errors import TeacherContextError


def step_weights(
    weights_BR: Tensor, by_tokens_B: Tensor, *, average: str, include_masked_rows: bool
) -> Tensor:
    """The weight of each token in the step's loss.

    Args:
        weights_BR: fp32, the method's own weights; 0 for a token that is not trained.
        by_tokens_B: bool, rows that count only by their tokens.
        average: `sequence` or `token`.
        include_masked_rows: let rows without a trained token dilute the loss.

    Returns:
        fp32 [B, R], 0 where nothing is trained, with a sum of 1 (less with `include_masked_rows`).

    Raises:
        TeacherContextError: no token is trained; no step may train on nothing.
    """
    mass_B = weights_BR.sum(-1)  # the number of trained tokens, where weights are 0 or 1
    trained_B = mass_B > 0
    whole_B = trained_B & ~by_tokens_B
    n_trained = int(trained_B.sum())
    n_whole = int(whole_B.sum())
    # fp64: a step of 256 long responses has millions of tokens, and fp32 counts to 16.7 million
    whole_mass = float(mass_B[whole_B].double().sum())
    tokens_mass = float(mass_B[trained_B & by_tokens_B].double().sum())
    if n_trained == 0:
        raise TeacherContextError(
            "the step holds no token to train on",
            expected="at least one group with a success, or unsolved groups trained too",
            fix="skip the step and say so, sample more prompts, or train unsolved groups",
        )
    if average == "token":
        per_token_B1 = torch.ones_like(mass_B).unsqueeze(-1)
        denominator = whole_mass + tokens_mass
        if include_masked_rows:
            denominator *= len(mass_B) / n_trained
    else:
        mean_length = whole_mass / n_whole if n_whole else 1.0
        safe_B = torch.where(trained_B, mass_B, 1.0)  # a masked row must not divide by 0
        per_row_B = torch.where(by_tokens_B, 1.0 / mean_length, 1.0 / safe_B)
        per_token_B1 = per_row_B.unsqueeze(-1)
        denominator = n_whole + tokens_mass / mean_length
        if include_masked_rows:
            n_masked = len(mass_B) - n_trained
            mean_row = 1.0 if n_whole else tokens_mass / n_trained
            denominator += n_masked * mean_row
    return weights_BR * (per_token_B1 / denominator)
