"""verl's vLLM server, answering for whole groups: one call with many prompts and n samples of each.

Stock verl sends one Ray call for each rollout. In the CPU demo those calls cost more than the
sampling. The engine, its settings and the weight sync are verl's own.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from caopd_verl.verl_ext.compat import run_id


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        token_ids: of the response, its stop token included.
        log_probs: of these tokens, in nats; empty unless asked for.
        truncated: whether it hit the token limit.
    """

    token_ids: list[int]
    log_probs: list[float]
    truncated: bool


class GroupServer(vLLMHttpServer):
    """vLLM server actor with `generate_groups` and `next_token_log_probs`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # verl names the weight-sync socket after Ray's job id, which is the same in every local
        # cluster: two runs on one machine would take each other's. The engine's process inherits
        # this name; CaopdWorker gives it to the sender.
        os.environ["VERL_RAY_JOB_ID"] = run_id()

    async def generate_groups(
        self, prompts: list[list[int]], sampling: dict[str, Any], n: int, seeds: list[int] | None
    ) -> list[list[Sample]]:
        """n samples for each prompt.

        Args:
            prompts: token ids, generation header included.
            sampling: arguments of vLLM's `SamplingParams`: temperature, top_p, max_tokens, ...
            n: samples of each prompt.
            seeds: one for each prompt, or None for the engine's own randomness.

        Returns:
            for each prompt its n samples, in prompt order.
        """

        async def group_of(prompt_ids: list[int], seed: int | None) -> list[Sample]:
            params = SamplingParams(
                n=n,
                seed=seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
                detokenize=False,
                **sampling,
            )
            final = await self._final(prompt_ids, params)
            in_order = sorted(final.outputs, key=lambda output: output.index)
            return [_sample(output) for output in in_order]

        each_seed = [None] * len(prompts) if seeds is None else seeds
        groups = map(group_of, prompts, each_seed)
        return list(await asyncio.gather(*groups))

    async def next_token_log_probs(
        self, prefixes: list[list[int]], token_ids: list[int]
    ) -> list[dict[int, float]]:
        """Log-probabilities of `token_ids` as the token after each prefix.

        One-token requests: with prefix caching they cost one decoding step each.

        Args:
            prefixes: token ids, generation header included.
            token_ids: the tokens asked about.

        Returns:
            for each prefix the log-probability (nats, temperature 1) by token id.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=1.0,
            logprob_token_ids=list(token_ids),
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )
        requests = [self._final(prefix, params) for prefix in prefixes]
        finals = await asyncio.gather(*requests)
        wanted = set(token_ids)
        return [_log_probs_of(wanted, final.outputs[0].logprobs[0]) for final in finals]

    async def _final(self, prompt_ids: list[int], params: SamplingParams) -> Any:
        """vLLM's `RequestOutput` of a finished request."""
        prompt = TokensPrompt(prompt_token_ids=prompt_ids)
        outputs = self.engine.generate(
            prompt=prompt, sampling_params=params, request_id=uuid4().hex
        )
        final = None
        async for output in outputs:
            final = output
        return final


def _log_probs_of(wanted: set[int], step: dict[int, Any]) -> dict[int, float]:
    # vLLM adds the token that was sampled, whether it was asked about or not
    return {token: entry.logprob for token, entry in step.items() if token in wanted}


def _sample(output: Any) -> Sample:
    ids = list(output.token_ids)
    log_probs: list[float] = []
    if output.logprobs is not None:
        for token, step in zip(ids, output.logprobs, strict=True):
            log_probs.append(step[token].logprob)  # a step may hold other tokens too
    return Sample(ids, log_probs, truncated=output.finish_reason == "length")


class GroupReplica(vLLMReplica):
    """verl's replica with our server class."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(GroupServer)
