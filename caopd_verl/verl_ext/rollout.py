"""Rollouts of a whole batch: prompts to the vLLM servers, verdicts, groups back.

Verdicts are taken on the responses as they were sampled, before any revision. A group is the
rollouts of one occurrence of a prompt: the same question twice makes two groups.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from caopd_verl.core.context import encode_prompt
from caopd_verl.errors import ConfigError
from caopd_verl.types import Example, Rollout, RolloutGroup, Verdict
from caopd_verl.verifiers import get_verifier
from caopd_verl.verl_ext.sampling import SEED_LIMIT

if TYPE_CHECKING:
    from caopd_verl.verl_ext.rollout_server import Sample


class GroupRollouts:
    """Samples groups from the replicas' servers, in turn, and verifies them in this process.

    Args:
        servers: Ray handles of `GroupServer` actors.
        tokenizer: Hugging Face tokenizer of the student.
        eot_id: end-of-turn token; it ends sampling, and is the one that training appends.
        chat_kwargs: arguments of the chat template, e.g. `enable_thinking`.
        prompts_per_request: prompts in one call to a server.
    """

    def __init__(
        self,
        servers: Sequence[Any],
        tokenizer: Any,
        *,
        eot_id: int,
        chat_kwargs: Mapping[str, Any],
        prompts_per_request: int,
    ):
        self.servers = list(servers)
        self.tokenizer = tokenizer
        self.eot_id = eot_id
        self.chat_kwargs = dict(chat_kwargs)
        self.prompts_per_request = prompts_per_request

    def sample(
        self,
        examples: Sequence[Example],
        uids: Sequence[str],
        *,
        n: int,
        sampling: Mapping[str, Any],
        seed: int | None,
    ) -> list[RolloutGroup]:
        """n verified rollouts for each example, in order.

        Args:
            examples: the questions.
            uids: identity of each question's occurrence.
            n: rollouts a prompt.
            sampling: arguments of vLLM's SamplingParams, without n, seed and stop tokens.
            seed: makes the rollouts a function of (seed, position, weights); None: the engine's
                own randomness.
        """
        prompts = [self.prompt_ids(example) for example in examples]
        samples = self._generate(prompts, n, {**sampling, "stop_token_ids": [self.eot_id]}, seed)
        flat = [sample.token_ids for group in samples for sample in group]
        texts = iter(self.tokenizer.batch_decode(flat, skip_special_tokens=True))
        groups = []
        for example, uid, ids, group in zip(examples, uids, prompts, samples, strict=True):
            rollouts = tuple(_verified(sample, next(texts), example) for sample in group)
            groups.append(RolloutGroup(uid, example, tuple(ids), rollouts))
        return groups

    def prompt_ids(self, example: Example) -> list[int]:
        """The student's prompt, generation header included."""
        return encode_prompt(
            example.messages, tokenizer=self.tokenizer, template_kwargs=self.chat_kwargs
        )

    def _generate(
        self, prompts: list[list[int]], n: int, sampling: dict[str, Any], seed: int | None
    ) -> list[list[Sample]]:
        size = self.prompts_per_call(len(prompts))
        futures = []
        for call, start in enumerate(range(0, len(prompts), size)):
            chunk = prompts[start : start + size]
            seeds = None if seed is None else prompt_seeds(seed, start, len(chunk), n)
            server = self.servers[call % len(self.servers)]
            futures.append(server.generate_groups.remote(chunk, sampling, n, seeds))
        answers = ray.get(futures)
        return [group for answer in answers for group in answer]

    def prompts_per_call(self, n_prompts: int) -> int:
        """At most `prompts_per_request`, and few enough that every server gets a call."""
        share = math.ceil(n_prompts / len(self.servers))
        return max(1, min(self.prompts_per_request, share))

    def next_token_log_probs(
        self, prefixes: list[list[int]], token_ids: list[int]
    ) -> list[dict[int, float]]:
        """Log-probs of `token_ids` after each prefix.

        Prefixes that follow one another go to one server, which has them in its cache.
        """
        size = max(1, math.ceil(len(prefixes) / len(self.servers)))
        chunks = [prefixes[start : start + size] for start in range(0, len(prefixes), size)]
        futures = []
        for server, chunk in zip(self.servers, chunks, strict=False):
            futures.append(server.next_token_log_probs.remote(chunk, token_ids))
        answers = ray.get(futures)
        return [row for answer in answers for row in answer]


def prompt_seeds(seed: int, first: int, n_prompts: int, n: int) -> list[int]:
    """A seed for each prompt from position `first` on, `n` apart.

    vLLM draws the n samples of one prompt with the seeds `seed .. seed + n - 1`: closer seeds
    would give neighbouring prompts the same random numbers.
    """
    positions = range(first, first + n_prompts)
    return [(seed + position * n) % SEED_LIMIT for position in positions]


def _verified(sample: Sample, text: str, example: Example) -> Rollout:
    verify = get_verifier(example.verifier, where=example.where)
    return Rollout(
        token_ids=tuple(sample.token_ids),
        log_probs=tuple(sample.log_probs),
        text=text,
        verdict=verify(text, example.answer),
        truncated=sample.truncated,
    )


def write_groups(groups: Sequence[RolloutGroup], folder: str, step: int) -> None:
    """Record a step's groups as JSONL, one group a line."""
    path = _path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(group)) + "\n" for group in groups]
    path.write_text("".join(lines))


def read_groups(folder: str, step: int) -> list[RolloutGroup]:
    """Read a recorded step. Raises `ConfigError` where it was not recorded."""
    path = _path(folder, step)
    if not path.exists():
        raise ConfigError(
            f"no recorded rollouts for step {step}: {path} does not exist",
            where="caopd.rollout.replay_path",
            expected="a folder that a run with caopd.rollout.record_path wrote",
        )
    return [_group_of(json.loads(line)) for line in path.read_text().splitlines()]


def _path(folder: str, step: int) -> Path:
    return Path(folder) / f"step_{step:06d}.jsonl"


def _group_of(row: dict[str, Any]) -> RolloutGroup:
    example = Example(**row["example"])
    rollouts = tuple(_rollout_of(rollout) for rollout in row["rollouts"])
    return RolloutGroup(row["uid"], example, tuple(row["prompt_ids"]), rollouts)


def _rollout_of(row: dict[str, Any]) -> Rollout:
    return Rollout(
        token_ids=tuple(row["token_ids"]),
        log_probs=tuple(row["log_probs"]),
        text=row["text"],
        verdict=Verdict(**row["verdict"]),
        truncated=row["truncated"],
    )
