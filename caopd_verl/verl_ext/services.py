"""What a method may ask of the framework (`methods.method.Services`), answered by verl and vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from caopd_verl.config import CaopdConfig
from caopd_verl.core.tokens import Tokenizer
from caopd_verl.errors import ConfigError
from caopd_verl.types import Example
from caopd_verl.verifiers import get_verifier


@dataclass(frozen=True)
class VerlServices:
    """The services of a training run.

    Args:
        config: the `caopd` block.
        algorithm: verl's `algorithm` block, which names the advantage estimator.
        tokenizer: the student's.
        eot_id: the id that ends the assistant's turn.
        stop_ids: all ids at which sampling stops.
        max_response_tokens: limit of a response.
    """

    config: CaopdConfig
    algorithm: DictConfig
    tokenizer: Tokenizer
    eot_id: int
    stop_ids: frozenset[int]
    max_response_tokens: int

    def gold_demonstration(self, example: Example) -> str:
        """The row's own demonstration, else its gold answer as its verifier reads it."""
        if example.demonstration is not None:
            return example.demonstration
        return get_verifier(example.verifier, where=example.where).demonstration(example.answer)

    def group_advantages(self, rewards: Sequence[float]) -> list[float]:
        """The advantage of each rollout by verl's own estimator (`algorithm.adv_estimator`).

        Args:
            rewards: one for each rollout of one prompt.

        Raises:
            ConfigError: the estimator needs more than the rewards of a group.
        """
        estimator = get_adv_estimator_fn(self.algorithm.adv_estimator)
        rewards_K1 = torch.tensor(rewards, dtype=torch.float32).unsqueeze(-1)
        # all of one group: verl's estimators group rows by this index
        one_prompt = np.zeros(len(rewards), dtype=np.int64)
        options = {}
        # verl's trainer hands this switch to GRPO's estimator alone
        if self.algorithm.adv_estimator == "grpo":
            options["norm_adv_by_std_in_grpo"] = self.algorithm.norm_adv_by_std_in_grpo
        try:
            advantages_K1, _ = estimator(
                token_level_rewards=rewards_K1,
                response_mask=torch.ones_like(rewards_K1),
                index=one_prompt,
                config=self.algorithm,
                **options,
            )
        except TypeError as error:
            raise ConfigError(
                f"the estimator {self.algorithm.adv_estimator!r} needs more than a group's rewards",
                where="algorithm.adv_estimator",
                expected="an estimator of outcome rewards by group: grpo, rloo, grpo_passk, ...",
            ) from error
        return advantages_K1.squeeze(-1).tolist()
