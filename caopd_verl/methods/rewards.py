"""Reinforcement learning on rewards of single responses: one class, one reward function a method.

The advantage of a rollout within its group and the clipped policy loss are the framework's own
functions. Rollouts, prompts, verifier and the rule for truncated responses are those of every
other method, so that the methods can be compared. No teacher is built.

* `grpo`: reward 1 for a correct response, else 0. Nothing is asked of the confidence, which is how
  models get overconfident: a wrong answer costs the same at any stated confidence.

Source: GRPO, arXiv 2402.03300, section 4.1.

    python -m caopd_verl.main +recipe=grpo +scale=cpu_tiny
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from caopd_verl.config import (
    CaopdConfig,
    ConfidenceLoss,
    TrainedRollouts,
    Truncated,
    Unsolved,
    require,
)
from caopd_verl.core.targets import Target
from caopd_verl.losses.terms import LossTerm, PolicyGradient
from caopd_verl.methods.method import RolloutPlan, Services
from caopd_verl.methods.responses import as_sampled, ends_its_turn
from caopd_verl.types import Rollout, RolloutGroup, Trajectory

Reward = Callable[[Rollout], float]


def correctness(rollout: Rollout) -> float:
    """1 for a correct response, else 0."""
    return float(rollout.verdict.correct)


@dataclass(frozen=True)
class PolicyGradientMethod:
    """A method that is its reward function.

    Args:
        reward: of one rollout, as it was sampled.
    """

    reward: Reward

    def plan(self, config: CaopdConfig, rollouts: int) -> RolloutPlan:
        """K rollouts, all trained."""
        return RolloutPlan(rollouts, rollouts)

    def check(self, config: CaopdConfig, rollouts: int) -> None:
        """Raises `ConfigError` for what has no meaning, or no effect, without a revision."""
        unused = "the rewards train no confidence towards a target"
        for key, value, allowed in (
            ("unsolved", config.unsolved, (Unsolved.mask,)),
            ("confidence_loss", config.confidence_loss, (ConfidenceLoss.teacher,)),
            ("trained_rollouts", config.trained_rollouts, (None, TrainedRollouts.all)),
        ):
            expected = f"{allowed[0] or 'null'}: {unused}"
            require(value in allowed, f"caopd.{key}", str(value), expected)
        require(
            rollouts >= 2,
            "actor_rollout_ref.rollout.n",
            rollouts,
            "K of at least 2: an advantage is the reward against that of the prompt's others",
        )

    def loss_terms(self, config: CaopdConfig) -> tuple[LossTerm, ...]:
        """The policy gradient on every token."""
        return (PolicyGradient(tis_clip=config.loss.tis_clip),)

    def trajectories(
        self, group: RolloutGroup, target: Target, services: Services
    ) -> list[Trajectory]:
        """One trajectory for each rollout, as sampled, each token with the rollout's advantage."""
        rewards = [self.reward(rollout) for rollout in group.rollouts]
        # Truncated rollouts count in the group's mean: the deployed model is cut likewise.
        advantages = services.group_advantages(rewards)
        made = []
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            trajectory = as_sampled(group, rollout, services)
            shared = (advantage,) * len(trajectory.token_ids)
            trajectory = replace(trajectory, advantages=shared)
            cut = not ends_its_turn(rollout, services)
            if cut and services.config.truncated == Truncated.mask:
                trajectory = trajectory.masked("truncated")
            made.append(trajectory)
        return made
