"""A target with memory: each prompt's success rate, averaged over the epochs.

`estimate <- momentum * estimate + (1 - momentum) * p_hat`, starting from the first epoch's p-hat.
At K = 8 one step's p-hat has a standard error of up to 0.18. A prompt that comes again brings
fresh rollouts, and the average is less noisy as long as the model's skill changes slowly.

A deviation from the paper, which takes each step's own success rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caopd_verl.core.targets.success_rate import SuccessRate
from caopd_verl.core.targets.target import Target


class RunningEstimate:
    """The success rate with a memory of each prompt.

    Args:
        inner: gives the p-hat of each step.
        momentum: in [0, 1): how much of the earlier estimate is kept.
    """

    def __init__(self, inner: SuccessRate, momentum: float) -> None:
        self.inner = inner
        self.momentum = momentum
        self._estimates: dict[str, float] = {}

    def target(self, prompt_id: str, correct: Sequence[bool]) -> Target:
        """The prompt's estimate after this group; its rollouts share it."""
        now = self.inner.target(prompt_id, correct)
        before = self._estimates.get(prompt_id)
        estimate = now.p_hat  # of the first epoch, which has nothing to be averaged with
        if before is not None:
            estimate = self.momentum * before + (1.0 - self.momentum) * now.p_hat
        self._estimates[prompt_id] = estimate
        return replace(now, p_hat=estimate, per_rollout=(estimate,) * now.k)

    def state_dict(self) -> dict[str, Any]:
        """The estimates by the prompts' ids."""
        return {"estimates": dict(self._estimates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._estimates = dict(state["estimates"])
