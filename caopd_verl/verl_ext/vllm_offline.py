"""A local checkpoint through vLLM's offline `LLM` class: a whole batch at once, prefixes cached.

The exact readout asks for one-token continuations of prompt and response, whose blocks are still
cached, so each costs one short step; the continuations of all responses of a batch run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caopd_verl.core.tokens import decode, find_eot_id
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.rows.row import Job
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.evaluation.sources.checkpoint import CheckpointBackend, Sampled

# Only whole blocks are cached, and each of the readout's 16 continuations runs the rest of the
# prefix again. vLLM's own size is 16 on GPUs and 128 on CPU, where 16 cut the readout's time to a
# quarter and generation took no longer.
CPU_BLOCK = 16
BATCHES = 32  # so many times `batch_size` at once: vLLM schedules by itself, rows are saved after


class VllmBackend(CheckpointBackend):
    """Generates and reads; the engine starts when the object is made.

    Args:
        model: a folder or a hub name.
        sampling, local: settings; `device` is vLLM's own business.

    Raises:
        ConfigError: the engine can't start on this checkpoint.
        TokenizerError: its tokenizer has no chat template, or can't write the words of P(True).
    """

    def __init__(self, model: str, *, sampling: Sampling, local: Local):
        self.engine = _start(model, sampling, local)
        tokenizer: Any = self.engine.get_tokenizer()
        super().__init__(
            tokenizer,
            sampling=sampling,
            local=local,
            batch_size=local.batch_size * BATCHES,
            max_tokens=self.engine.model_config.max_model_len,
        )
        self.eot_id = find_eot_id(tokenizer)

    def sample(self, prompts: Sequence[list[int]], jobs: Sequence[Job]) -> list[Sampled]:
        """One response for each prompt, all scheduled by vLLM."""
        params = [self._sampling_params(job) for job in jobs]
        samples = []
        for result in self._run(prompts, params):
            output = result.outputs[0]
            ids = list(output.token_ids)
            truncated = output.finish_reason == "length"
            samples.append(Sampled(ids, decode(self.tokenizer, ids), truncated))
        return samples

    def next_token_log_probs(
        self, sequences: list[list[int]], wanted: list[int]
    ) -> list[dict[int, float]]:
        """As `readouts.next_token.NextTokenLogProbs`."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1, temperature=1.0, logprob_token_ids=wanted, detokenize=False
        )
        rows = []
        for result in self._run(sequences, params):
            entries = result.outputs[0].logprobs[0]
            rows.append({token: entry.logprob for token, entry in entries.items()})
        return rows

    def _sampling_params(self, job: Job) -> Any:
        from vllm import SamplingParams

        seed = self.sampling.seed
        return SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_tokens,
            stop_token_ids=[self.eot_id],
            # Samples of one question differ by their number alone, and must not be equal.
            seed=None if seed is None else seed + job.sample,
            detokenize=False,
        )

    def _run(self, sequences: Sequence[list[int]], params: Any) -> list[Any]:
        """vLLM's outputs for sequences of token ids; `params` for each of them, or for all."""
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in sequences]
        return self.engine.generate(prompts, params, use_tqdm=False)


def _start(model: str, sampling: Sampling, local: Local) -> Any:
    from vllm import LLM
    from vllm.platforms import current_platform

    options: dict[str, Any] = {}
    if local.max_model_len is not None:
        options["max_model_len"] = local.max_model_len
    if current_platform.is_cpu():
        options["block_size"] = CPU_BLOCK
    try:
        return LLM(
            model=model,
            dtype=local.dtype,
            seed=sampling.seed or 0,
            enable_prefix_caching=True,
            gpu_memory_utilization=local.gpu_memory,
            disable_log_stats=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"vLLM can't start on this checkpoint ({said[:300]})",
            where="--model",
            expected="a folder or hub name that vLLM serves",
        ) from error
