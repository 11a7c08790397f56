"""The values that travel between the layers. Plain frozen dataclasses, no torch, no verl."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, str]]  # [{"role": "system" | "user" | "assistant", "content": str}, ...]


@dataclass(frozen=True)
class Example:
    """One question of a task, as every loader returns it.

    `answer` is the gold answer in the form that the verifier named `verifier` takes; `where` is `file:line`
    of the row (or `generated:seed=3:index=17`) and is what error messages name.
    """

    id: str
    messages: Messages
    answer: str
    verifier: str
    source: str
    where: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response. `reason` is one of `correct`, `wrong`, `no_answer`, `malformed`."""

    correct: bool
    reason: str
    answer: str | None = (
        None  # the answer that was extracted from the response, None where there was none
    )


@dataclass(frozen=True)
class Rollout:
    """One sampled response of the student, as sampled (before any revision)."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # of the sampled tokens, under the rollout engine; nats
    text: str  # decoded without special tokens
    verdict: Verdict
    truncated: (
        bool  # True where sampling stopped at the response limit, without an end-of-turn token
    )


@dataclass(frozen=True)
class RolloutGroup:
    """The K rollouts of one prompt in one step; `uid` identifies the prompt's occurrence, not its text (T26)."""

    uid: str
    example: Example
    prompt_ids: tuple[int, ...]  # the prompt as the student saw it, generation header included
    rollouts: tuple[Rollout, ...]
