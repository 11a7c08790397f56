"""What the backends for a checkpoint share: from questions to responses with their readouts.

A backend samples and answers single-token continuations, as its engine can. How prompts are
encoded, what is read of the responses and which seconds are counted is the same for all.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caopd_verl.core.context import encode_prompt
from caopd_verl.evaluation.readouts.expected import expected_readouts
from caopd_verl.evaluation.readouts.p_true import P_TRUE_NOT_ASKED, p_true_readouts, word_tokens
from caopd_verl.evaluation.readouts.readout import Readout
from caopd_verl.evaluation.rows.row import Generation, Job
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.types import Messages

NOT_ASKED = Readout(reason="the expected readout was switched off (--no-expected)")


@dataclass(frozen=True)
class Sampled:
    """One response: token ids with the end of turn, text without it, and whether it was cut."""

    ids: list[int]
    text: str
    truncated: bool


class CheckpointBackend(ABC):
    """Generates and reads.

    Args:
        tokenizer: the model's.
        sampling, local: settings.
        batch_size: questions that are answered together.
        max_tokens: of the model's context; None where it has no limit.

    Raises:
        TokenizerError: P(True) is asked for, and the tokenizer can't write its two words.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        sampling: Sampling,
        local: Local,
        batch_size: int,
        max_tokens: int | None,
    ):
        self.tokenizer, self.sampling, self.local = tokenizer, sampling, local
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.seconds = {"generate_s": 0.0, "readout_s": 0.0, "p_true_s": 0.0}
        if local.p_true:
            word_tokens(tokenizer)  # fails here rather than after the first batch

    @abstractmethod
    def sample(self, prompts: Sequence[list[int]], jobs: Sequence[Job]) -> list[Sampled]:
        """One response for each prompt (token ids); `jobs` are what the prompts ask."""

    @abstractmethod
    def next_token_log_probs(
        self, sequences: list[list[int]], wanted: list[int]
    ) -> Sequence[Mapping[int, float]]:
        """As `readouts.next_token.NextTokenLogProbs`."""

    def batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in their order, `batch_size` at a time."""
        for start in range(0, len(jobs), self.batch_size):
            yield list(jobs[start : start + self.batch_size])

    def report(self) -> dict[str, Any]:
        """Where the time went, in seconds."""
        return dict(self.seconds)

    def generate(self, jobs: Sequence[Job]) -> list[Generation]:
        """One response for each job, with what is read of it."""
        chats = [job.example.messages for job in jobs]
        start = time.monotonic()
        prompts = [self.prompt_ids(chat) for chat in chats]
        samples = self.sample(prompts, jobs)
        sampled = time.monotonic()
        expected = self.read(prompts, [one.ids for one in samples])
        read = time.monotonic()
        p_true = self.ask(chats, [one.text for one in samples])
        asked = time.monotonic()
        # Apart, since the readouts are options, and their cost is weighed against sampling.
        self.seconds["generate_s"] += sampled - start
        self.seconds["readout_s"] += read - sampled
        self.seconds["p_true_s"] += asked - read
        generations = []
        for i, one in enumerate(samples):
            generation = Generation(
                one.text,
                truncated=one.truncated,
                n_prompt_tokens=len(prompts[i]),
                n_tokens=len(one.ids),
                latency_s=(sampled - start) / len(jobs),
                expected=expected[i],
                p_true=p_true[i],
            )
            generations.append(generation)
        return generations

    def read(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[Readout]:
        """The exact expected confidence of each response (token ids), where it is asked for."""
        if not self.local.expected:
            return [NOT_ASKED] * len(responses)
        return expected_readouts(
            prompts,
            responses,
            model=self.next_token_log_probs,
            tokenizer=self.tokenizer,
            decoding=self.sampling.decoding,
        )

    def ask(self, chats: Sequence[Messages], responses: Sequence[str]) -> list[Readout]:
        """P(True) of each response (text), where it is asked for."""
        if not self.local.p_true:
            return [P_TRUE_NOT_ASKED] * len(responses)
        return p_true_readouts(
            chats,
            responses,
            model=self.next_token_log_probs,
            tokenizer=self.tokenizer,
            encode=self.prompt_ids,
            max_tokens=self.max_tokens,
        )

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The prompt as token ids, generation header included: as training encodes it."""
        kwargs = self.local.chat_template_kwargs
        return encode_prompt(messages, tokenizer=self.tokenizer, template_kwargs=kwargs)
