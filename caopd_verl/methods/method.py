"""What a method decides: which sequence is trained, on which tokens, under which teacher context.

A method is one small file and one row of `methods.METHODS`. It sees a group of verified rollouts and its target, and
returns one `Trajectory` for each rollout; it knows nothing of tensors, engines or verl.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from caopd_verl.config import CaopdConfig
from caopd_verl.core.revise import Tokenizer
from caopd_verl.core.target import Target
from caopd_verl.types import Messages, RolloutGroup

Mask = tuple[bool, ...]


@dataclass(frozen=True)
class TeacherContext:
    """What the teacher is conditioned on: `build(demo_text)` gives its messages (a shorter demo may be tried, T25)."""

    build: Callable[[str], Messages]
    demo_text: str


@dataclass(frozen=True)
class Trajectory:
    """One response to be trained on, and what the teacher sees.

    Attributes:
        token_ids: the response's tokens (revised where the method revises), end-of-turn token included.
        trained_mask: which tokens carry loss; all False where the row is masked.
        confidence_mask: which tokens belong to the confidence segment.
        value_mask: which tokens spell the number in it.
        n_kept: leading tokens that are exactly those sampled; rollout log-probs are valid for them only (T19).
        context: what the teacher is conditioned on; None where there is no teacher for this rollout.
        status: how it came about, for the logged counts (`replaced`, `appended`, `unsolved`, `truncated`, ...).
        confidence_only: True where only the confidence tokens are trained (unsolved groups).
    """

    token_ids: tuple[int, ...]
    trained_mask: Mask
    confidence_mask: Mask
    value_mask: Mask
    n_kept: int
    context: TeacherContext | None
    status: str
    confidence_only: bool = False

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        masks = (self.trained_mask, self.confidence_mask, self.value_mask)
        assert all(len(mask) == n for mask in masks) and 0 <= self.n_kept <= n, (
            "masks and ids must align"
        )


@dataclass(frozen=True)
class Setting:
    """What every method needs besides the group."""

    config: CaopdConfig
    tokenizer: Tokenizer
    eot_id: int
    max_response_tokens: int
    stop_ids: tuple[
        int, ...
    ] = ()  # the generation config's other eos ids: sampling stops there too


Method = Callable[[RolloutGroup, Target, Setting], list[Trajectory]]


def masked(token_ids: tuple[int, ...], status: str) -> Trajectory:
    """A rollout that is not trained on: no teacher, no loss."""
    none = (False,) * len(token_ids)
    return Trajectory(token_ids, none, none, none, len(token_ids), None, status)
