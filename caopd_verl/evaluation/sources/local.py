"""A local checkpoint through transformers: batched sampling, and the exact expected confidence from the cached prefix.

The readout runs the prompt and the response up to the number once, keeps the key-value cache, and asks for the few
single-token continuations that the tree of the 101 strings has, side by side. Sampling depends on the seed and on the
composition of the batch, so a resumed run draws other responses for its remaining rows than an uninterrupted one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caopd_verl.core.context import encode_prompt
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.calibration import FloatArray
from caopd_verl.evaluation.readouts.expected import expected_confidence, value_prefix
from caopd_verl.evaluation.readouts.p_true import (
    NO_ANSWER,
    TOO_LONG,
    follow_up,
    p_true,
    word_tokens,
)
from caopd_verl.evaluation.rows.row import P_TRUE_NOT_ASKED, Generation, Job, Readout, exact_readout
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.types import Messages

NOT_ASKED = "the expected readout was switched off (--no-expected)"


class TransformersBackend:
    """Generates and reads; the model is loaded when the object is made.

    Args:
        model: a folder, a name on the hub, or a GGUF file.
        sampling, local: settings.

    Raises:
        ConfigError: the checkpoint can't be loaded, or its tokenizer has no chat template.
    """

    def __init__(self, model: str, *, sampling: Sampling, local: Local):
        self.sampling, self.local = sampling, local
        if local.threads is not None:
            torch.set_num_threads(local.threads)
        self.model, self.tokenizer = load_model(model, dtype=local.dtype, device=local.device)
        self.eot_id = find_eot_id(self.tokenizer)
        eos = self.model.generation_config.eos_token_id
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self.stop_ids = sorted({self.eot_id, *listed})
        self.pad_id = (
            self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.stop_ids[0]
        )
        self.generate_s = self.readout_s = self.p_true_s = 0.0
        if local.p_true:
            word_tokens(self.tokenizer)  # fails here rather than after the first batch

    def batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in their order, `batch_size` at a time."""
        for start in range(0, len(jobs), self.local.batch_size):
            yield list(jobs[start : start + self.local.batch_size])

    def report(self) -> dict[str, Any]:
        """Where the time went, in seconds."""
        return {
            "generate_s": self.generate_s,
            "readout_s": self.readout_s,
            "p_true_s": self.p_true_s,
        }

    @torch.inference_mode()
    def generate(self, jobs: Sequence[Job]) -> list[Generation]:
        """One response for each job."""
        start = time.monotonic()
        prompts = [self.prompt_ids(job.example.messages) for job in jobs]
        responses = self._sample(prompts, jobs)
        spent = time.monotonic() - start
        self.generate_s += spent
        out = []
        for job, prompt, ids in zip(jobs, prompts, responses, strict=True):
            ended = bool(ids) and ids[-1] in self.stop_ids
            text = self.tokenizer.decode(
                ids[:-1] if ended else ids,
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            begun = time.monotonic()
            expected = self.read(prompt, ids) if self.local.expected else Readout(reason=NOT_ASKED)
            self.readout_s += time.monotonic() - begun
            begun = time.monotonic()
            asked = self.ask(job.example.messages, text) if self.local.p_true else P_TRUE_NOT_ASKED
            self.p_true_s += time.monotonic() - begun
            out.append(
                Generation(
                    text,
                    truncated=not ended,
                    n_prompt_tokens=len(prompt),
                    n_tokens=len(ids),
                    latency_s=spent / len(jobs),
                    expected=expected,
                    p_true=asked,
                )
            )
        return out

    @torch.inference_mode()
    def read(self, prompt: Sequence[int], response: Sequence[int]) -> Readout:
        """The exact expected confidence of one response (token ids)."""
        place = value_prefix(response, self.tokenizer)
        if place.ids is None:
            return Readout(reason=place.reason)
        prefix = [*prompt, *place.ids]
        result = expected_confidence(
            CachedContinuations(self.model, prefix, max_rows=self.local.max_readout_rows),
            prefix,
            tokenizer=self.tokenizer,
            decoding=self.sampling.decoding,
            lead=place.lead,
        )
        return exact_readout(result)

    @torch.inference_mode()
    def ask(self, messages: Messages, response: str) -> Readout:
        """P(True) of one response."""
        chat = follow_up(messages, response)
        if chat is None:
            return Readout(reason=NO_ANSWER)
        prefix = self.prompt_ids(chat)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and len(prefix) + max(map(len, word_tokens(self.tokenizer))) > limit:
            return Readout(reason=TOO_LONG)
        model = CachedContinuations(self.model, prefix, max_rows=self.local.max_readout_rows)
        return p_true(model, [prefix], tokenizer=self.tokenizer)[0]

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The prompt as token ids, generation header included: as training encodes it."""
        kwargs = self.local.chat_template_kwargs
        return encode_prompt(messages, tokenizer=self.tokenizer, template_kwargs=kwargs)

    def _sample(self, prompts: Sequence[Sequence[int]], jobs: Sequence[Job]) -> list[list[int]]:
        width = max(len(p) for p in prompts)
        device = self.model.device
        ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
            mask[i, width - len(prompt) :] = 1
        torch.manual_seed(batch_seed(self.sampling.seed or 0, jobs[0]))
        greedy = self.sampling.temperature == 0.0
        chosen = (
            {}
            if greedy
            else {
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
                "top_k": 0,
            }
        )
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=not greedy,
            max_new_tokens=self._room(width),
            eos_token_id=self.stop_ids,
            pad_token_id=self.pad_id,
            **chosen,
        )
        return [self._until_stop(row) for row in out[:, width:].tolist()]

    def _room(self, width: int) -> int:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        room = (
            self.sampling.max_tokens
            if limit is None
            else min(self.sampling.max_tokens, limit - width)
        )
        if room < 1:
            raise ConfigError(
                f"a prompt of {width} tokens leaves no room for a response: the model takes {limit}"
            )
        return room

    def _until_stop(self, ids: list[int]) -> list[int]:
        for i, token in enumerate(ids):
            if token in self.stop_ids:
                return ids[: i + 1]
        return ids


class CachedContinuations:
    """Next-token log-probs after sequences that all begin with one prefix, which is run once (for `expected`).

    Args:
        model: a causal language model of transformers.
        prefix: token ids, at least one.
        max_rows: continuations that are run side by side, each on a copy of the prefix's cache.
    """

    def __init__(self, model: Any, prefix: Sequence[int], *, max_rows: int):
        self.model, self.n, self.max_rows = model, len(prefix), max_rows
        out = model(
            input_ids=torch.tensor([list(prefix)], device=model.device),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        self.first = _log_probs(out.logits[0, -1])

    @torch.inference_mode()
    def __call__(self, sequences: list[list[int]]) -> list[FloatArray]:
        """Rows of log-probabilities (float64, nats, shape [vocabulary]) for each sequence."""
        rows: list[FloatArray | None] = [
            self.first if len(s) == self.n else None for s in sequences
        ]
        todo = [i for i, row in enumerate(rows) if row is None]
        by_length: dict[int, list[int]] = {}
        for i in todo:
            by_length.setdefault(len(sequences[i]), []).append(i)
        for places in by_length.values():
            for start in range(0, len(places), self.max_rows):
                part = places[start : start + self.max_rows]
                for i, row in zip(
                    part, self._run([sequences[i][self.n :] for i in part]), strict=True
                ):
                    rows[i] = row
        return [row for row in rows if row is not None]

    def _run(self, continuations: list[list[int]]) -> list[FloatArray]:
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(continuations))
        ids = torch.tensor(continuations, device=self.model.device)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [_log_probs(row) for row in out.logits[:, -1]]


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
    options: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    source = str(path.parent) if options else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=kind, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the checkpoint can't be loaded ({' '.join(str(error).split())[:300]})",
            where="--model",
            expected="a folder with config, weights and tokenizer, a hub name, or a .gguf file",
        ) from None
    return loaded.to(device).eval(), tokenizer


def batch_seed(seed: int, job: Job) -> int:
    """A seed for a batch that begins with `job`; the same on every machine."""
    import hashlib

    digest = hashlib.sha256(f"{seed}\n{job.example.id}\n{job.sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _log_probs(logits: torch.Tensor) -> FloatArray:
    return torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
