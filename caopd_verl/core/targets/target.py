"""What a target rule is, and what it returns.

A rule sees the groups of one step, in order, and gives each its target. A rule with memory saves
and loads beside the EMA teacher, so that a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Target:
    """The target of one group.

    Attributes:
        p_hat: the target in [0, 1] that the prompt's responses and demonstration state.
        successes: how many of the judged rollouts were right.
        k: how many rollouts were judged.
        per_rollout: the target of each judged rollout; other than `p_hat` only with leave-one-out.
    """

    p_hat: float
    successes: int
    k: int
    per_rollout: tuple[float, ...]

    @property
    def solved(self) -> bool:
        """Whether any rollout was right; without one there is no sibling to demonstrate."""
        return self.successes > 0

    @property
    def unanimous(self) -> bool:
        """Whether every rollout was right."""
        return self.successes == self.k


class TargetRule(Protocol):
    """Gives each group of a step its target."""

    def target(self, prompt_id: str, correct: Sequence[bool]) -> Target:
        """The target of one group.

        Args:
            prompt_id: the question's id, the same in every epoch.
            correct: the verdicts of the judged rollouts, on the responses as sampled.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as JSON values; empty for a rule without memory."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
