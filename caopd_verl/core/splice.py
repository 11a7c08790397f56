"""Where a response is cut between its answer and its confidence segment.

`confidence.parse` says where the segment begins, as a character; tokens need not end there. With
`|` for the beginning of the segment:

    [the] [ base] [.] [\\n] | [Confidence] [:] [ ] [0] [.] [95]    four ids are kept
    [the] [ base] [.\\n] | [Confidence] ...                        three: `.\\n` holds no label
    [the] [ base] [.\\n | Conf] [idence] ...                       two, and `.\\n` is encoded anew

The second is the usual one: Qwen's and GPT-4's pre-tokenizers merge punctuation with the newlines
behind it.

Only a window of the last tokens is decoded, wide enough to show what the whole text would: with
responses of thousands of tokens, decoding them whole would take most of a revision's time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from caopd_verl.core.confidence import MAX_LINE_CHARS, SEARCH_CHARS, ParsedConfidence, parse
from caopd_verl.core.tokens import Tokenizer, decode, tokens_up_to

SpliceStatus = Literal["replaced", "reencoded", "appended"]

FIRST_WINDOW = 48
"""Tokens decoded at first: more than a confidence line and the line above it usually take."""

WINDOW_GROWTH = 4
"""A window that does not show enough is decoded again, so many times as wide."""

MAX_TOKENS_OF_A_CHARACTER = 4  # of a byte-level tokenizer: UTF-8 has up to four bytes a character


@dataclass(frozen=True)
class Tail:
    """The end of a response as text: a window of its last tokens.

    Attributes:
        ids: all ids of the response, without end-of-turn.
        first: position of the window's first token.
        text: the window's text.
        parsed: what it states; the whole text would state the same.
        tokenizer: decodes.
    """

    ids: tuple[int, ...]
    first: int
    text: str
    parsed: ParsedConfidence
    tokenizer: Tokenizer
    _texts: dict[int, str] = field(default_factory=dict)

    def text_up_to(self, n_tokens: int) -> str:
        """The window's text up to a token, counted from the beginning of the response."""
        if n_tokens == len(self.ids):
            return self.text
        if n_tokens not in self._texts:
            window_ids = self.ids[self.first : n_tokens]
            self._texts[n_tokens] = decode(self.tokenizer, window_ids)
        return self._texts[n_tokens]


def decode_tail(ids: tuple[int, ...], tokenizer: Tokenizer) -> Tail:
    """The smallest of the growing windows that shows what the whole response states."""
    n_tokens = FIRST_WINDOW
    while True:
        first = max(0, len(ids) - n_tokens)
        text = decode(tokenizer, ids[first:])
        parsed = parse(text)
        if first == 0 or _shows_enough(text, parsed):
            return Tail(ids, first, text, parsed, tokenizer)
        n_tokens *= WINDOW_GROWTH


def _shows_enough(text: str, parsed: ParsedConfidence) -> bool:
    """Whether a text with more in front of it would parse alike.

    `parse` looks for the label so far back and no farther, and above the segment at one line. The
    window's own first line may be cut, so that it proves nothing unless it is already too long.
    """
    if not parsed.found:
        return len(text.rstrip()) > SEARCH_CHARS + MAX_LINE_CHARS
    above = text[: parsed.start].rstrip()
    return "\n" in above or len(above) > MAX_LINE_CHARS


@dataclass(frozen=True)
class Splice:
    """Where the new segment goes.

    Attributes:
        n_kept: so many ids of the response stay.
        remainder: the answer's end, to be encoded anew, where it shares a token with the segment.
        status: `replaced`, `reencoded` where there is a remainder, `appended` where the response
            has no segment.
    """

    n_kept: int
    remainder: str
    status: SpliceStatus


def find_splice(tail: Tail) -> Splice:
    """The cut between the answer's tokens and the segment's.

    A token across the beginning of the segment is kept where it carries nothing but white space
    beyond the answer. Otherwise it goes, and the end of the answer that goes with it is given back
    as `remainder`.
    """
    if not tail.parsed.found:
        return Splice(len(tail.ids), "", "appended")
    start = tail.parsed.start
    n_before = _tokens_before(start, tail)
    text_before = tail.text_up_to(n_before)
    carried = tail.text[len(text_before) : start]  # by the token across the beginning
    if not carried.strip():
        return Splice(n_before, "", "replaced")
    text_through = tail.text_up_to(n_before + 1)
    beyond = tail.text[start : len(text_through)]
    if tail.text.startswith(text_through) and not beyond.strip():
        return Splice(n_before + 1, "", "replaced")  # beyond the answer it carries blanks alone
    return Splice(n_before, carried, "reencoded")


def _tokens_before(position: int, tail: Tail) -> int:
    """How many ids, at most, spell a beginning of the window that ends at or before `position`.

    Ids that end inside a character of several tokens, such as an emoji, spell replacement
    characters instead of it, so that lengths mislead the bisection by a few tokens. Hence the
    counts near the one found are tried too, the largest first.
    """

    def text_length(n_tokens: int) -> int:
        return len(tail.text_up_to(n_tokens))

    n_ids = len(tail.ids)
    near = tokens_up_to(position, low=tail.first, high=n_ids, text_length=text_length)
    largest = min(near + MAX_TOKENS_OF_A_CHARACTER, n_ids)
    for n_tokens in range(largest, tail.first, -1):
        text = tail.text_up_to(n_tokens)
        if len(text) <= position and tail.text.startswith(text):
            return n_tokens
    return tail.first
