"""A local checkpoint through transformers: batched sampling, exact readouts from a cached prefix.

A readout runs the prompt and the response up to the number once, keeps the key-value cache, and
asks for the few single-token continuations that the tree of the 101 strings has, side by side.

Sampling depends on the seed and on the composition of the batch, so a resumed run draws other
responses for its remaining rows than an uninterrupted one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caopd_verl.core.tokens import decode, find_eot_id
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.rows.row import Job
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.evaluation.sources.checkpoint import CheckpointBackend, Sampled


class TransformersBackend(CheckpointBackend):
    """Generates and reads; the model is loaded when the object is made.

    Args:
        model: a folder, a name on the hub, or a GGUF file.
        sampling, local: settings.

    Raises:
        ConfigError: the checkpoint can't be loaded.
        TokenizerError: its tokenizer has no chat template, or can't write the words of P(True).
    """

    def __init__(self, model: str, *, sampling: Sampling, local: Local):
        if local.threads is not None:
            torch.set_num_threads(local.threads)
        self.model, tokenizer = load_model(model, dtype=local.dtype, device=local.device)
        super().__init__(
            tokenizer,
            sampling=sampling,
            local=local,
            batch_size=local.batch_size,
            max_tokens=getattr(self.model.config, "max_position_embeddings", None),
        )
        self.stop_ids = _stop_ids(self.model, tokenizer)
        pad_id = tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad_id is None else pad_id

    @torch.inference_mode()
    def sample(self, prompts: Sequence[list[int]], jobs: Sequence[Job]) -> list[Sampled]:
        """One response for each prompt, all in one batch.

        Raises:
            ConfigError: a prompt that leaves no room for a response.
        """
        ids, mask = self._left_padded(prompts)
        width = ids.shape[1]
        torch.manual_seed(batch_seed(self.sampling.seed or 0, jobs[0]))
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self._room(width),
            eos_token_id=self.stop_ids,
            pad_token_id=self.pad_id,
            **self._drawing(),
        )
        return [self._sampled(row) for row in out[:, width:].tolist()]

    @torch.inference_mode()
    def next_token_log_probs(
        self, sequences: list[list[int]], wanted: list[int]
    ) -> list[dict[int, float]]:
        """As `readouts.next_token.NextTokenLogProbs`; each prefix is run once."""
        rows: list[dict[int, float]] = []
        for group in _by_prefix(sequences):
            cached = CachedContinuations(self.model, group[0], max_rows=self.local.max_readout_rows)
            rows += cached(group, wanted)
        return rows

    def _left_padded(self, prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, int64, shape [prompts, width of the longest]."""
        # On the left, so that all responses begin in the same column.
        width = max(len(prompt) for prompt in prompts)
        device = self.model.device
        mask = torch.zeros((len(prompts), width), dtype=torch.long, device=device)
        ids = torch.full_like(mask, self.pad_id)
        for i, prompt in enumerate(prompts):
            start = width - len(prompt)
            ids[i, start:] = torch.tensor(prompt, device=device)
            mask[i, start:] = 1
        return ids, mask

    def _drawing(self) -> dict[str, Any]:
        """How tokens are drawn, as arguments of `generate`."""
        if self.sampling.temperature == 0.0:
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": 0,  # none, instead of the 50 that transformers has by default
        }

    def _room(self, width: int) -> int:
        room = self.sampling.max_tokens
        if self.max_tokens is not None:
            room = min(room, self.max_tokens - width)
        if room < 1:
            raise ConfigError(
                f"a prompt of {width} tokens leaves no room for a response: the model takes "
                f"{self.max_tokens}"
            )
        return room

    def _sampled(self, ids: list[int]) -> Sampled:
        """A row of a batch, up to the first token that ends a response."""
        for n_text, token in enumerate(ids):
            if token in self.stop_ids:
                text = decode(self.tokenizer, ids[:n_text])
                return Sampled(ids[: n_text + 1], text, truncated=False)
        return Sampled(ids, decode(self.tokenizer, ids), truncated=True)


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a response: the chat template's end of turn, and the model's own."""
    eos = model.generation_config.eos_token_id
    listed = eos if isinstance(eos, list) else [eos]
    own = {token for token in listed if token is not None}
    return sorted({find_eot_id(tokenizer), *own})


def _by_prefix(sequences: list[list[int]]) -> list[list[list[int]]]:
    """Neighbours that begin with the same prefix, which is the first of them."""
    groups: list[list[list[int]]] = []
    for sequence in sequences:
        prefix = groups[-1][0] if groups else None
        if prefix is not None and sequence[: len(prefix)] == prefix:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups


class CachedContinuations:
    """Next-token log-probs after sequences that all begin with one prefix, which is run once.

    Args:
        model: a causal language model of transformers.
        prefix: token ids, at least one.
        max_rows: continuations that are run side by side, each on a copy of the prefix's cache.
    """

    def __init__(self, model: Any, prefix: Sequence[int], *, max_rows: int):
        self.model, self.max_rows = model, max_rows
        self.n_prefix = len(prefix)
        ids = torch.tensor([list(prefix)], device=model.device)
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        self.behind_prefix = out.logits[0, -1]

    @torch.inference_mode()
    def __call__(self, sequences: list[list[int]], wanted: list[int]) -> list[dict[int, float]]:
        """For each sequence the log-probs (nats) of the wanted tokens."""
        rows: dict[int, dict[int, float]] = {}
        places_by_length: dict[int, list[int]] = {}
        for place, sequence in enumerate(sequences):
            if len(sequence) == self.n_prefix:
                rows[place] = _log_probs(self.behind_prefix, wanted)
            else:
                places_by_length.setdefault(len(sequence), []).append(place)
        # Sequences of one length need no padding, which some architectures count as tokens.
        for places in places_by_length.values():
            for start in range(0, len(places), self.max_rows):
                part = places[start : start + self.max_rows]
                continuations = [sequences[place][self.n_prefix :] for place in part]
                for place, logits in zip(part, self._run(continuations), strict=True):
                    rows[place] = _log_probs(logits, wanted)
        return [rows[place] for place in range(len(sequences))]

    def _run(self, continuations: list[list[int]]) -> torch.Tensor:
        """Logits behind each continuation, shape [continuations, vocabulary]."""
        cache = copy.deepcopy(self.cache)  # the model writes into the one that it is given
        cache.batch_repeat_interleave(len(continuations))
        ids = torch.tensor(continuations, device=self.model.device)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]


def load_model(model: str, *, dtype: str, device: str) -> tuple[Any, Any]:
    """Model (in evaluation mode) and tokenizer of a folder, a hub name or a GGUF file.

    Raises:
        ConfigError: it can't be loaded, or `dtype` is unknown.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ConfigError(
            f"unknown dtype {dtype!r}", where="--dtype", expected="float32, bfloat16 or float16"
        )
    path = Path(model)
    source, options = model, {}
    if path.suffix == ".gguf":
        source, options = str(path.parent), {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=kind, **options)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"the checkpoint can't be loaded ({said[:300]})",
            where="--model",
            expected="a folder with config, weights and tokenizer, a hub name, or a .gguf file",
        ) from None
    return loaded.to(device).eval(), tokenizer


def batch_seed(seed: int, job: Job) -> int:
    """A seed for a batch that begins with `job`; the same on every machine."""
    text = f"{seed}\n{job.example.id}\n{job.sample}"
    # Not Python's own hash, which differs from one process to the next.
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _log_probs(logits: torch.Tensor, wanted: list[int]) -> dict[int, float]:
    """Those of the wanted tokens in one row of logits, shape [vocabulary]."""
    # float64: up to four of them are added up, and 101 such sums compared.
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    return dict(zip(wanted, log_probs[wanted].tolist(), strict=True))
