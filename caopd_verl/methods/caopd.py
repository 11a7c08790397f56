"""CaOPD on the SDPO backbone (arXiv 2604.16830, section 4): p-hat in the completion and in the teacher's context.

For rollout k of a group with target p (Eq. 6): the completion states p instead of its own confidence, the teacher sees
a verified sibling that states the same p, and the distillation is unchanged (Eq. 7).

Groups without a success have no demonstration. `caopd.unsolved=mask` leaves them out, as SDPO does, which biases the
targets upwards: the smallest p that is ever trained is 1/K. `confidence_only` (a deviation) trains just their
confidence tokens towards 0.00; the teacher's context is then the rollout itself with its confidence overwritten.

    python -m caopd_verl.main +recipe=sdpo_caopd +scale=cpu_tiny
"""

from __future__ import annotations

from functools import partial

from caopd_verl.core.context import (
    build_attempt_messages,
    build_sdpo_messages,
    choose_demonstrations,
    strip_thinking,
)
from caopd_verl.core.revise import revise_response, revise_text
from caopd_verl.core.target import Target
from caopd_verl.errors import RevisionError
from caopd_verl.methods.method import Setting, TeacherContext, Trajectory, masked
from caopd_verl.types import Rollout, RolloutGroup


def caopd(group: RolloutGroup, target: Target, setting: Setting) -> list[Trajectory]:
    """One trajectory a rollout, in order."""
    demos = choose_demonstrations([rollout.verdict.correct for rollout in group.rollouts])
    return [
        _trajectory(
            rollout, None if demo is None else group.rollouts[demo], value, group, target, setting
        )
        for rollout, demo, value in zip(group.rollouts, demos, target.per_rollout, strict=True)
    ]


def _trajectory(
    rollout: Rollout,
    sibling: Rollout | None,
    value: float,
    group: RolloutGroup,
    target: Target,
    setting: Setting,
) -> Trajectory:
    if rollout.truncated and setting.config.truncated == "mask":
        return masked(rollout.token_ids, "truncated")
    unsolved = not target.solved
    if sibling is None and not (unsolved and setting.config.unsolved == "confidence_only"):
        return masked(rollout.token_ids, "unsolved" if unsolved else "no_demonstration")
    try:
        revision = revise_response(
            rollout.token_ids,
            value,
            tokenizer=setting.tokenizer,
            eot_id=setting.eot_id,
            stop_ids=setting.stop_ids,
            max_response_tokens=setting.max_response_tokens,
        )
    except RevisionError:
        return masked(
            rollout.token_ids, "unrevisable"
        )  # answer and confidence do not fit; counted in the log
    if revision.truncated and setting.config.truncated == "mask":
        return masked(
            rollout.token_ids, "truncated"
        )  # it ended without an end of turn (an aborted request, say)
    messages = group.example.messages
    if sibling is not None:
        context = TeacherContext(partial(build_sdpo_messages, messages), _demo(sibling, value))
        trained = (True,) * len(revision.token_ids)
    else:
        header = setting.config.context.attempt_template
        context = TeacherContext(
            partial(build_attempt_messages, messages, header=header), _demo(rollout, value)
        )
        trained = revision.confidence_mask
    return Trajectory(
        token_ids=revision.token_ids,
        trained_mask=trained,
        confidence_mask=revision.confidence_mask,
        value_mask=revision.value_mask,
        n_kept=revision.n_kept,
        context=context,
        status=revision.status,
        confidence_only=sibling is None,
    )


def _demo(rollout: Rollout, value: float) -> str:
    """The text that the teacher is shown, stating the trajectory's own target (T17)."""
    return revise_text(strip_thinking(rollout.text), value)
