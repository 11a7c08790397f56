"""SPR and OCG as `torchmetrics.Metric`s, for training loops and validation on several ranks.

    spr = StrictPairwiseRanking()
    spr.update(torch.tensor([0.9, 0.4, 0.7]), torch.tensor([1, 0, 0]))
    spr.compute()  # tensor(1.)

Definitions are those of `evaluation.metrics` with missing policy "drop": a confidence of NaN stands
for a response without a readable one; it is left out of the figure and counted in `n_missing`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from caopd_verl.errors import DataError


class StrictPairwiseRanking(Metric):
    """SPR: the share of pairs in which the correct response's confidence is above the wrong one's.

    `compute` gives a scalar, NaN where all responses are correct, all wrong, or there are none:
    then there is no pair, and 0 would claim the worst ranking. Ties earn nothing (AUROC would give
    them half); on a grid of two decimals they are frequent, so look at AUROC too.

    State: confidences of correct and of wrong responses, concatenated over batches and ranks, in
    the metric's dtype (`set_dtype`). `compute` sorts, O(n log n) time and O(n) memory, with no
    table of pairs.

    Args:
        validate_args: check ranges and shapes in `update`, which waits for the device.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    right: list[Tensor]
    wrong: list[Tensor]
    n_missing: Tensor

    def __init__(self, *, validate_args: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.validate_args = validate_args
        self.add_state("right", [], dist_reduce_fx="cat")
        self.add_state("wrong", [], dist_reduce_fx="cat")
        self.add_state("n_missing", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, confidence: Tensor, correct: Tensor) -> None:
        """Add responses: confidences in [0, 1] or NaN, and verdicts (0 or 1), of one shape.

        Raises:
            DataError: unequal shapes; a value out of range (with `validate_args`).
        """
        confidence, correct, missing = _flat(confidence, correct, self.validate_args)
        values = confidence.to(self.dtype)
        self.right.append(values[correct & ~missing])
        self.wrong.append(values[~correct & ~missing])
        self.n_missing = self.n_missing + missing.sum()

    def compute(self) -> Tensor:
        """The share as a scalar of the metric's dtype."""
        # A rank that was given nothing has an empty list, which can't be concatenated.
        right, wrong = (
            dim_zero_cat(state) if len(state) else None for state in (self.right, self.wrong)
        )
        if right is None or wrong is None or not right.numel() or not wrong.numel():
            return torch.tensor(torch.nan, device=self.device, dtype=self.dtype)
        below = torch.searchsorted(wrong.sort().values, right.contiguous(), side="left").sum()
        # In float64, as float32 has no exact integers above 2 ** 24 pairs.
        return (below.double() / (right.numel() * wrong.numel())).to(self.dtype)


class OverconfidenceGap(Metric):
    """OCG: mean confidence minus accuracy, over the responses that carry a confidence.

    Above 0 is overconfident; NaN where no response carries a confidence. State: a sum in float64
    whatever `set_dtype` says, since a sum in float16 saturates, and integer counts.

    Args:
        validate_args: as above.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = None  # 0 is best
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    confidence_sum: Tensor
    n_correct: Tensor
    n: Tensor
    n_missing: Tensor

    def __init__(self, *, validate_args: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.validate_args = validate_args
        self.add_state(
            "confidence_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum"
        )
        for name in ("n_correct", "n", "n_missing"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, confidence: Tensor, correct: Tensor) -> None:
        """As `StrictPairwiseRanking.update`."""
        confidence, correct, missing = _flat(confidence, correct, self.validate_args)
        self.confidence_sum = self.confidence_sum + confidence[~missing].double().sum()
        self.n_correct = self.n_correct + (correct & ~missing).sum()
        self.n = self.n + (~missing).sum()
        self.n_missing = self.n_missing + missing.sum()

    def compute(self) -> Tensor:
        """The gap as a float64 scalar."""
        return (self.confidence_sum - self.n_correct) / self.n  # 0 / 0 is NaN


def _flat(confidence: Tensor, correct: Tensor, validate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Confidences, verdicts and which confidences are missing, each of shape [n]."""
    if confidence.shape != correct.shape:
        shapes = (tuple(confidence.shape), tuple(correct.shape))
        raise DataError(
            f"confidences of shape {shapes[0]}, verdicts of shape {shapes[1]}",
            expected="one of each a response",
        )
    confidence, correct = confidence.detach().flatten(), correct.detach().flatten()
    missing = torch.isnan(confidence)
    if validate:
        if not (missing | ((confidence >= 0) & (confidence <= 1))).all():
            raise DataError(
                "a confidence is out of range",
                expected="numbers in [0, 1], or NaN where none was read",
            )
        if not ((correct == 0) | (correct == 1)).all():
            raise DataError("a verdict is neither 0 nor 1", expected="0 or 1")
    return confidence, correct.bool(), missing
