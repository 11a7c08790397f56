"""The strings 0.00 to 1.00 as tokens, from the place in a response where its number begins.

Two questions about tokens, for any tokenizer: which of a response's tokens stand before the number
of its confidence line (`value_prefix`), and with which tokens does each of the 101 strings go on
from there (`string_tokens`).

A string's tokens are those that the tokenizer gives it after the prefix's own last tokens. Other
ways to spell the same string with the vocabulary are not counted; their probability shows as
missing mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caopd_verl.core.confidence import LABEL
from caopd_verl.core.splice import decode_tail
from caopd_verl.core.tokens import Tokenizer, decode, tokens_up_to
from caopd_verl.errors import TokenizerError

VALUES = tuple(i / 100 for i in range(101))
STRINGS = tuple(f"{value:.2f}" for value in VALUES)

Tokens = tuple[int, ...]
Cache = dict[tuple[Tokens, str], list[Tokens]]

_MOST_LABEL_TOKENS = 16  # a label of single bytes with its colon and blank takes 12
_FEW_TOKENS = 4


@dataclass(frozen=True)
class ValuePrefix:
    """Where the number of the confidence line begins in a response.

    Attributes:
        ids: the response's tokens before the number; None where there is no number to replace.
        lead: the text between them and the number (a blank where the tokenizer joins it with the
            first digit).
        reason: why there is no number.
    """

    ids: Tokens | None
    lead: str = ""
    reason: str | None = None


def value_prefix(token_ids: Sequence[int], tokenizer: Tokenizer) -> ValuePrefix:
    """The tokens of a response before the number of its confidence line.

    A number that is out of range or followed by other text serves too: what the model might have
    said in its place can be read all the same. A line without a number does not, nor a response
    without the line.
    """
    tail = decode_tail(tuple(token_ids), tokenizer)
    start = tail.parsed.value_start
    if start is None:
        return ValuePrefix(None, reason=f"confidence {tail.parsed.status}: no number to read")

    def text_length(n_tokens: int) -> int:
        return len(tail.text_up_to(n_tokens))

    n_before = tokens_up_to(start, low=tail.first, high=len(tail.ids), text_length=text_length)
    lead = tail.text[text_length(n_before) : start]
    return ValuePrefix(tail.ids[:n_before], lead)


def string_tokens(
    prefix_ids: Sequence[int],
    *,
    tokenizer: Tokenizer,
    lead: str,
    cache: Cache | None = None,
) -> list[Tokens]:
    """The token sequences that continue a prefix with each of `STRINGS`, in their order.

    The prefix's tail from the label on is encoded together with the string, so that merges across
    the border come out as in running text; the result must begin with the tail's own tokens.

    Args:
        prefix_ids: prompt and response up to the number.
        tokenizer: the model's.
        lead: the text between the prefix and the number (`ValuePrefix.lead`).
        cache: of earlier results: prefixes that end alike are continued alike.

    Raises:
        TokenizerError: no way to continue the prefix with a string.
    """
    tail, text = _label_tail(list(prefix_ids), tokenizer)
    key = (tuple(tail), lead)
    if cache is not None and key in cache:
        return cache[key]
    sequences = [_continuation(tail, text, lead + string, tokenizer) for string in STRINGS]
    if cache is not None:
        cache[key] = sequences
    return sequences


def _continuation(tail: list[int], text: str, string: str, tokenizer: Tokenizer) -> Tokens:
    """The tokens of `string` behind those of `text`, which are `tail`."""
    joint = tokenizer.encode(text + string, add_special_tokens=False)
    if joint[: len(tail)] == tail and len(joint) > len(tail):
        return tuple(joint[len(tail) :])
    # The tail may come out otherwise at the beginning of a text (a marker before the first word),
    # or end in a blank that running text would join with the digit: what counts is that tail and
    # rest spell the text.
    alone = tokenizer.encode(text, add_special_tokens=False)
    candidates = [tokenizer.encode(string, add_special_tokens=False)]
    if joint[: len(alone)] == alone:
        candidates.insert(0, joint[len(alone) :])
    for rest in candidates:
        if rest and decode(tokenizer, [*tail, *rest]) == text + string:
            return tuple(rest)
    raise TokenizerError(
        f"the tokenizer can't continue {text!r} with {string!r}",
        expected="token ids that spell the string after the prefix",
        fix="pass the prefix and lead that value_prefix gives",
    )


def _label_tail(ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The shortest tail that holds the label, and its text; the last few tokens if none does.

    Short, because each of the 101 strings is encoded behind it, and long enough that the tokens at
    its end are those of running text.
    """
    # Without its colon and in any case: a response may write the line its own way.
    label = LABEL.rstrip(":").lower()
    for n_tokens in range(1, min(_MOST_LABEL_TOKENS, len(ids)) + 1):
        tail = ids[-n_tokens:]
        text = decode(tokenizer, tail)
        if label in text.lower():
            return tail, text
    tail = ids[-_FEW_TOKENS:]
    return tail, decode(tokenizer, tail)
