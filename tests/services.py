"""The one fake of what a method may ask (`methods.method.Services`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from caopd_verl.config import CaopdConfig
from caopd_verl.types import Example


@dataclass
class FakeServices:
    """A real tokenizer, and the rest in a few lines."""

    config: CaopdConfig
    tokenizer: Any
    eot_id: int
    max_response_tokens: int = 48
    other_stop_ids: frozenset[int] = field(default_factory=frozenset)

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.other_stop_ids | {self.eot_id}

    def gold_demonstration(self, example: Example) -> str:
        return example.demonstration or f"{example.answer}"

    def group_advantages(self, rewards: Sequence[float]) -> list[float]:
        """GRPO's, as its paper defines them."""
        if len(rewards) == 1:
            return list(rewards)
        spread = stdev(rewards)
        return [(reward - mean(rewards)) / (spread + 1e-6) for reward in rewards]
