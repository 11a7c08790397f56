"""The expected confidence: the mean of the model's own distribution over 0.00, 0.01, ..., 1.00.

A stated confidence is one draw; this is the mean of what it is drawn from, given the response so
far (`Confidence: ` is the end of the prefix). It is exact over the 101 strings, for any tokenizer:
their token sequences form a tree whose inner nodes (16 where digits are tokens of their own) are
single-token continuations of one cached prefix, all asked for in one call.

    ""  -> 0 | 1        "0"  -> .         "0."  -> 0 ... 9      "0.6" -> 0 ... 9

`mass` says how much probability the 101 strings hold. With a low mass (a model that writes `0.9` or
`90%`) the value describes a corner of the distribution: report the mass beside it.

Two means come from one reading: `value` over what decoding draws from (its temperature and top-p,
`decoding`), which is what the stated number is on average; and `value_t1` over the model's
distribution at temperature 1. Both read the same verbalised distribution as the stated confidence,
so they are reported beside it, never instead of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caopd_verl.core.tokens import Tokenizer
from caopd_verl.errors import DataError
from caopd_verl.evaluation.readouts.decoding import Decoding, decoded_weights
from caopd_verl.evaluation.readouts.next_token import (
    LogProbs,
    NextTokenLogProbs,
    ask_model,
    log_probs_of,
)
from caopd_verl.evaluation.readouts.number_strings import (
    VALUES,
    Cache,
    Tokens,
    string_tokens,
    value_prefix,
)
from caopd_verl.evaluation.readouts.readout import EXACT, Readout


def expected_readouts(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    model: NextTokenLogProbs,
    tokenizer: Tokenizer,
    decoding: Decoding,
    max_sequences: int | None = None,
) -> list[Readout]:
    """For each response its expected confidence, or the reason why there is none.

    Args:
        prompts: token ids, generation header included.
        responses: token ids, one response a prompt.
        model, tokenizer, decoding, max_sequences: as in `expected_confidences`.

    Raises:
        TokenizerError, DataError: as `expected_confidences`.
    """
    places = [value_prefix(ids, tokenizer) for ids in responses]
    prefixes: list[list[int]] = []
    leads: list[str] = []
    for prompt, place in zip(prompts, places, strict=True):
        if place.ids is not None:
            prefixes.append([*prompt, *place.ids])
            leads.append(place.lead)
    found = expected_confidences(
        model,
        prefixes,
        leads,
        tokenizer=tokenizer,
        decoding=decoding,
        max_sequences=max_sequences,
    )
    results = iter(found)
    readouts = []
    for place in places:
        if place.ids is None:
            readouts.append(Readout(reason=place.reason))
        else:
            readouts.append(next(results))
    return readouts


def expected_confidences(
    model: NextTokenLogProbs,
    prefixes: Sequence[Sequence[int]],
    leads: Sequence[str],
    *,
    tokenizer: Tokenizer,
    decoding: Decoding,
    max_sequences: int | None = None,
) -> list[Readout]:
    """The expected confidence after each prefix, the nodes of all trees in one call of the model.

    Args:
        model: called with full sequences: a prefix and what continues it.
        prefixes: prompt and response tokens up to (not including) the number.
        leads: for each prefix the text between it and the number (`ValuePrefix.lead`).
        tokenizer: the model's.
        decoding: how the responses were sampled. The log-probs are at temperature 1 all the same.
        max_sequences: most sequences in one call, so that they fit into memory; None: all at once.

    Raises:
        TokenizerError: the tokenizer can't continue a prefix with one of the strings.
        DataError: what the model returns has another length or is no log-probabilities.
    """
    if len(leads) != len(prefixes):
        raise DataError(
            f"{len(prefixes)} prefixes but {len(leads)} leads", expected="one lead a prefix"
        )
    cache: Cache = {}
    readings: list[_Reading] = []
    wanted: set[int] = set()
    for prefix, lead in zip(prefixes, leads, strict=True):
        strings = string_tokens(prefix, tokenizer=tokenizer, lead=lead, cache=cache)
        readings.append(_Reading(list(prefix), _Tree.of(strings)))
        wanted.update(*strings)
    asked = [(reading, node) for reading in readings for node in reading.tree.children]
    size = max_sequences or max(1, len(asked))
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        sequences = [reading.prefix + list(node) for reading, node in part]
        rows = ask_model(model, sequences, sorted(wanted))
        for (reading, node), row in zip(part, rows, strict=True):
            reading.take(node, row)
    return [reading.readout(decoding) for reading in readings]


@dataclass(frozen=True)
class _Tree:
    """The token sequences of the 101 strings after one prefix.

    Attributes:
        strings: in the order of `VALUES`.
        children: inner node (the tokens so far) -> the tokens that continue it, shortest first.
    """

    strings: list[Tokens]
    children: dict[Tokens, list[int]]

    @classmethod
    def of(cls, strings: list[Tokens]) -> _Tree:
        found: dict[Tokens, dict[int, None]] = {}  # dicts: sets that keep their order
        for tokens in strings:
            for depth, token in enumerate(tokens):
                found.setdefault(tokens[:depth], {})[token] = None
        shortest_first = sorted(found, key=len)
        return cls(strings, {node: list(found[node]) for node in shortest_first})


class _Reading:
    """Log-probabilities with which the model comes to each node of a tree, at temperature 1."""

    def __init__(self, prefix: list[int], tree: _Tree):
        self.prefix, self.tree = prefix, tree
        self.log_probs: dict[Tokens, float] = {(): 0.0}

    def take(self, node: Tokens, row: LogProbs) -> None:
        """Take in the model's row after `node`; a node comes before its children."""
        reached = self.log_probs[node]
        children = self.tree.children[node]
        for token, log_prob in zip(children, log_probs_of(row, children), strict=True):
            child = (*node, token)
            self.log_probs[child] = reached + log_prob

    def readout(self, decoding: Decoding) -> Readout:
        """Both means, once every node was taken in."""
        of_strings = [self.log_probs[tokens] for tokens in self.tree.strings]
        ends = np.array(of_strings)
        top = float(ends.max())
        if top == -math.inf:
            return Readout(mass=0.0, reason="no string from 0.00 to 1.00 has any probability")
        # Relative to the largest: all of them may be too small for a float.
        weights = np.exp(ends - top)
        at_one = float(weights @ np.array(VALUES) / weights.sum())
        value = at_one if decoding.as_model else self._mean_as_decoded(decoding)
        mass = min(float(np.exp(ends).sum()), 1.0)
        return Readout(value, mass, EXACT, value_t1=at_one)

    def _mean_as_decoded(self, decoding: Decoding) -> float:
        """The mean over what decoding draws, token by token from the root."""
        reach: dict[Tokens, float] = {(): 1.0}
        for node, children in self.tree.children.items():
            here = reach.get(node, 0.0)
            if here == 0.0:
                continue  # top-p cut it off, or the model never comes here
            below = [(*node, token) for token in children]
            log_probs = [self.log_probs[child] for child in below]
            chances = decoded_weights(log_probs, decoding)
            for child, chance in zip(below, chances.tolist(), strict=True):
                reach[child] = here * chance
        mean = 0.0
        for tokens, value in zip(self.tree.strings, VALUES, strict=True):
            mean += reach.get(tokens, 0.0) * value
        return mean
