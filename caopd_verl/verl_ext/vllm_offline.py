"""A local checkpoint through vLLM's offline `LLM` class: all prompts of a batch at once, prefix caching on.

The exact readout asks for one-token continuations of prompt and response, whose blocks are still cached, so each costs
one short step; the continuations of all responses of a batch run together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from caopd_verl.core.context import encode_prompt
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.readouts.p_true import (
    NO_ANSWER,
    TOO_LONG,
    follow_up,
    p_true,
    word_tokens,
)
from caopd_verl.evaluation.rows.exact import exact_readouts
from caopd_verl.evaluation.rows.row import P_TRUE_NOT_ASKED, Generation, Job, Readout
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.types import Messages

NOT_ASKED = "the expected readout was switched off (--no-expected)"
# Only whole blocks are cached, and each of the readout's 16 continuations runs the rest of the prefix again. vLLM's own
# size is 16 on GPUs and 128 on CPU, where 16 cut the readout's time to a quarter and generation took no longer.
CPU_BLOCK = 16
BATCHES = 32  # a vLLM batch is so many times `batch_size`: vLLM schedules by itself, rows are saved after each


class VllmBackend:
    """Generates and reads; the engine starts when the object is made.

    Args:
        model: a folder or a hub name.
        sampling, local: settings; `device` and `batch_size` are vLLM's own business.

    Raises:
        ConfigError: the engine can't start on this checkpoint, or its tokenizer has no chat template.
    """

    def __init__(self, model: str, *, sampling: Sampling, local: Local):
        from vllm import LLM
        from vllm.platforms import current_platform

        self.sampling, self.local = sampling, local
        options: dict[str, Any] = (
            {} if local.max_model_len is None else {"max_model_len": local.max_model_len}
        )
        if current_platform.is_cpu():
            options["block_size"] = CPU_BLOCK
        try:
            self.engine = LLM(
                model=model,
                dtype=local.dtype,
                seed=sampling.seed or 0,
                enable_prefix_caching=True,
                gpu_memory_utilization=local.gpu_memory,
                disable_log_stats=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"vLLM can't start on this checkpoint ({' '.join(str(error).split())[:300]})",
                where="--model",
                expected="a folder or hub name that vLLM serves",
            ) from error
        self.tokenizer: Any = self.engine.get_tokenizer()
        self.eot_id = find_eot_id(self.tokenizer)
        self.generate_s = self.readout_s = self.p_true_s = 0.0
        if local.p_true:
            word_tokens(self.tokenizer)  # fails here rather than after the first batch

    def batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in their order."""
        size = self.local.batch_size * BATCHES
        for start in range(0, len(jobs), size):
            yield list(jobs[start : start + size])

    def report(self) -> dict[str, Any]:
        """Where the time went, in seconds."""
        return {
            "generate_s": self.generate_s,
            "readout_s": self.readout_s,
            "p_true_s": self.p_true_s,
        }

    def generate(self, jobs: Sequence[Job]) -> list[Generation]:
        """One response for each job."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        start = time.monotonic()
        prompts = [self.prompt_ids(job.example.messages) for job in jobs]
        params = [
            SamplingParams(
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                max_tokens=self.sampling.max_tokens,
                stop_token_ids=[self.eot_id],
                seed=None if self.sampling.seed is None else self.sampling.seed + job.sample,
                detokenize=False,
            )
            for job in jobs
        ]
        results = self.engine.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False
        )
        outputs = [result.outputs[0] for result in results]
        spent = time.monotonic() - start
        self.generate_s += spent
        responses = [list(output.token_ids) for output in outputs]
        readouts = self.read(prompts, responses)
        self.readout_s += time.monotonic() - start - spent
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
        start = time.monotonic()
        asked = self.ask([job.example.messages for job in jobs], texts)
        self.p_true_s += time.monotonic() - start
        return [
            Generation(
                text,
                truncated=output.finish_reason == "length",
                n_prompt_tokens=len(prompt),
                n_tokens=len(ids),
                latency_s=spent / len(jobs),
                expected=readout,
                p_true=own,
            )
            for text, prompt, ids, output, readout, own in zip(
                texts, prompts, responses, outputs, readouts, asked, strict=True
            )
        ]

    def read(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[Readout]:
        """The exact expected confidence of each response (token ids)."""
        if not self.local.expected:
            return [Readout(reason=NOT_ASKED)] * len(prompts)
        return exact_readouts(
            prompts,
            responses,
            next_log_probs=self._next,
            tokenizer=self.tokenizer,
            decoding=self.sampling.decoding,
        )

    def ask(self, chats: Sequence[Messages], responses: Sequence[str]) -> list[Readout]:
        """P(True) of each response (text)."""
        if not self.local.p_true:
            return [P_TRUE_NOT_ASKED] * len(chats)
        words = word_tokens(self.tokenizer)
        room = self.engine.model_config.max_model_len - max(map(len, words))
        questions = [
            follow_up(chat, response) for chat, response in zip(chats, responses, strict=True)
        ]
        prefixes = [
            None if question is None else self.prompt_ids(question) for question in questions
        ]
        readouts = [Readout(reason=NO_ANSWER if ids is None else TOO_LONG) for ids in prefixes]
        readable = [i for i, ids in enumerate(prefixes) if ids is not None and len(ids) <= room]
        wanted = sorted({token for word in words for token in word})
        values = p_true(
            lambda sequences: self._next(sequences, wanted),
            [prefixes[i] or [] for i in readable],
            tokenizer=self.tokenizer,
        )
        for i, value in zip(readable, values, strict=True):
            readouts[i] = value
        return readouts

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The prompt as token ids, generation header included: as training encodes it."""
        kwargs = self.local.chat_template_kwargs
        return encode_prompt(messages, tokenizer=self.tokenizer, template_kwargs=kwargs)

    def _next(self, sequences: list[list[int]], wanted: list[int]) -> list[dict[int, float]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        params = SamplingParams(
            max_tokens=1, temperature=1.0, logprob_token_ids=wanted, detokenize=False
        )
        results = self.engine.generate(
            [TokensPrompt(prompt_token_ids=s) for s in sequences], params, use_tqdm=False
        )
        return [
            {token: entry.logprob for token, entry in result.outputs[0].logprobs[0].items()}
            for result in results
        ]
