"""verl's vLLM server, answering for whole groups: one call with many prompts and n samples of each.

Stock verl sends one Ray call per rollout; at the size of the CPU demo those calls cost more than the sampling. The
engine, its settings and the weight sync are verl's own.
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
    """One sampled response: ids, log-probs in nats (empty unless asked for), and whether it hit the token limit."""

    token_ids: list[int]
    log_probs: list[float]
    truncated: bool


class GroupServer(vLLMHttpServer):
    """vLLM server actor with `generate_groups` and `next_token_log_probs`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # verl names the weight-sync socket after Ray's job id, which is the same in every local cluster: two runs on
        # one machine would take each other's. The engine's process inherits this; the sender is named in CaopdWorker.
        os.environ["VERL_RAY_JOB_ID"] = run_id()

    async def generate_groups(
        self, prompts: list[list[int]], sampling: dict[str, Any], n: int, seeds: list[int] | None
    ) -> list[list[Sample]]:
        """n samples for each prompt.

        Args:
            prompts: token ids, generation header included.
            sampling: arguments of vLLM's `SamplingParams` (temperature, top_p, max_tokens, stop_token_ids, ...).
            seeds: one for each prompt, or None for the engine's own randomness.

        Returns:
            for each prompt its n samples, in prompt order.
        """

        async def one(index: int) -> list[Sample]:
            seed = None if seeds is None else seeds[index]
            params = SamplingParams(
                n=n,
                seed=seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
                detokenize=False,
                **sampling,
            )
            final = await self._final(prompts[index], params)
            return [
                _sample(output) for output in sorted(final.outputs, key=lambda output: output.index)
            ]

        return list(await asyncio.gather(*[one(i) for i in range(len(prompts))]))

    async def next_token_log_probs(
        self, prefixes: list[list[int]], token_ids: list[int]
    ) -> list[dict[int, float]]:
        """Log-probabilities (nats, temperature 1) of `token_ids` as the token after each prefix.

        One-token requests: with prefix caching a continuation of a cached prefix costs one decoding step.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=1.0,
            logprob_token_ids=list(token_ids),
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )
        finals = await asyncio.gather(*[self._final(prefix, params) for prefix in prefixes])
        wanted = set(token_ids)
        return [
            {
                token: entry.logprob
                for token, entry in final.outputs[0].logprobs[0].items()
                if token in wanted
            }
            for final in finals
        ]

    async def _final(self, prompt_ids: list[int], params: SamplingParams):
        final = None
        prompt = TokensPrompt(prompt_token_ids=prompt_ids)
        async for output in self.engine.generate(
            prompt=prompt, sampling_params=params, request_id=uuid4().hex
        ):
            final = output
        return final


def _sample(output: Any) -> Sample:
    ids = list(output.token_ids)
    log_probs = (
        []
        if output.logprobs is None
        else [step[ids[i]].logprob for i, step in enumerate(output.logprobs)]
    )
    return Sample(ids, log_probs, truncated=output.finish_reason == "length")


class GroupReplica(vLLMReplica):
    """verl's replica with our server class."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(GroupServer)
