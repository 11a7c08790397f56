"""One judged response: the schema of a row, in `caopd eval` and in training's validation.

| key | value |
| --- | --- |
| `id`, `sample` | the question, and which of its samples; together they are the row's key |
| `source`, `where` | the task's name, which metrics are split by; `file:line` of the question |
| `verifier` | the name of what judged the response |
| `prompt`, `prompt_hash` | the last user message; a hash of all messages as they were sent |
| `response`, `gold`, `answer` | the response's text, the gold answer, the answer as read from it |
| `correct`, `reason` | the verdict; `correct`, `wrong`, `no_answer` or `malformed` |
| `confidence` | the stated confidence in [0, 1], or null |
| `confidence_status`, `confidence_text` | how it was parsed (`core.confidence`), from what line |
| `expected_confidence` | mean over the confidence strings as decoding draws them, or null |
| `expected_t1_confidence` | the same at temperature 1 |
| `expected_mass` | the probability of those strings together |
| `expected_kind`, `expected_reason` | `exact` or `approximate`; why there is none |
| `p_true`, `p_true_mass` | P(True), and the probability of both words together |
| `p_true_reason` | why there is none |
| `answer_probability` | the model's probability of the answer's tokens, from their log-probs |
| `truncated` | true where the response ended at the limit on its length |
| `n_prompt_tokens`, `n_tokens` | of the prompt with its chat template, and of the response |
| `latency_s`, `attempts` | of the generation |

The last five are null where they are not known.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caopd_verl.core.confidence import parse
from caopd_verl.evaluation.readouts.p_true import P_TRUE_NOT_ASKED
from caopd_verl.evaluation.readouts.readout import NO_LOG_PROBS, Readout
from caopd_verl.types import Example, Messages, Verdict
from caopd_verl.verifiers import get_verifier

MAX_LINE = 200  # characters of the confidence line that are kept: models ramble on
Key = tuple[str, int]
Row = dict[str, Any]


@dataclass(frozen=True)
class Generation:
    """One response as a backend returned it; None where the backend does not know.

    Attributes:
        text: without special tokens.
        truncated: ended at the limit on its length.
        n_prompt_tokens, n_tokens: of the prompt, and of the response with its end of turn.
        latency_s: seconds.
        attempts: requests that it took.
        expected, p_true: readouts.
        token_logprobs: text and log-probability (nats) of each token.
        known_answer: of an earlier judgement: the answer, and its tokens' probability.
        verdict: of an earlier judgement. Training's rollouts have been verified already, and a
            verifier may be slow.
    """

    text: str
    truncated: bool | None = None
    n_prompt_tokens: int | None = None
    n_tokens: int | None = None
    latency_s: float | None = None
    attempts: int | None = None
    expected: Readout = NO_LOG_PROBS
    p_true: Readout = P_TRUE_NOT_ASKED
    token_logprobs: tuple[tuple[str, float], ...] | None = None
    known_answer: tuple[str, float] | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Job:
    """One sample of one question to be asked for."""

    example: Example
    sample: int

    @property
    def key(self) -> Key:
        """The row's key."""
        return self.example.id, self.sample


def jobs_of(examples: Sequence[Example], samples: int) -> list[Job]:
    """All samples of all questions: every question's first sample before any second one."""
    return [Job(example, sample) for sample in range(samples) for example in examples]


def prompt_hash(messages: Messages) -> str:
    """16 hexadecimal digits that identify the messages."""
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_row(job: Job, generation: Generation) -> Row:
    """Judge and parse a response; never raises on a response, however odd.

    The only place that makes a row. Raises `ConfigError` where the verifier's name is unknown.
    """
    # Judged as it is stored, so that judging the file again gives the same verdicts.
    example, text = job.example, _storable(generation.text)
    verdict = generation.verdict
    if verdict is None:
        verdict = get_verifier(example.verifier)(text, example.answer)
    expected, asked = generation.expected, generation.p_true
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
        **_confidence_fields(text),
        "expected_confidence": expected.value,
        "expected_t1_confidence": expected.value_t1,
        "expected_mass": expected.mass,
        "expected_kind": expected.kind,
        "expected_reason": expected.reason,
        "p_true": asked.value,
        "p_true_mass": asked.mass,
        "p_true_reason": asked.reason,
        "answer_probability": _answer_probability(generation, text, verdict.answer),
        "truncated": generation.truncated,
        "n_prompt_tokens": generation.n_prompt_tokens,
        "n_tokens": generation.n_tokens,
        "latency_s": generation.latency_s,
        "attempts": generation.attempts,
    }


def _confidence_fields(text: str) -> dict[str, Any]:
    """The stated confidence, how it was parsed and the line it was read from."""
    stated = parse(text)
    line = text[stated.start : stated.start + MAX_LINE].rstrip()
    return {
        "confidence": stated.value,
        "confidence_status": stated.status,
        "confidence_text": line or None,
    }


def _answer_probability(generation: Generation, text: str, answer: str | None) -> float | None:
    """The earlier judgement's figure where that read the same answer, else from the log-probs."""
    if generation.known_answer is not None:
        known, probability = generation.known_answer
        if known == answer:
            return probability
    if not answer or not generation.token_logprobs:
        return None
    return _probability_in_tokens(text, answer, generation.token_logprobs)


def _probability_in_tokens(
    text: str, answer: str, tokens: Sequence[tuple[str, float]]
) -> float | None:
    """The product of the probabilities of the tokens that spell `answer`.

    Of its occurrences in the text the last one before the confidence line counts: reasoning may
    name the answer before it is given. None where the tokens do not spell the text (an endpoint
    that hides its thinking returns tokens of both).
    """
    spelt = "".join(token for token, _ in tokens)
    if spelt.rstrip() != text.rstrip():
        return None
    start = text.rfind(answer, 0, parse(text).start)
    if start < 0:
        return None
    stop = start + len(answer)
    # A token counts if any character of it belongs to the answer: tokens may join a blank or a
    # tag with the answer's first character.
    position, total = 0, 0.0
    for token, log_prob in tokens:
        if position < stop and position + len(token) > start:
            total += log_prob
        position += len(token)
    return math.exp(min(total, 0.0))


def _storable(text: str) -> str:
    """The text without lone surrogates, which JSON could carry but UTF-8 can't."""
    return text.encode("utf-8", "replace").decode("utf-8")
