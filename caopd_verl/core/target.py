"""The calibration target p-hat of one prompt: what fraction of its own rollouts was right (paper Eq. 6).

`p_hat(x) = (1/K) sum_k V(x, y_k)`, with the verdicts of the ORIGINAL responses (T20). All K rollouts share it, each
one's own outcome included (T10); both are switches:

* `leave_one_out`: rollout k's target is the mean of the other K - 1 verdicts. Targets become independent of the
  trajectory they are written into, but differ within a group, and K levels become K - 1.
* `shrinkage=(a, b)`: the posterior mean (s + a) / (n + a + b) under a Beta(a, b) prior.

    python -c "from caopd_verl.core.target import compute_target; \\
        print(compute_target([True, False], leave_one_out=False, shrinkage=None))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from caopd_verl.errors import ConfigError, DataError


@dataclass(frozen=True)
class Target:
    """The target of one group.

    Attributes:
        p_hat: the group's success rate in [0, 1] (shrunk, where shrinkage is on); what the demonstration states.
        successes: how many of the K rollouts were right.
        k: the number of rollouts.
        per_rollout: what each rollout's own confidence is replaced by; differs from `p_hat` only with leave-one-out.
    """

    p_hat: float
    successes: int
    k: int
    per_rollout: tuple[float, ...]

    @property
    def solved(self) -> bool:
        """Whether any rollout was right; without one there is no demonstration (T16)."""
        return self.successes > 0


def compute_target(
    correct: Sequence[bool], *, leave_one_out: bool, shrinkage: tuple[float, float] | None
) -> Target:
    """p-hat from the verdicts of one group.

    Args:
        correct: the K verdicts, in the order of the rollouts.
        leave_one_out: see the module docstring; needs K >= 2.
        shrinkage: pseudo-counts (a, b) of successes and failures, both finite and >= 0; None for none.

    Raises:
        DataError: the group is empty.
        ConfigError: leave-one-out with K = 1, or negative pseudo-counts.
    """
    verdicts = [bool(c) for c in correct]
    k, successes = len(verdicts), sum(verdicts)
    if k == 0:
        raise DataError(
            "a group without rollouts has no success rate", expected="at least one verdict"
        )
    if leave_one_out and k == 1:
        raise ConfigError(
            "leave-one-out leaves nothing of a group of one rollout",
            expected="K >= 2 rollouts a prompt with leave_one_out",
            fix="raise the number of rollouts a prompt, or switch leave_one_out off",
        )
    a, b = _pseudo_counts(shrinkage)
    p_hat = (successes + a) / (k + a + b)
    per_rollout = (p_hat,) * k
    if leave_one_out:
        per_rollout = tuple((successes - own + a) / (k - 1 + a + b) for own in verdicts)
    return Target(p_hat=p_hat, successes=successes, k=k, per_rollout=per_rollout)


def _pseudo_counts(shrinkage: tuple[float, float] | None) -> tuple[float, float]:
    if shrinkage is None:
        return 0.0, 0.0
    a, b = shrinkage
    if not (math.isfinite(a) and math.isfinite(b) and a >= 0 and b >= 0):
        raise ConfigError(
            f"shrinkage ({a}, {b}) is no pair of pseudo-counts", expected="two finite numbers >= 0"
        )
    return float(a), float(b)
