"""The values that travel between the layers. Plain frozen dataclasses, no torch, no verl.

`Example` -> `RolloutGroup` of verified `Rollout`s -> one `Trajectory` for each sequence of the
update.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

Messages = list[dict[str, str]]  # [{"role": "system" | "user" | "assistant", "content": str}, ...]

TeacherForm = Literal["solution", "example", "attempt"]
"""The words around the demonstration in the teacher's prompt: `core.context` has them."""

CountsAs = Literal["row", "tokens"]
"""How a trajectory enters the average over the step: as one row, or by its tokens alone."""


@dataclass(frozen=True)
class Example:
    """One question of a task, as every loader returns it.

    Attributes:
        id: unique in its file.
        messages: the prompt, confidence instruction included.
        answer: the gold answer, in the form that the verifier takes.
        verifier: name of the verifier, see `verifiers.get_verifier`.
        source: the data set that it comes from; metrics are grouped by it.
        where: `file:line` of the row (or `generated:seed=3:index=17`); error messages name it.
        meta: what else its loader keeps of the row, as JSON values.
        demonstration: a worked solution in the form of a response; None where the row gives none.
    """

    id: str
    messages: Messages
    answer: str
    verifier: str
    source: str
    where: str
    meta: dict[str, Any] = field(default_factory=dict)
    demonstration: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    `reason` is one of `correct`, `wrong`, `no_answer`, `malformed`.
    """

    correct: bool
    reason: str
    answer: str | None = None  # as extracted from the response; None where there was none


@dataclass(frozen=True)
class Rollout:
    """One sampled response of the student, as sampled (before any revision)."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # of the sampled tokens, under the rollout engine; nats
    text: str  # decoded without special tokens
    verdict: Verdict
    truncated: bool  # True where sampling stopped at the response limit, without an end of turn


@dataclass(frozen=True)
class RolloutGroup:
    """The rollouts of one prompt in one step.

    `uid` identifies the prompt's occurrence, not its text: the same question twice in a batch makes
    two groups, each with a success rate of its own.
    """

    uid: str
    example: Example
    prompt_ids: tuple[int, ...]  # the prompt as the student saw it, generation header included
    rollouts: tuple[Rollout, ...]


class Role(IntEnum):
    """What a token of a response is there for. Loss terms choose their tokens by it."""

    REASONING = 0  # everything that is none of the others, the answer included
    CONFIDENCE_LABEL = 1  # the words around the number, and the newline encoded with them
    CONFIDENCE_VALUE = 2  # the number
    END_OF_TURN = 3


CONFIDENCE_ROLES = frozenset({Role.CONFIDENCE_LABEL, Role.CONFIDENCE_VALUE})
ALL_ROLES = frozenset(Role)


@dataclass(frozen=True)
class TeacherPrompt:
    """What the teacher is conditioned on, as data: it can be compared, logged, replayed and shared.

    Attributes:
        messages: the student's own prompt.
        demonstration: the privileged text that stands behind the question.
        form: the words around it.
    """

    messages: Messages
    demonstration: str
    form: TeacherForm

    @property
    def key(self) -> str:
        """Equal for equal prompts, so that one that several rows share is encoded once."""
        return json.dumps([self.form, self.demonstration, self.messages])


@dataclass(frozen=True)
class ConfidenceSpan:
    """One stated confidence of a response: tokens `start` to `stop`, and what it ought to say."""

    start: int
    stop: int
    target: float | None  # in [0, 1]; None where nothing is asked of it


@dataclass(frozen=True)
class Trajectory:
    """One sequence of the update. All tuples of tokens are as long as `token_ids`.

    Attributes:
        uid: of the group.
        prompt_ids: the student's prompt, generation header included.
        token_ids: the response, end-of-turn included; revised where the method revises.
        n_sampled: so many ids at the beginning are those sampled, in their sampled context.
        sampler_log_probs: of the sampled ids, in nats; they hold for the first `n_sampled` alone.
        roles: what each token is there for.
        weights: of each token in the loss; 0 where it is not trained.
        alphas: the divergence's direction at each token: 1 reverse KL, 0 forward KL.
        advantages: of each token, for policy gradients; 0 where the method has none.
        spans: the confidences that the response states.
        teacher_prompt: what the teacher is conditioned on; None where there is no teacher.
        counts_as: one row of the average, or only its tokens (see `losses.averaging`).
        status: how the row came about, for the logged counts (`replaced`, `unsolved`, ...).
    """

    uid: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    n_sampled: int
    sampler_log_probs: tuple[float, ...]
    roles: tuple[Role, ...]
    weights: tuple[float, ...]
    alphas: tuple[float, ...]
    advantages: tuple[float, ...]
    spans: tuple[ConfidenceSpan, ...] = ()
    teacher_prompt: TeacherPrompt | None = None
    counts_as: CountsAs = "row"
    status: str = "as_sampled"

    def __post_init__(self) -> None:
        n_tokens = len(self.token_ids)
        for name in ("roles", "weights", "alphas", "advantages"):
            found = len(getattr(self, name))
            if found != n_tokens:
                raise ValueError(f"{found} {name} for {n_tokens} tokens")
        if not 0 <= self.n_sampled <= n_tokens:
            raise ValueError(f"n_sampled is {self.n_sampled} of {n_tokens} tokens")

    @property
    def n_trained(self) -> int:
        """How many tokens carry loss."""
        return sum(weight != 0.0 for weight in self.weights)

    def masked(self, status: str) -> Trajectory:
        """The same sequence, of which nothing is trained, and why."""
        nothing = (0.0,) * len(self.token_ids)
        return replace(self, weights=nothing, teacher_prompt=None, status=status)
