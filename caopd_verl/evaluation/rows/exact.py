"""The exact expected confidence of many responses, by a model that continues token ids.

Training's validation and vLLM's offline class share it: both answer the single-token continuations
of all responses together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.readouts.expected import (
    expected_confidences,
    string_tokens,
    value_prefix,
)
from caopd_verl.evaluation.rows.row import Readout, exact_readout

# Sequences and wanted token ids -> for each sequence the log-probabilities (nats, temperature 1)
# of those ids as its next token.
NextLogProbs = Callable[[list[list[int]], list[int]], Sequence[Mapping[int, float]]]


def exact_readouts(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    next_log_probs: NextLogProbs,
    tokenizer: Any,
    decoding: Decoding,
    max_sequences: int | None = None,
) -> list[Readout]:
    """For each response its expected confidence, or the reason why there is none.

    Args:
        prompts: token ids, generation header included.
        responses: token ids, one response a prompt.
        next_log_probs: the model.
        tokenizer: the model's.
        decoding: how the responses were sampled.
        max_sequences: most sequences in one call of the model; None: all at once.
    """
    places = [value_prefix(ids, tokenizer) for ids in responses]
    prefixes: list[list[int]] = []
    leads: list[str] = []
    for prompt, place in zip(prompts, places, strict=True):
        if place.ids is not None:
            prefixes.append([*prompt, *place.ids])
            leads.append(place.lead)
    wanted = _wanted(prefixes, leads, tokenizer)
    found = expected_confidences(
        lambda sequences: next_log_probs(sequences, wanted),
        prefixes,
        tokenizer=tokenizer,
        decoding=decoding,
        leads=leads,
        max_sequences=max_sequences,
    )
    results = iter(found)
    readouts = []
    for place in places:
        if place.ids is None:
            readouts.append(Readout(reason=place.reason))
        else:
            readouts.append(exact_readout(next(results)))
    return readouts


def _wanted(prefixes: Sequence[list[int]], leads: Sequence[str], tokenizer: Any) -> list[int]:
    """All tokens of the 101 strings: vLLM returns the log-probs of named tokens alone."""
    wanted: set[int] = set()
    cache: dict = {}  # prefixes that end alike are continued alike
    for prefix, lead in zip(prefixes, leads, strict=True):
        for tokens in string_tokens(prefix, tokenizer=tokenizer, lead=lead, cache=cache):
            wanted.update(tokens)
    return sorted(wanted)
