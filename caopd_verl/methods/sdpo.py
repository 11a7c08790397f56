"""SDPO with a verified sibling as demonstration (arXiv 2604.16830, section 3; the backbone without calibration).

The response is trained on as sampled, and the demonstration keeps whatever confidence it had stated: the teacher sees a
solution, is sure, and the student inherits certainty. Rows without a demonstration of another rollout are masked.

    python -m caopd_verl.main +recipe=sdpo +scale=cpu_tiny
"""

from __future__ import annotations

from functools import partial

from caopd_verl.core.context import build_sdpo_messages, choose_demonstrations, strip_thinking
from caopd_verl.core.revise import revise_response
from caopd_verl.core.target import Target
from caopd_verl.errors import RevisionError
from caopd_verl.methods.method import Mask, Setting, TeacherContext, Trajectory, masked
from caopd_verl.types import Rollout, RolloutGroup


def sdpo(group: RolloutGroup, target: Target, setting: Setting) -> list[Trajectory]:
    """One trajectory a rollout; `target` is only logged by the caller."""
    demos = choose_demonstrations([rollout.verdict.correct for rollout in group.rollouts])
    return [
        _trajectory(rollout, None if demo is None else group.rollouts[demo], group, setting)
        for rollout, demo in zip(group.rollouts, demos, strict=True)
    ]


def _trajectory(
    rollout: Rollout, sibling: Rollout | None, group: RolloutGroup, setting: Setting
) -> Trajectory:
    if sibling is None:
        return masked(
            rollout.token_ids, "no_demonstration" if rollout.verdict.correct else "unsolved"
        )
    if rollout.truncated and setting.config.truncated == "mask":
        return masked(rollout.token_ids, "truncated")
    n = len(rollout.token_ids)
    context = TeacherContext(
        partial(build_sdpo_messages, group.example.messages), strip_thinking(sibling.text)
    )
    return Trajectory(
        token_ids=rollout.token_ids,
        trained_mask=(True,) * n,
        confidence_mask=stated_mask(rollout, setting),
        value_mask=(False,) * n,
        n_kept=n,
        context=context,
        status="as_sampled",
    )


def stated_mask(rollout: Rollout, setting: Setting) -> Mask:
    """Which sampled tokens state the confidence (for separate logging): those that a revision would replace."""
    n = len(rollout.token_ids)
    try:
        revision = revise_response(
            rollout.token_ids,
            0.0,
            tokenizer=setting.tokenizer,
            eot_id=setting.eot_id,
            stop_ids=setting.stop_ids,
            max_response_tokens=max(setting.max_response_tokens, n) + 64,
        )
    except RevisionError:
        return (False,) * n
    if revision.status != "replaced":
        return (False,) * n
    return tuple(revision.n_kept <= i < n - 1 for i in range(n))
