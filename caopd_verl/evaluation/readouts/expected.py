"""The expected confidence: the mean of the model's own distribution over the strings 0.00, 0.01, ..., 1.00.

A sampled confidence is one draw; this is the mean of what it is drawn from, given the response so far
(`Confidence: ` is the end of the prefix). Exact over the 101 strings, for any tokenizer: the strings' token sequences
form a tree whose inner nodes (16 where digits are tokens of their own) are single-token continuations of one cached
prefix, all asked for in one call. `mass` says how much probability the 101 strings hold. With a low mass (a model that
writes `0.9` or `90%`) the value describes a corner of the distribution: report the mass beside it.

Two means come from one reading: `value` over what decoding draws from (its temperature and top-p, `decoding`), which is
what the stated number is on average; and `value_t1` over the model's distribution at temperature 1.

It reads the same verbalised distribution, so it is reported beside the stated confidence, never instead of it.
The model is a callback over token ids, so transformers, vLLM or a table serve alike; no torch here.

Tokenization: a string's tokens are those that the tokenizer gives it after the prefix's own last tokens. Other ways to
spell the same string with the vocabulary are not summed (their probability shows as missing mass).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caopd_verl.core.confidence import LABEL, SEARCH_CHARS, parse
from caopd_verl.errors import DataError, TokenizerError
from caopd_verl.evaluation.readouts.decoding import Decoding, decoded_weights

VALUES: tuple[float, ...] = tuple(i / 100 for i in range(101))
STRINGS: tuple[str, ...] = tuple(f"{i // 100}.{i % 100:02d}" for i in range(101))
# Log-probabilities of the token that follows each of N sequences: for each, a mapping from token id (ids left out have
# probability 0) or an array over the vocabulary, float, natural logarithm. Shape [N, V] as one array will do.
NextTokenLogprobs = Callable[[list[list[int]]], Sequence["Mapping[int, float] | NDArray[Any]"]]
_TOLERANCE = 1e-3  # bf16 log-softmax rows sum to 1 only that well
_FIRST_WINDOW = 32


class TokenizerLike(Protocol):
    """What is needed of a tokenizer; every `transformers` tokenizer has it."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class ValuePrefix:
    """Where the number of the confidence line begins in a response.

    `ids` are the response's tokens before the number, `lead` the text between them and the number (a blank where the
    tokenizer joins it with the first digit). `ids` is None where there is no number to replace; `reason` says why.
    """

    ids: tuple[int, ...] | None
    lead: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class ExpectedConfidence:
    """The result for one prefix.

    `value` is the mean at the sampling's temperature and top-p (at temperature 1 where that was greedy), `value_t1` the
    one at temperature 1, normalised over the 101 strings; both None where no string has any probability. `mass` is the
    probability of the 101 strings at temperature 1, in [0, 1]; `probabilities` that of each string of `STRINGS` there,
    not normalised, float64, shape [101].
    """

    value: float | None
    value_t1: float | None
    mass: float
    probabilities: NDArray[np.float64]


def value_prefix(token_ids: Sequence[int], tokenizer: TokenizerLike) -> ValuePrefix:
    """The tokens of a response before the number of its confidence line (found by `core.confidence.parse`).

    Only the response's tail is decoded, more of it where the line is not found there. A number that is out of range or
    followed by other text serves too; a line without a number does not, nor a response without the line.
    """
    ids = list(token_ids)
    window = _FIRST_WINDOW
    while True:
        start = max(0, len(ids) - window)
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        found = parse(text)
        # A line that starts with the window may only look like a line: look at more of the text.
        anchored = found.value_start is not None and "\n" in text[: found.value_start]
        if start == 0 or anchored or len(text.strip()) > 2 * SEARCH_CHARS:
            break
        window *= 4
    if found.value_start is None:
        return ValuePrefix(None, reason=f"confidence {found.status}: no number to read")
    n_tokens = _tokens_before(ids[start:], found.value_start, tokenizer)
    before = tokenizer.decode(ids[start : start + n_tokens], skip_special_tokens=True)
    return ValuePrefix(tuple(ids[: start + n_tokens]), lead=text[len(before) : found.value_start])


def expected_confidence(
    next_token_logprobs: NextTokenLogprobs,
    prefix_ids: Sequence[int],
    *,
    tokenizer: TokenizerLike,
    decoding: Decoding,
    lead: str | None = None,
) -> ExpectedConfidence:
    """The expected confidence after one prefix; see `expected_confidences`."""
    return expected_confidences(
        next_token_logprobs, [prefix_ids], tokenizer=tokenizer, decoding=decoding, leads=[lead]
    )[0]


def expected_confidences(
    next_token_logprobs: NextTokenLogprobs,
    prefixes: Sequence[Sequence[int]],
    *,
    tokenizer: TokenizerLike,
    decoding: Decoding,
    leads: Sequence[str | None],
    max_sequences: int | None = None,
) -> list[ExpectedConfidence]:
    """The expected confidence after each prefix, all nodes of all trees in one call of the model.

    Args:
        next_token_logprobs: called with full sequences (prefix plus continuation), those of one prefix side by side. It
            may split a call into batches as it likes.
        prefixes: prompt and response tokens up to (not including) the number.
        tokenizer: the model's.
        decoding: how the responses were sampled. The callback's log-probs are at temperature 1 all the same.
        leads: for each prefix, the text between it and the number (`ValuePrefix.lead`); None: one blank where the
            prefix does not end with white space, nothing where it does.
        max_sequences: most sequences in one call, so that [N, V] rows fit into memory; None: all at once.

    Raises:
        TokenizerError: the tokenizer can't continue a prefix with one of the strings.
        DataError: what the callback returns has another length or is no log-probabilities.
    """
    if len(leads) != len(prefixes):
        raise DataError(
            f"{len(prefixes)} prefixes but {len(leads)} leads",
            expected="one lead (or None) a prefix",
        )
    cache: dict[tuple[tuple[int, ...], str], list[tuple[int, ...]]] = {}
    sequences = [
        string_tokens(prefix, tokenizer=tokenizer, lead=lead, cache=cache)
        for prefix, lead in zip(prefixes, leads, strict=True)
    ]
    trees = [_tree(own) for own in sequences]
    nodes = [(i, node, children) for i, tree in enumerate(trees) for node, children in tree.items()]
    log_probs: list[dict[tuple[int, ...], float]] = [{(): 0.0} for _ in prefixes]
    size = max_sequences or max(1, len(nodes))
    for start in range(0, len(nodes), size):
        part = nodes[start : start + size]
        rows = next_token_logprobs([[*prefixes[i], *node] for i, node, _ in part])
        if len(rows) != len(part):
            raise DataError(f"the model callback gave {len(rows)} rows for {len(part)} sequences")
        for (i, node, children), row in zip(part, rows, strict=True):
            values, reached = (
                child_log_probs(row, children),
                log_probs[i][node],
            )  # a node comes before its children
            log_probs[i].update(
                {(*node, c): reached + v for c, v in zip(children, values, strict=True)}
            )
    return [
        _summary(lp, own, tree, decoding)
        for lp, own, tree in zip(log_probs, sequences, trees, strict=True)
    ]


def string_tokens(
    prefix_ids: Sequence[int],
    *,
    tokenizer: TokenizerLike,
    lead: str | None,
    cache: dict[tuple[tuple[int, ...], str], list[tuple[int, ...]]] | None = None,
) -> list[tuple[int, ...]]:
    """The token sequences that continue `prefix_ids` with each of `STRINGS`, in their order.

    The prefix's tail from the label on is encoded together with the string, so that merges across the border come out
    as in running text; the result must begin with the tail's own tokens.

    Raises:
        TokenizerError: no way to continue the prefix with a string.
    """
    tail, text = _label_tail(list(prefix_ids), tokenizer)
    if lead is None:
        lead = "" if text[-1:].isspace() else " "
    key = (tuple(tail), lead)
    if cache is not None and key in cache:
        return cache[key]
    sequences = [_continuation(tail, text, lead + string, tokenizer) for string in STRINGS]
    if cache is not None:
        cache[key] = sequences
    return sequences


def _continuation(
    tail: list[int], text: str, string: str, tokenizer: TokenizerLike
) -> tuple[int, ...]:
    joint = tokenizer.encode(text + string, add_special_tokens=False)
    if joint[: len(tail)] == tail and len(joint) > len(tail):
        return tuple(joint[len(tail) :])
    # The tail may come out otherwise at the beginning of a text (a marker before the first word), or end in a blank
    # that running text would join with the digit: what counts is that tail and rest spell the text.
    alone = tokenizer.encode(text, add_special_tokens=False)
    candidates = [joint[len(alone) :]] if joint[: len(alone)] == alone else []
    for rest in [*candidates, tokenizer.encode(string, add_special_tokens=False)]:
        if rest and tokenizer.decode([*tail, *rest], skip_special_tokens=True) == text + string:
            return tuple(rest)
    raise TokenizerError(
        f"the tokenizer can't continue {text!r} with {string!r}",
        expected="token ids that spell the string after the prefix",
        fix="pass the prefix and lead that value_prefix gives",
    )


def _label_tail(ids: list[int], tokenizer: TokenizerLike) -> tuple[list[int], str]:
    """The shortest tail of up to 16 tokens that holds the label, and its text; the last four tokens if none does."""
    label = LABEL.rstrip(":").lower()
    for n in range(1, min(16, len(ids)) + 1):
        text = tokenizer.decode(ids[-n:], skip_special_tokens=True)
        if label in text.lower():
            return ids[-n:], text
    return ids[-4:], tokenizer.decode(ids[-4:], skip_special_tokens=True)


def _tokens_before(ids: list[int], position: int, tokenizer: TokenizerLike) -> int:
    """How many leading tokens decode to at most `position` characters (the largest number, by bisection)."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.decode(ids[:middle], skip_special_tokens=True)) <= position:
            low = middle
        else:
            high = middle - 1
    return low


def _tree(sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """The inner nodes of the sequences' tree, shortest first, each with the tokens that continue it."""
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for sequence in sequences:
        for depth, token in enumerate(sequence):
            children.setdefault(sequence[:depth], {})[token] = None
    return {node: list(children[node]) for node in sorted(children, key=len)}


def child_log_probs(row: Mapping[int, float] | NDArray[Any], children: list[int]) -> list[float]:
    """The log-probs of some tokens in one row of the callback's.

    Raises:
        DataError: they are no log-probabilities.
    """
    if isinstance(row, Mapping):
        values = [float(row.get(child, -math.inf)) for child in children]
    else:
        values = [float(row[child]) for child in children]
    if (
        any(math.isnan(v) for v in values)
        or sum(math.exp(min(v, 1.0)) for v in values) > 1.0 + _TOLERANCE
    ):
        raise DataError(
            "the model callback did not return log-probabilities",
            expected="natural logarithms of probabilities that sum to 1 over the vocabulary",
            fix="apply a log-softmax to the logits",
        )
    return values


def _summary(
    log_probs: dict[tuple[int, ...], float],
    sequences: list[tuple[int, ...]],
    tree: dict[tuple[int, ...], list[int]],
    decoding: Decoding,
) -> ExpectedConfidence:
    ends = np.array([log_probs[s] for s in sequences])
    probabilities = np.exp(ends)
    top = float(ends.max())
    if top == -math.inf:
        return ExpectedConfidence(None, None, 0.0, probabilities)
    weights = np.exp(ends - top)
    at_one = float(weights @ np.array(VALUES) / weights.sum())
    value = at_one
    if not decoding.as_model:
        drawn = _drawn(log_probs, tree, decoding)
        value = sum(drawn.get(s, 0.0) * v for s, v in zip(sequences, VALUES, strict=True))
    return ExpectedConfidence(value, at_one, min(float(probabilities.sum()), 1.0), probabilities)


def _drawn(
    log_probs: dict[tuple[int, ...], float],
    tree: dict[tuple[int, ...], list[int]],
    decoding: Decoding,
) -> dict[tuple[int, ...], float]:
    """With which probability decoding comes to each node of the tree, token by token from the root."""
    reach: dict[tuple[int, ...], float] = {(): 1.0}
    for node, children in tree.items():
        if reach.get(node, 0.0) == 0.0:
            continue
        below = [(*node, child) for child in children]
        ways = decoded_weights([log_probs[n] for n in below], decoding)
        reach.update({n: reach[node] * float(w) for n, w in zip(below, ways, strict=True)})
    return reach
