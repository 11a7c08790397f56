"""The body of a chat completion, read defensively: what is not there is None, what is no completion is an error."""

from __future__ import annotations

import json
import math
from typing import Any

from caopd_verl.evaluation.readouts.approximate import TokenStep, approximate_expected
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.rows.row import Generation

_SHOWN = 120


class BadBody(Exception):
    """The body is no chat completion."""


def parse_completion(
    data: bytes, *, decoding: Decoding, latency_s: float | None, attempts: int | None
) -> Generation:
    """The first choice of a chat completion, which was sampled as `decoding` says.

    Raises:
        BadBody: no JSON, an error object, or no choices.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise BadBody(f"no JSON: {_show(data)}") from None
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BadBody(f"no choices: {_show(data)}") from None
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    steps = _steps(choice.get("logprobs"))
    return Generation(
        text=text,
        truncated=choice.get("finish_reason") == "length",
        n_prompt_tokens=_count(usage.get("prompt_tokens")),
        n_tokens=_count(usage.get("completion_tokens")),
        latency_s=latency_s,
        attempts=attempts,
        expected=approximate_expected(text, steps, decoding),
        token_logprobs=tuple((step.text, step.log_prob) for step in steps) or None,
    )


def _text(content: Any) -> str:
    """A message's text; empty where the model returned none (a refusal, or a thought that hit the limit)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _steps(logprobs: Any) -> list[TokenStep]:
    """The tokens with their alternatives; an empty list where none were given or one of them can't be read."""
    try:
        return [
            TokenStep(
                str(entry["token"]),
                _log_prob(entry["logprob"]),
                {
                    str(other["token"]): _log_prob(other["logprob"])
                    for other in entry.get("top_logprobs") or ()
                },
            )
            for entry in logprobs["content"]
        ]
    except (KeyError, TypeError, ValueError):
        return []


def _log_prob(value: Any) -> float:
    number = float(value)
    if math.isnan(number):
        raise ValueError("NaN")
    return min(number, 0.0)


def _show(data: bytes) -> str:
    return " ".join(data[:_SHOWN].decode("utf-8", "replace").split()) or "(empty)"
