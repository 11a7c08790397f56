"""The bodies that an endpoint answers with, read defensively.

Of a chat completion, what is not there is None; what is no completion is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from caopd_verl.evaluation.readouts.approximate import TokenStep, approximate_expected
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.rows.row import Generation

_SHOWN = 120  # characters of a body that is no completion
_SHOWN_REFUSAL = 300


class BadBody(Exception):
    """The body is no chat completion."""


def parse_completion(
    data: bytes, *, decoding: Decoding, latency_s: float | None, attempts: int | None
) -> Generation:
    """The first choice of a chat completion.

    Args:
        data: the body.
        decoding: how the response was sampled.
        latency_s: seconds that it took.
        attempts: requests that it took.

    Raises:
        BadBody: no JSON, an error object, or no choices.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):  # the latter from thousands of nested brackets
        raise BadBody(f"no JSON: {_show(data)}") from None
    try:
        choice = body["choices"][0]
        text = _text(choice["message"].get("content"))
        finish_reason, log_probs = choice.get("finish_reason"), choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BadBody(f"no choices: {_show(data)}") from None
    usage = body.get("usage")
    if not isinstance(usage, dict):
        usage = {}
    steps = _steps(log_probs)
    sampled = tuple((step.text, step.log_prob) for step in steps)
    return Generation(
        text=text,
        truncated=finish_reason == "length",
        n_prompt_tokens=_count(usage.get("prompt_tokens")),
        n_tokens=_count(usage.get("completion_tokens")),
        latency_s=latency_s,
        attempts=attempts,
        expected=approximate_expected(text, steps, decoding),
        token_logprobs=sampled or None,
    )


def error_text(content: bytes) -> str:
    """What the body of a refusal says, shortened."""
    try:
        body = json.loads(content)
        error = body.get("error", body) if isinstance(body, dict) else body
        said = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        said = content[:_SHOWN_REFUSAL].decode("utf-8", "replace")
    words = str(said).split()
    return " ".join(words)[:_SHOWN_REFUSAL] or "(no text)"


def _text(content: Any) -> str:
    """A message's text.

    Empty where the model returned none: a refusal, or a thought that hit the limit.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _steps(log_probs: Any) -> list[TokenStep]:
    """The tokens with their alternatives.

    An empty list where none were given or one of them can't be read: a readout of a part of the
    tokens would be wrong without a sign of it.
    """
    try:
        return [_step(entry) for entry in log_probs["content"]]
    except (KeyError, TypeError, ValueError):
        return []


def _step(entry: Mapping[str, Any]) -> TokenStep:
    alternatives = {}
    for other in entry.get("top_logprobs") or ():
        alternatives[str(other["token"])] = _log_prob(other["logprob"])
    return TokenStep(str(entry["token"]), _log_prob(entry["logprob"]), alternatives)


def _log_prob(value: Any) -> float:
    number = float(value)
    if math.isnan(number):
        raise ValueError("NaN")
    return min(number, 0.0)  # rounding may put a probability of 1 a little above


def _show(data: bytes) -> str:
    said = data[:_SHOWN].decode("utf-8", "replace")
    return " ".join(said.split()) or "(empty)"
