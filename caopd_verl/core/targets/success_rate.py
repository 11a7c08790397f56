"""The calibration target p-hat of one prompt: what fraction of its own rollouts was right.

`p_hat(x) = (1/K) sum_k V(x, y_k)` (Eq. 6 of arXiv 2604.16830), with the verdicts of the ORIGINAL
responses. All K rollouts share it, each one's own outcome included. Two switches depart from that:

* `leave_one_out`: rollout k's target is the mean of the other K - 1 verdicts. Targets become
  independent of the trajectory that they are written into, but differ within a group.
* `shrinkage=(a, b)`: the posterior mean (s + a) / (n + a + b) under a Beta(a, b) prior.

    python -c "from caopd_verl.core.targets.success_rate import SuccessRate; \\
        print(SuccessRate().target('q1', [True, False]))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caopd_verl.core.targets.target import Target
from caopd_verl.errors import ConfigError, DataError


@dataclass(frozen=True)
class SuccessRate:
    """p-hat of each step's own rollouts; no memory.

    Args:
        leave_one_out: see the module docstring; needs K >= 2.
        shrinkage: pseudo-counts (a, b) of successes and failures, finite and >= 0; None for none.
    """

    leave_one_out: bool = False
    shrinkage: tuple[float, float] | None = None

    def target(self, prompt_id: str, correct: Sequence[bool]) -> Target:
        """p-hat from the verdicts of one group.

        Raises:
            DataError: the group is empty.
            ConfigError: leave-one-out with K = 1, or negative pseudo-counts.
        """
        verdicts = [bool(verdict) for verdict in correct]
        k, successes = len(verdicts), sum(verdicts)
        if k == 0:
            raise DataError(
                f"a group without rollouts has no success rate (question {prompt_id!r})",
                expected="at least one verdict",
            )
        a, b = _pseudo_counts(self.shrinkage)
        p_hat = (successes + a) / (k + a + b)
        if not self.leave_one_out:
            return Target(p_hat, successes, k, (p_hat,) * k)
        if k == 1:
            raise ConfigError(
                "leave-one-out leaves nothing of a group of one rollout",
                expected="K >= 2 rollouts a prompt with leave_one_out",
                fix="raise the number of rollouts a prompt, or switch leave_one_out off",
            )
        # bool is an int here: a rollout's own success is taken out of the sum
        others = [successes - own for own in verdicts]
        per_rollout = tuple((s + a) / (k - 1 + a + b) for s in others)
        return Target(p_hat, successes, k, per_rollout)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: each step stands for itself."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def _pseudo_counts(shrinkage: tuple[float, float] | None) -> tuple[float, float]:
    if shrinkage is None:
        return 0.0, 0.0
    a, b = shrinkage
    # 0 is allowed: a prior on one side only
    if not (math.isfinite(a) and math.isfinite(b) and a >= 0 and b >= 0):
        raise ConfigError(
            f"shrinkage ({a}, {b}) is no pair of pseudo-counts", expected="two finite numbers >= 0"
        )
    return float(a), float(b)
