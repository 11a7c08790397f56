"""How rollouts are sampled, from verl's config: arguments of vLLM, and seeds."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig

Purpose = Literal["train", "val"]
SEED_STREAMS: dict[Purpose, int] = {"train": 0, "val": 1}
SEED_LIMIT = 2**31  # vLLM's seeds are 32-bit and signed


def training_sampling(config: DictConfig) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams for rollouts that are trained on."""
    rollout = config.actor_rollout_ref.rollout
    return {
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "max_tokens": config.data.max_response_length,
        "logprobs": 0,  # of the sampled token only
    }


def validation_sampling(config: DictConfig) -> dict[str, Any]:
    """The same for validation; greedy where `val_kwargs.do_sample` is false."""
    validation = config.actor_rollout_ref.rollout.val_kwargs
    return {
        "temperature": validation.temperature if validation.do_sample else 0.0,
        "top_p": validation.top_p,
        "top_k": validation.top_k,
        "max_tokens": config.data.max_response_length,
    }


def step_seed(base: int, purpose: Purpose, step: int) -> int:
    """A seed for one step, in a stream of its own: validation never draws training's samples."""
    sequence = np.random.SeedSequence([base, SEED_STREAMS[purpose], step])
    return int(sequence.generate_state(1)[0]) % SEED_LIMIT
