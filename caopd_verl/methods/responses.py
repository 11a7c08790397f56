"""A rollout as a trajectory: as it was sampled, or with its confidence revised.

Which tokens are trained, and under which teacher, is the methods' business; here every token has
weight 1 and there is no teacher yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from caopd_verl.config import CaopdConfig
from caopd_verl.core.revise import Revision, revise_response
from caopd_verl.errors import RevisionError
from caopd_verl.methods.method import Services
from caopd_verl.types import (
    CONFIDENCE_ROLES,
    ConfidenceSpan,
    Role,
    Rollout,
    RolloutGroup,
    Trajectory,
)

# Room for a confidence line beyond the response's limit, where a revision is made only to see
# which tokens it would replace.
TRIAL_ROOM = 64


def ends_its_turn(rollout: Rollout, services: Services) -> bool:
    """Whether the response came to its end: neither cut at the limit nor aborted."""
    stops = services.stop_ids
    return not rollout.truncated and any(token in stops for token in rollout.token_ids)


def masked(group: RolloutGroup, rollout: Rollout, services: Services, why: str) -> Trajectory:
    """The response as it was sampled, nothing of it trained, and the reason."""
    unmarked = _trajectory(
        group,
        rollout,
        rollout.token_ids,
        n_sampled=len(rollout.token_ids),
        roles=(Role.REASONING,) * len(rollout.token_ids),
        target=None,
        status=why,
        config=services.config,
    )
    return unmarked.masked(why)


def as_sampled(group: RolloutGroup, rollout: Rollout, services: Services) -> Trajectory:
    """The response as it was sampled; its stated confidence is marked, for the log."""
    roles = _stated_roles(rollout, services)
    return _trajectory(
        group,
        rollout,
        rollout.token_ids,
        n_sampled=len(rollout.token_ids),
        roles=roles,
        target=None,
        status="as_sampled",
        config=services.config,
    )


def with_confidence(
    group: RolloutGroup, rollout: Rollout, value: float, services: Services
) -> Trajectory:
    """The response, stating `value` instead of its own confidence.

    Raises:
        RevisionError: answer and confidence do not fit into the response's limit.
    """
    revision = revise_response(
        rollout.token_ids,
        value,
        tokenizer=services.tokenizer,
        eot_id=services.eot_id,
        stop_ids=services.stop_ids,
        max_response_tokens=services.max_response_tokens,
    )
    return _trajectory(
        group,
        rollout,
        revision.token_ids,
        n_sampled=revision.n_kept,
        roles=_revised_roles(revision),
        target=value,
        status=revision.status,
        config=services.config,
    )


def _trajectory(
    group: RolloutGroup,
    rollout: Rollout,
    token_ids: tuple[int, ...],
    *,
    n_sampled: int,
    roles: tuple[Role, ...],
    target: float | None,
    status: str,
    config: CaopdConfig,
) -> Trajectory:
    n_tokens = len(token_ids)
    reasoning, confidence = config.loss.alpha, config.confidence_alpha
    return Trajectory(
        uid=group.uid,
        prompt_ids=group.prompt_ids,
        token_ids=token_ids,
        n_sampled=n_sampled,
        sampler_log_probs=rollout.log_probs,
        roles=roles,
        weights=(1.0,) * n_tokens,
        alphas=tuple(confidence if role in CONFIDENCE_ROLES else reasoning for role in roles),
        advantages=(0.0,) * n_tokens,
        spans=confidence_spans(roles, target),
        status=str(status),
    )


def confidence_spans(roles: Sequence[Role], target: float | None) -> tuple[ConfidenceSpan, ...]:
    """The runs of confidence tokens, each asked to say `target`."""
    spans: list[ConfidenceSpan] = []
    start: int | None = None
    # One more token, so that a span at the end of a truncated response is closed too.
    for position, role in enumerate([*roles, Role.END_OF_TURN]):
        inside = role in CONFIDENCE_ROLES
        if inside and start is None:
            start = position
        if not inside and start is not None:
            spans.append(ConfidenceSpan(start, position, target))
            start = None
    return tuple(spans)


def _revised_roles(revision: Revision) -> tuple[Role, ...]:
    roles: list[Role] = []
    masks = zip(revision.confidence_mask, revision.value_mask, revision.eot_mask, strict=True)
    for confidence, value, end in masks:
        if value:
            roles.append(Role.CONFIDENCE_VALUE)
        elif confidence:
            roles.append(Role.CONFIDENCE_LABEL)
        elif end:
            roles.append(Role.END_OF_TURN)
        else:
            roles.append(Role.REASONING)
    return tuple(roles)


def _stated_roles(rollout: Rollout, services: Services) -> tuple[Role, ...]:
    """Roles of a response as sampled: its confidence is what a revision would replace.

    The number is not told from its label: nothing is asked of it here.
    """
    n_tokens = len(rollout.token_ids)
    roles = [Role.REASONING] * n_tokens
    # The sampler stops at other ids than the chat template's too.
    if n_tokens and rollout.token_ids[-1] in services.stop_ids:
        roles[-1] = Role.END_OF_TURN
    limit = max(services.max_response_tokens, n_tokens)
    # A revision knows which tokens state the confidence; any value does for finding them.
    try:
        revision = revise_response(
            rollout.token_ids,
            0.0,
            tokenizer=services.tokenizer,
            eot_id=services.eot_id,
            stop_ids=services.stop_ids,
            max_response_tokens=limit + TRIAL_ROOM,
        )
    except RevisionError:
        return tuple(roles)
    # Otherwise the response states none, or shares a token with the answer.
    if revision.status == "replaced":
        for position in range(revision.n_kept, n_tokens - 1):
            roles[position] = Role.CONFIDENCE_LABEL
    return tuple(roles)
