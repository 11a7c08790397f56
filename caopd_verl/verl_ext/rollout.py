"""Rollouts of a whole batch: prompts to the vLLM servers, verdicts on the original text, groups back (T20, T26)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from caopd_verl.errors import ConfigError
from caopd_verl.types import Example, Rollout, RolloutGroup, Verdict
from caopd_verl.verifiers import get_verifier


class GroupRollouts:
    """Samples groups from the replicas' servers, round robin, and verifies them in this process.

    Args:
        servers: Ray handles of `GroupServer` actors.
        tokenizer: Hugging Face tokenizer of the student.
        eot_id: end-of-turn token; it ends sampling, and is the one that training appends (T6).
        chat_kwargs: arguments of the chat template, e.g. `enable_thinking`.
        prompts_per_request: prompts in one call to a server.
    """

    def __init__(
        self,
        servers,
        tokenizer,
        *,
        eot_id,
        chat_kwargs,
        prompts_per_request,
    ):
        self.servers = list(servers)
        self.tokenizer = tokenizer
        self.eot_id = eot_id
        self.chat_kwargs = dict(chat_kwargs)
        self.prompts_per_request = prompts_per_request

    def prompt_ids(self, example: Example) -> list[int]:
        """The student's prompt as token ids, generation header included."""
        text = self.tokenizer.apply_chat_template(
            example.messages, add_generation_prompt=True, tokenize=False, **self.chat_kwargs
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def sample(
        self,
        examples: Sequence[Example],
        uids: Sequence[str],
        *,
        n: int,
        sampling: dict[str, Any],
        seed: int | None,
    ) -> list[RolloutGroup]:
        """n verified rollouts for each example.

        Args:
            examples: the prompts.
            uids: identity of each prompt's occurrence.
            n: rollouts a prompt.
            sampling: arguments of vLLM's SamplingParams, without n, seed and stop tokens.
            seed: makes the rollouts a function of (seed, position, weights); None: the engine's own randomness.
        """
        prompts = [self.prompt_ids(example) for example in examples]
        sampling = {**sampling, "stop_token_ids": [self.eot_id]}
        futures = []
        size = self._prompts_per_call(len(prompts))
        for call, start in enumerate(range(0, len(prompts), size)):
            chunk = prompts[start : start + size]
            # n samples of one prompt take the seeds seed .. seed + n - 1 in vLLM
            seeds = (
                None
                if seed is None
                else [(seed + (start + i) * n) % 2**31 for i in range(len(chunk))]
            )
            server = self.servers[call % len(self.servers)]
            futures.append(server.generate_groups.remote(chunk, sampling, n, seeds))
        samples = [group for chunk in ray.get(futures) for group in chunk]
        texts = self.tokenizer.batch_decode(
            [s.token_ids for group in samples for s in group], skip_special_tokens=True
        )
        groups, position = [], 0
        for example, uid, ids, group in zip(examples, uids, prompts, samples, strict=True):
            verify = get_verifier(example.verifier, where=example.where)
            rollouts = tuple(
                Rollout(
                    token_ids=tuple(s.token_ids),
                    log_probs=tuple(s.log_probs),
                    text=texts[position + i],
                    verdict=verify(texts[position + i], example.answer),
                    truncated=s.truncated,
                )
                for i, s in enumerate(group)
            )
            position += len(group)
            groups.append(RolloutGroup(uid, example, tuple(ids), rollouts))
        return groups

    def _prompts_per_call(self, n: int) -> int:
        """At most `prompts_per_request`, and few enough that every server gets a call."""
        return max(1, min(self.prompts_per_request, -(-n // len(self.servers))))

    def next_token_log_probs(
        self, prefixes: list[list[int]], token_ids: list[int]
    ) -> list[dict[int, float]]:
        """Log-probs of `token_ids` after each prefix; prefixes of one response go to one server (its cache)."""
        size = max(1, -(-len(prefixes) // len(self.servers)))
        chunks = [prefixes[i : i + size] for i in range(0, len(prefixes), size)]
        futures = [
            server.next_token_log_probs.remote(chunk, token_ids)
            for server, chunk in zip(self.servers, chunks, strict=False)
        ]
        return [row for chunk in ray.get(futures) for row in chunk]


def write_groups(groups: Sequence[RolloutGroup], folder: str, step: int) -> None:
    """Record a step's groups as JSONL, one group a line."""
    path = Path(folder) / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(group)) + "\n" for group in groups))


def read_groups(folder: str, step: int) -> list[RolloutGroup]:
    """Read a recorded step. Raises `ConfigError` where it was not recorded."""
    path = Path(folder) / f"step_{step:06d}.jsonl"
    if not path.exists():
        raise ConfigError(
            f"no recorded rollouts for step {step}: {path} does not exist",
            where="caopd.rollout.replay_path",
            expected="a folder that a run with caopd.rollout.record_path wrote",
        )
    groups = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rollouts = tuple(
            Rollout(
                token_ids=tuple(r["token_ids"]),
                log_probs=tuple(r["log_probs"]),
                text=r["text"],
                verdict=Verdict(**r["verdict"]),
                truncated=r["truncated"],
            )
            for r in row["rollouts"]
        )
        groups.append(
            RolloutGroup(row["uid"], Example(**row["example"]), tuple(row["prompt_ids"]), rollouts)
        )
    return groups
