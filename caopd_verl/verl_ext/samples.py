"""A few trajectories of a step, written for people to look at: what was sampled, what is trained.

One JSON line a trajectory in `samples/step_000010.jsonl` of the run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caopd_verl.core.context import teacher_messages
from caopd_verl.core.tokens import Tokenizer, decode
from caopd_verl.pipeline import UpdateRow
from caopd_verl.types import Rollout, RolloutGroup


def sample_rows(
    groups: Sequence[RolloutGroup],
    rows: Sequence[UpdateRow],
    *,
    n: int,
    step: int,
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    """`n` trajectories spread over the step: its first rows, one a group, then the next of each.

    Args:
        groups: of the step.
        rows: of the update, in the order of the groups.
        n: how many.
        step: number of the step.
        tokenizer: decodes the revised responses.
    """
    by_uid: dict[str, list[UpdateRow]] = {}
    for row in rows:
        by_uid.setdefault(row.trajectory.uid, []).append(row)
    most = max((len(own) for own in by_uid.values()), default=0)
    chosen: list[dict[str, Any]] = []
    # Group by group, so that a few samples show several questions.
    for place in range(most):
        for group in groups:
            own = by_uid.get(group.uid, [])
            if place < len(own) and len(chosen) < n:
                rollout = group.rollouts[place]
                chosen.append(_sample(group, rollout, own[place], step, tokenizer))
    return chosen


def _sample(
    group: RolloutGroup, rollout: Rollout, row: UpdateRow, step: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    trajectory = row.trajectory
    prompt = trajectory.teacher_prompt
    targets = [span.target for span in trajectory.spans if span.target is not None]
    return {
        "step": step,
        "uid": group.uid,
        "id": group.example.id,
        "prompt": group.example.messages[-1]["content"],
        "gold": group.example.answer,
        "response": rollout.text,
        "correct": rollout.verdict.correct,
        "revised": decode(tokenizer, trajectory.token_ids),
        "target": targets[0] if targets else None,
        "status": trajectory.status,
        "trained_tokens": trajectory.n_trained,
        "advantage": trajectory.advantages[0] if trajectory.advantages else None,
        "teacher_prompt": None if prompt is None else teacher_messages(prompt)[-1]["content"],
    }


def write_samples(samples: Sequence[dict[str, Any]], path: Path) -> None:
    """JSONL, one trajectory a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    path.write_text("".join(lines), encoding="utf-8")
