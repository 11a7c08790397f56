"""From verified groups to the trajectories of an update. Pure: no device, no Ray, no verl.

    groups -> targets -> trajectories (the method) -> teacher prompts as ids -> token weights

`verl_ext.trainer` orders these steps and `verl_ext.codec` turns the result into tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caopd_verl.config import CaopdConfig, EmptyBatch, NormalizeBy, Overlong
from caopd_verl.config import TargetRule as TargetRuleName
from caopd_verl.core.context import encode_teacher_prompt
from caopd_verl.core.targets import RunningEstimate, SuccessRate, Target, TargetRule
from caopd_verl.core.tokens import Tokenizer
from caopd_verl.errors import TeacherContextError
from caopd_verl.losses.averaging import step_weights
from caopd_verl.methods.method import Method, RolloutPlan, Services
from caopd_verl.types import RolloutGroup, TeacherPrompt, Trajectory

TEACHER_OVERLONG = "teacher_overlong"


@dataclass(frozen=True)
class UpdateRow:
    """A trajectory, and its teacher's prompt as ids (None: the row has no teacher)."""

    trajectory: Trajectory
    teacher_prompt_ids: list[int] | None


def target_rule(config: CaopdConfig) -> TargetRule:
    """The rule that the config names."""
    prior = config.target.shrinkage
    shrinkage = None if prior is None else (prior[0], prior[1])
    success_rate = SuccessRate(config.target.leave_one_out, shrinkage)
    if config.target.rule == TargetRuleName.running:
        return RunningEstimate(success_rate, config.target.momentum)
    return success_rate


def targets_of(groups: Sequence[RolloutGroup], plan: RolloutPlan, rule: TargetRule) -> list[Target]:
    """The target of each group, from the verdicts of its judged rollouts as they were sampled."""
    targets = []
    for group in groups:
        # By the question's id, which is the same in every epoch; the group's uid is not.
        correct = [rollout.verdict.correct for rollout in plan.judged(group)]
        targets.append(rule.target(group.example.id, correct))
    return targets


def trajectories_of(
    groups: Sequence[RolloutGroup],
    targets: Sequence[Target],
    method: Method,
    services: Services,
) -> list[Trajectory]:
    """The trajectories of all groups, in order."""
    trajectories: list[Trajectory] = []
    for group, target in zip(groups, targets, strict=True):
        trajectories.extend(method.trajectories(group, target, services))
    return trajectories


def update_rows(
    trajectories: Sequence[Trajectory],
    *,
    tokenizer: Tokenizer,
    config: CaopdConfig,
    template_kwargs: Mapping[str, Any],
) -> list[UpdateRow]:
    """The trajectories with their teachers' prompts encoded; equal prompts are encoded once.

    Args:
        trajectories: of one step.
        tokenizer: the student's, which is the teacher's too.
        config: `caopd.context` says how long a prompt may be, and what happens beyond.
        template_kwargs: arguments of the chat template.

    Raises:
        TeacherContextError: a prompt is too long under `overlong: error`.
    """
    # All but one or two rows of a group share their demonstration, and templates are slow.
    encoded: dict[str, list[int] | None] = {}
    rows = []
    for trajectory in trajectories:
        prompt = trajectory.teacher_prompt
        if prompt is None:
            rows.append(UpdateRow(trajectory, None))
            continue
        if prompt.key not in encoded:
            encoded[prompt.key] = _encode(prompt, tokenizer, config, template_kwargs)
        ids = encoded[prompt.key]
        if ids is None:
            trajectory = trajectory.masked(TEACHER_OVERLONG)
        rows.append(UpdateRow(trajectory, ids))
    return rows


def _encode(
    prompt: TeacherPrompt,
    tokenizer: Tokenizer,
    config: CaopdConfig,
    template_kwargs: Mapping[str, Any],
) -> list[int] | None:
    """The prompt's ids; None where not even the demonstration's last two lines fit."""
    shorten = config.context.overlong == Overlong.shorten_demo
    try:
        return encode_teacher_prompt(
            prompt,
            tokenizer=tokenizer,
            max_tokens=config.context.max_tokens,
            shorten=shorten,
            template_kwargs=template_kwargs,
        )
    except TeacherContextError:
        if not shorten:
            raise
        return None


def token_weights(trajectories: Sequence[Trajectory], config: CaopdConfig) -> list[Tensor]:
    """Each trajectory's token weights in the step's loss: fp32 [R] each, with a sum of 1 in all.

    Raises:
        TeacherContextError: nothing is trained.
    """
    longest = max(len(trajectory.token_ids) for trajectory in trajectories)
    weights_BR = torch.zeros(len(trajectories), longest)
    for row, trajectory in enumerate(trajectories):
        own = torch.tensor(trajectory.weights, dtype=torch.float32)
        weights_BR[row, : len(own)] = own
    by_tokens_B = torch.tensor([t.counts_as == "tokens" for t in trajectories])
    step_BR = step_weights(
        weights_BR,
        by_tokens_B,
        average=config.loss.average,
        include_masked_rows=config.loss.normalize_by == NormalizeBy.all,
    )
    lengths = [len(trajectory.token_ids) for trajectory in trajectories]
    return [step_R[:length] for step_R, length in zip(step_BR, lengths, strict=True)]


def report_empty_step(step: int, config: CaopdConfig) -> None:
    """A step that trains on nothing never passes in silence: it is an error, or it is said.

    Raises:
        TeacherContextError: under `caopd.empty_batch: error`.
    """
    message = f"step {step}: no group has a teacher, there is nothing to train on"
    if config.empty_batch == EmptyBatch.error:
        raise TeacherContextError(
            message,
            where="caopd.empty_batch",
            expected="at least one solved group, or caopd.unsolved=confidence_only",
            fix="use easier questions, more prompts or rollouts a step; "
            "caopd.empty_batch=skip goes on and counts it",
        )
    print(f"WARNING: {message}; skipped", flush=True)
