"""On-policy self-distillation, with and without the revision of confidences: one class.

Sources: arXiv 2604.16830, section 3 (SDPO and SDFT), section 4 (CaOPD). The student's
rollout is scored token by token by an EMA teacher whose prompt also holds a solution. Two choices
make the four methods:

* `context`: a verified `sibling` rollout (SDPO), or the `gold` demonstration (SDFT);
* `revise`: with it (CaOPD), the completion and the demonstration state p-hat instead of whatever
  confidence they had stated; without it, the teacher sees a solution, is sure, and the student
  inherits certainty.

What the four decide alike is decided once, in this order, so that their counts can be compared:
a response that did not end its turn, a rollout without a demonstration, a confidence that does not
fit.

    python -m caopd_verl.main +recipe=sdpo_caopd +scale=cpu_tiny
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from caopd_verl.config import (
    CaopdConfig,
    ConfidenceLoss,
    TrainedRollouts,
    Truncated,
    Unsolved,
    require,
)
from caopd_verl.core.context import choose_demonstrations, strip_thinking
from caopd_verl.core.revise import revise_text
from caopd_verl.core.targets import Target
from caopd_verl.errors import RevisionError
from caopd_verl.losses.terms import ConfidenceCrossEntropy, Divergence, LossTerm
from caopd_verl.methods.method import RolloutPlan, Services
from caopd_verl.methods.responses import (
    as_sampled,
    ends_its_turn,
    masked,
    with_confidence,
)
from caopd_verl.types import (
    ALL_ROLES,
    CONFIDENCE_ROLES,
    Role,
    Rollout,
    RolloutGroup,
    TeacherForm,
    TeacherPrompt,
    Trajectory,
)


@dataclass(frozen=True)
class Distillation:
    """One of the four methods.

    Args:
        context: where the teacher's demonstration comes from.
        revise: write p-hat over the stated confidences.
    """

    context: Literal["sibling", "gold"]
    revise: bool

    def plan(self, config: CaopdConfig, rollouts: int) -> RolloutPlan:
        """K rollouts, all trained; with a gold demonstration by default one, and K for p-hat."""
        # Siblings demonstrate for one another, so each of them is judged and can be trained.
        if self.context == "sibling" or config.trained_rollouts == TrainedRollouts.all:
            return RolloutPlan(rollouts, rollouts)
        if not self.revise:
            return RolloutPlan(1, 1)  # nothing asks for a success rate
        # The paper samples the trajectory apart from the K that give p-hat (section 4.1).
        return RolloutPlan(1 + rollouts, 1, judged_from=1)

    def check(self, config: CaopdConfig, rollouts: int) -> None:
        """Raises `ConfigError` for a setting that has no meaning, or no effect, here."""
        if not self.revise:
            require(
                config.confidence_loss == ConfidenceLoss.teacher,
                "caopd.confidence_loss",
                str(config.confidence_loss),
                "teacher: without a revision there is no p-hat to train the number towards",
            )
        if self.context == "gold" or not self.revise:
            require(
                config.unsolved == Unsolved.mask,
                "caopd.unsolved",
                str(config.unsolved),
                "mask: every question has its gold demonstration"
                if self.context == "gold"
                else "mask: plain SDPO has no target to train an unsolved group towards",
                "use a method that revises, or caopd.unsolved=mask",
            )
        if self.context == "gold":
            return
        require(
            config.trained_rollouts in (None, TrainedRollouts.all),
            "caopd.trained_rollouts",
            str(config.trained_rollouts),
            "all, or null: every rollout is judged, and demonstrates for the others",
        )
        require(
            rollouts >= 2 or config.unsolved == Unsolved.confidence_only,
            "actor_rollout_ref.rollout.n",
            rollouts,
            "K of at least 2: a rollout is never its own demonstration, so with K = 1 nothing is "
            "ever trained",
            "raise it, or set caopd.unsolved=confidence_only",
        )

    def loss_terms(self, config: CaopdConfig) -> tuple[LossTerm, ...]:
        """The divergence on every token, or on all but the number, which has its own term."""
        loss = config.loss
        everywhere = Divergence(loss.top_k, is_clip=loss.is_clip, tis_clip=loss.tis_clip)
        if config.confidence_loss == ConfidenceLoss.teacher:
            return (everywhere,)
        cross_entropy = ConfidenceCrossEntropy()
        others = ALL_ROLES - cross_entropy.roles
        return replace(everywhere, roles=others), cross_entropy

    def trajectories(
        self, group: RolloutGroup, target: Target, services: Services
    ) -> list[Trajectory]:
        """One trajectory for each trained rollout."""
        plan = self.plan(services.config, target.k)
        siblings = choose_demonstrations([r.verdict.correct for r in group.rollouts])
        made = []
        for index in range(plan.trained):
            rollout = group.rollouts[index]
            sibling = siblings[index]
            demonstrator = None if sibling is None else group.rollouts[sibling]
            # With leave-one-out each judged rollout has a target of its own.
            judged = index - plan.judged_from
            value = target.per_rollout[judged] if judged >= 0 else target.p_hat
            made.append(self._one(group, rollout, demonstrator, value, target, services))
        return made

    def _one(
        self,
        group: RolloutGroup,
        rollout: Rollout,
        sibling: Rollout | None,
        value: float,
        target: Target,
        services: Services,
    ) -> Trajectory:
        config = services.config
        # Forced to end, it would teach to stop and state p-hat after half an answer.
        if config.truncated == Truncated.mask and not ends_its_turn(rollout, services):
            return masked(group, rollout, services, "truncated")
        solution = self._solution(group, sibling, services)
        confidence_only = (
            solution is None and not target.solved and config.unsolved == Unsolved.confidence_only
        )
        if solution is None and not confidence_only:
            reason = "no_demonstration" if target.solved else "unsolved"
            return masked(group, rollout, services, reason)
        if self.revise:
            try:
                trajectory = with_confidence(group, rollout, value, services)
            except RevisionError:
                # Answer and confidence do not fit into the limit: counted, and left out.
                return masked(group, rollout, services, "unrevisable")
        else:
            trajectory = as_sampled(group, rollout, services)
        if solution is None:
            return self._towards_zero(trajectory, group, rollout, value, config)
        # A rollout's thinking may state confidences of its own, and is long.
        demonstration = strip_thinking(solution)
        if self.revise:
            demonstration = revise_text(demonstration, value)
        form: TeacherForm = "solution" if self.context == "sibling" else "example"
        prompt = TeacherPrompt(group.example.messages, demonstration, form)
        return replace(trajectory, teacher_prompt=prompt)

    def _solution(
        self, group: RolloutGroup, sibling: Rollout | None, services: Services
    ) -> str | None:
        """The text of the demonstration; None where the rollout has none."""
        if self.context == "gold":
            return services.gold_demonstration(group.example)
        return None if sibling is None else sibling.text

    def _towards_zero(
        self,
        trajectory: Trajectory,
        group: RolloutGroup,
        rollout: Rollout,
        value: float,
        config: CaopdConfig,
    ) -> Trajectory:
        """A response of an unsolved group, of which the confidence alone is trained.

        Left out, as SDPO leaves them, unsolved groups bias the targets upwards: the smallest one
        ever trained is 1/K. The teacher is shown the response itself, stating the target, so that
        the number is all there is to learn from it.
        """
        attempt = revise_text(strip_thinking(rollout.text), value)
        form: TeacherForm = config.context.attempt_template.value
        trained = CONFIDENCE_ROLES
        prompt: TeacherPrompt | None = TeacherPrompt(group.example.messages, attempt, form)
        if config.confidence_loss == ConfidenceLoss.cross_entropy:
            trained = frozenset({Role.CONFIDENCE_VALUE})
            prompt = None  # the number has a loss of its own, and nothing else is trained
        weights = tuple(float(role in trained) for role in trajectory.roles)
        return replace(trajectory, weights=weights, teacher_prompt=prompt, counts_as="tokens")
