"""What a method decides, and nothing else knows.

A method says which loss terms it needs, how many rollouts a prompt gets, what its own config
checks are, and which trajectories come of a group of verified rollouts. It knows nothing of
tensors, engines or verl. A new method is one small file and one row of `methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from caopd_verl.config import CaopdConfig
from caopd_verl.core.targets import Target
from caopd_verl.core.tokens import Tokenizer
from caopd_verl.losses.terms import LossTerm
from caopd_verl.types import Example, Rollout, RolloutGroup, Trajectory


class Services(Protocol):
    """The one thing that a method may ask. The tests have one fake of it."""

    @property
    def config(self) -> CaopdConfig:
        """The `caopd` block."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer."""

    @property
    def eot_id(self) -> int:
        """The id that ends the assistant's turn in the chat template."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """All ids at which sampling stops, `eot_id` included."""

    @property
    def max_response_tokens(self) -> int:
        """Limit of a response, end-of-turn included."""

    def gold_demonstration(self, example: Example) -> str:
        """The question's worked solution: its own, else its gold answer as a response."""

    def group_advantages(self, rewards: Sequence[float]) -> list[float]:
        """The framework's advantage of each rollout of one group, from the group's rewards."""


@dataclass(frozen=True)
class RolloutPlan:
    """How many rollouts a prompt gets, and what for.

    The first `trained` rollouts become trajectories; those from `judged_from` on give p-hat.
    """

    n: int
    trained: int
    judged_from: int = 0

    def judged(self, group: RolloutGroup) -> tuple[Rollout, ...]:
        """The rollouts whose verdicts give the group's target."""
        return group.rollouts[self.judged_from :]


class Method(Protocol):
    """One row of `methods.METHODS`."""

    def plan(self, config: CaopdConfig, rollouts: int) -> RolloutPlan:
        """What is sampled for a prompt, where the config asks for `rollouts` (K)."""

    def check(self, config: CaopdConfig, rollouts: int) -> None:
        """Raise `ConfigError`, naming the key, for a setting that the method cannot work with."""

    def loss_terms(self, config: CaopdConfig) -> tuple[LossTerm, ...]:
        """The terms whose sum is the loss."""

    def trajectories(
        self, group: RolloutGroup, target: Target, services: Services
    ) -> list[Trajectory]:
        """One trajectory for each trained rollout, in order; masked ones included."""


def needs_teacher(method: Method, config: CaopdConfig) -> bool:
    """Whether any of the method's loss terms reads a teacher."""
    return any(term.needs_teacher for term in method.loss_terms(config))
