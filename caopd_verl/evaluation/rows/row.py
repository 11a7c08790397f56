"""One evaluated response as a row of `rows.jsonl`.

| key | value |
| --- | --- |
| `id`, `sample` | the question, and which of its samples; together they are the row's key |
| `source`, `where` | the task's name for the metrics by source; `file:line` of the question |
| `prompt`, `prompt_hash` | the last user message, and a hash of all messages as they were sent |
| `response`, `gold`, `answer` | the response's text, the gold answer, the answer read from the response |
| `correct`, `reason` | the verdict and its reason (`correct`, `wrong`, `no_answer`, `malformed`) |
| `confidence` | the stated confidence in [0, 1], or null |
| `confidence_status`, `confidence_text` | how it was parsed (`core.confidence`), and the line it was read from |
| `expected_confidence` | mean over the confidence tokens at the sampling's temperature and top-p |
| `expected_t1_confidence`, `expected_mass` | the same at temperature 1; the probability that both account for |
| `expected_kind`, `expected_reason` | `exact` or `approximate`; why there is none |
| `p_true`, `p_true_mass`, `p_true_reason` | P(True), the probability of both words, why there is none (`p_true`) |
| `answer_probability` | the model's probability of the answer's tokens, where log-probs were given |
| `truncated`, `n_prompt_tokens`, `n_tokens`, `latency_s`, `attempts` | of the generation; null where not known |
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from caopd_verl.core.confidence import parse
from caopd_verl.evaluation.readouts.expected import ExpectedConfidence
from caopd_verl.types import Example, Messages
from caopd_verl.verifiers import get_verifier

EXACT, APPROXIMATE = "exact", "approximate"
MAX_LINE = 200
Key = tuple[str, int]


@dataclass(frozen=True)
class Readout:
    """The expected confidence of one response (`value`: as decoded, `value_t1`), or the reason why there is none."""

    value: float | None = None
    mass: float | None = None
    kind: str | None = None
    reason: str | None = None
    value_t1: float | None = None


def exact_readout(found: ExpectedConfidence) -> Readout:
    """What the tree of the 101 strings gave, as a readout."""
    if found.value is None:
        return Readout(mass=0.0, reason="no string from 0.00 to 1.00 has any probability")
    return Readout(found.value, found.mass, EXACT, value_t1=found.value_t1)


P_TRUE_NOT_ASKED = Readout(reason="not asked for (--p-true, local checkpoints)")


@dataclass(frozen=True)
class Generation:
    """One response as a backend returned it; None where the backend does not know."""

    text: str
    truncated: bool | None = None
    n_prompt_tokens: int | None = None
    n_tokens: int | None = None
    latency_s: float | None = None
    attempts: int | None = None
    expected: Readout = Readout(reason="the responses came without log-probabilities")
    p_true: Readout = P_TRUE_NOT_ASKED
    token_logprobs: tuple[tuple[str, float], ...] | None = (
        None  # text and log-probability of each token
    )
    known_answer: tuple[str, float] | None = (
        None  # of an earlier judgement: an answer and its tokens' probability
    )


@dataclass(frozen=True)
class Job:
    """One sample of one question to be asked for."""

    example: Example
    sample: int

    @property
    def key(self) -> Key:
        return self.example.id, self.sample


def jobs_of(examples: list[Example], samples: int) -> list[Job]:
    """All samples of all questions: every question's first sample before any second one."""
    return [Job(example, sample) for sample in range(samples) for example in examples]


def prompt_hash(messages: Messages) -> str:
    """16 hexadecimal digits that identify the messages."""
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_row(job: Job, generation: Generation) -> dict[str, Any]:
    """Judge and parse a response; never raises on a response, however odd."""
    example, text = job.example, _storable(generation.text)
    verdict = get_verifier(example.verifier)(text, example.answer)
    earlier = generation.known_answer
    known = earlier[1] if earlier is not None and earlier[0] == verdict.answer else None
    return {
        "id": example.id,
        "sample": job.sample,
        "source": example.source,
        "where": example.where,
        "verifier": example.verifier,
        "prompt": example.messages[-1]["content"] if example.messages else None,
        "prompt_hash": prompt_hash(example.messages),
        "response": text,
        "gold": example.answer,
        "answer": verdict.answer,
        "correct": verdict.correct,
        "reason": verdict.reason,
        **confidence_fields(text),
        "expected_confidence": generation.expected.value,
        "expected_t1_confidence": generation.expected.value_t1,
        "expected_mass": generation.expected.mass,
        "expected_kind": generation.expected.kind,
        "expected_reason": generation.expected.reason,
        "p_true": generation.p_true.value,
        "p_true_mass": generation.p_true.mass,
        "p_true_reason": generation.p_true.reason,
        "answer_probability": known
        if known is not None
        else answer_probability(text, verdict.answer, generation.token_logprobs),
        "truncated": generation.truncated,
        "n_prompt_tokens": generation.n_prompt_tokens,
        "n_tokens": generation.n_tokens,
        "latency_s": generation.latency_s,
        "attempts": generation.attempts,
    }


def confidence_fields(text: str) -> dict[str, Any]:
    """The stated confidence, how it was parsed and the line it was read from."""
    stated = parse(text)
    return {
        "confidence": stated.value,
        "confidence_status": stated.status,
        "confidence_text": text[stated.start : stated.start + MAX_LINE].rstrip() or None,
    }


def answer_probability(
    text: str, answer: str | None, tokens: tuple[tuple[str, float], ...] | None
) -> float | None:
    """The product of the probabilities of the tokens that spell the last occurrence of `answer` before the confidence
    line; None without log-probs, without an answer, or where the tokens do not spell the text."""
    import math

    if not tokens or not answer:
        return None
    if "".join(token for token, _ in tokens).rstrip() != text.rstrip():
        return None
    end = parse(text).start
    start = text.rfind(answer, 0, end)
    if start < 0:
        return None
    position, total = 0, 0.0
    for token, log_prob in tokens:
        if position < start + len(answer) and position + len(token) > start:
            total += log_prob
        position += len(token)
    return math.exp(min(total, 0.0))


def _storable(text: str) -> str:
    """The text without lone surrogates, which JSON could carry but UTF-8 can't."""
    return text.encode("utf-8", "replace").decode("utf-8")
