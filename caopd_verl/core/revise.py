"""Put p-hat into a sampled completion, at token level (paper 4.2, first replacement).

    sampled:  [ reasoning ... answer ] [ \\nConfidence: 0.95 ] [<eot>]
    revised:  [ the same token ids    ] [ \\nConfidence: 0.62 ] [<eot>]

The sampled ids up to the confidence segment are kept (T2: nothing is decoded and encoded again), only the new segment
is encoded, the chat's end-of-turn token ends it once (T6). Rules:

* Where the segment begins is what `confidence.parse` says; where it says nothing, the segment is appended (T4).
* Blank tokens in front of the segment (newlines) are kept; a newline is added only if the kept text does not end in
  one.
* A token that holds the end of the answer and the newline (`>\\n`, T1) is kept, as all it carries beyond the answer is
  whitespace. A token that also holds a piece of the segment (`.\\nConf`) cannot be kept: it is dropped, and the piece
  of answer that it carried is encoded anew in front of the segment (status `reencoded`); those tokens are no confidence
  tokens.
* A response that does not end in an end-of-turn token was cut by the length limit: it comes back unchanged,
  `truncated`, without segment and end-of-turn, so that nobody trains "stop here and state p-hat" after half an answer
  (T5).
* Over the limit, reasoning goes, never the answer: the missing tokens are cut out right before the line with the first
  answer mark (`<answer>`, `Action:`, `boxed`), or before the last line where there is no mark (status `trimmed`).
  `n_kept` then ends at the cut.
* Everything is measured by lengths, never by comparing ids with the pad id, which may be the end-of-turn id (T21): hand
  over the response's own ids, without padding. Whatever follows the first end-of-turn token is not part of the
  response.

Speed: only a window of the last tokens is decoded, grown until it is certain that it shows what the whole text would;
the boundary token is found by bisection.

    python benchmarks/bench_revise.py
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from caopd_verl.core.confidence import MAX_LINE_CHARS, SEARCH_CHARS, ParsedConfidence, parse, render
from caopd_verl.core.tokens import Segment, Tokenizer, decode, encode_segment, find_eot_id
from caopd_verl.errors import RevisionError

__all__ = [
    "Revision",
    "Segment",
    "Tokenizer",
    "encode_segment",
    "find_eot_id",
    "revise_response",
    "revise_text",
]

FIRST_WINDOW = 48
"""Tokens decoded at first: more than a confidence line, its end-of-turn token and the line above usually take."""

_ANSWER_MARK = re.compile(
    r"<[ ]?answer[ ]?>|^[ \t*]{0,8}action[ \t*]{0,4}:|\\boxed", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class Revision:
    """A revised completion. All masks are as long as `token_ids`.

    Attributes:
        token_ids: the revised response, end-of-turn included.
        n_kept: so many ids at the beginning are those of the sample, in place; sampler log-probs hold for these (T19).
        confidence_mask: True for the tokens of the confidence segment: the line with its label and the newline that was
            encoded with it; end-of-turn not included.
        value_mask: True for the tokens of the number, a subset of `confidence_mask`.
        eot_mask: True for the end-of-turn token, which is the last one (all False where `truncated`).
        status: `replaced`, `reencoded`, `appended`, `trimmed` or `truncated` (module docstring).
        truncated: whether the sample did not end its turn.
        stated: what the sample itself stated; character positions are relative to the decoded window.
    """

    token_ids: tuple[int, ...]
    n_kept: int
    confidence_mask: tuple[bool, ...]
    value_mask: tuple[bool, ...]
    eot_mask: tuple[bool, ...]
    status: str
    truncated: bool
    stated: ParsedConfidence


def revise_response(
    token_ids: Sequence[int],
    value: float,
    *,
    tokenizer: Tokenizer,
    eot_id: int,
    max_response_tokens: int,
    stop_ids: Collection[int] = (),
) -> Revision:
    """Replace, or append, the confidence of one sampled response by `value`.

    Args:
        token_ids: the sampled ids, without padding, end-of-turn included where it was sampled.
        value: p-hat in [0, 1].
        tokenizer: decodes and encodes; special tokens are skipped in decoding.
        eot_id: the chat's end-of-turn id (`find_eot_id`).
        max_response_tokens: limit for the revised response, end-of-turn included.
        stop_ids: further ids at which the sampler stops (a generation config's other eos ids); replaced by `eot_id`.

    Raises:
        RevisionError: `value` outside [0, 1]; answer, segment and end-of-turn do not fit into the limit; the sample is
            longer than the limit.
        TokenizerError: the tokenizer cannot write a confidence line (it drops line breaks or digits).
    """
    ids = (
        tuple(int(i) for i in token_ids)
        if not isinstance(token_ids, (list, tuple))
        else tuple(token_ids)
    )
    if len(ids) > max_response_tokens:
        raise RevisionError(
            f"a sampled response has {len(ids)} tokens",
            expected=f"at most {max_response_tokens}, the response limit",
        )
    end = _end_of_turn(ids, {eot_id, *stop_ids})
    view = _Tail(ids if end is None else ids[:end], tokenizer)
    if end is None:
        none = (False,) * len(ids)
        return Revision(ids, len(ids), none, none, none, "truncated", True, view.parsed)
    body = view.ids
    n_kept, remainder = view.boundary()
    kept_text = view.text_of(n_kept)
    lead = "" if (kept_text + remainder).endswith("\n") or not (kept_text + remainder) else "\n"
    segment = encode_segment(value, tokenizer, lead=lead, remainder=remainder)
    status = ("reencoded" if remainder else "replaced") if view.parsed.found else "appended"
    middle: tuple[int, ...] = ()
    over = n_kept + len(segment.token_ids) + 1 - max_response_tokens
    if over > 0:
        cut = _cut_before_answer(body[:n_kept], over, tokenizer)
        n_kept, middle, status = cut, body[cut + over : n_kept], "trimmed"
    before = (False,) * (n_kept + len(middle))
    revision = Revision(
        token_ids=body[:n_kept] + middle + segment.token_ids + (eot_id,),
        n_kept=n_kept,
        confidence_mask=(*before, *segment.confidence_mask, False),
        value_mask=(*before, *segment.value_mask, False),
        eot_mask=(*before, *(False,) * len(segment.token_ids), True),
        status=status,
        truncated=False,
        stated=view.parsed,
    )
    assert revision.token_ids[:n_kept] == ids[:n_kept], "the kept prefix must be the sample's"
    return revision


def revise_text(text: str, value: float) -> str:
    """The same splice on text, for demonstrations (T17): replace the stated confidence, append where there is none.

    Raises:
        RevisionError: `value` outside [0, 1].
    """
    parsed = parse(text)
    head = text[: parsed.start] if parsed.found else text
    return head + ("" if not head or head.endswith("\n") else "\n") + render(value)


def _end_of_turn(ids: tuple[int, ...], stops: set[int]) -> int | None:
    """Position of the first end-of-turn token, None where there is none."""
    ends = [ids.index(stop) for stop in stops if stop in ids]
    return min(ends, default=None)


class _Tail:
    """The end of a response: a window of its last tokens, decoded, large enough that parsing it is parsing it all."""

    def __init__(self, ids: tuple[int, ...], tokenizer: Tokenizer) -> None:
        self.ids, self._tokenizer = ids, tokenizer
        self._texts: dict[int, str] = {}
        size = FIRST_WINDOW
        while True:
            self._offset = max(0, len(ids) - size)
            self.text = decode(tokenizer, ids[self._offset :])
            self.parsed = parse(self.text)
            if self._offset == 0 or self._certain():
                break
            size *= 4
        self._texts = {len(ids): self.text}

    def _certain(self) -> bool:
        """Whether the whole text would parse alike (the window's first line may be cut)."""
        if not self.parsed.found:
            return len(self.text.rstrip()) > SEARCH_CHARS + MAX_LINE_CHARS
        above = self.text[: self.parsed.start].rstrip()
        return "\n" in above or len(above) > MAX_LINE_CHARS

    def text_of(self, n: int) -> str:
        """Decoded text of the window up to token `n` (absolute count of tokens)."""
        if n not in self._texts:
            self._texts[n] = decode(self._tokenizer, self.ids[self._offset : n])
        return self._texts[n]

    def _fits(self, n: int, start: int) -> bool:
        return len(self.text_of(n)) <= start

    def boundary(self) -> tuple[int, str]:
        """How many ids are kept, and which text of a dropped token is to be encoded anew (module docstring)."""
        if not self.parsed.found:
            return len(self.ids), ""
        start = self.parsed.start
        low, high = self._offset, len(self.ids)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle, start) else (low, middle)
        n = self._settle(low, start)
        text = self.text_of(n)
        carried = self.text[len(text) : start]
        if not carried.strip():
            return n, ""
        after = self.text_of(n + 1)
        if self.text.startswith(after) and not self.text[start : len(after)].strip():
            return n + 1, ""
        return n, carried

    def _settle(self, n: int, start: int) -> int:
        """Largest count near `n` whose text is a true beginning: inside a character of several tokens it is not."""
        for candidate in range(min(n + 4, len(self.ids)), self._offset, -1):
            if self._fits(candidate, start) and self.text.startswith(self.text_of(candidate)):
                return candidate
        return self._offset


def _cut_before_answer(ids: tuple[int, ...], over: int, tokenizer: Tokenizer) -> int:
    """Where to cut `over` tokens out of the reasoning: right before the line that the answer begins in."""
    text = decode(tokenizer, ids)
    mark = _ANSWER_MARK.search(text)
    at = text.rfind("\n", 0, mark.start() if mark else len(text.rstrip())) + 1
    low, high = 0, len(ids)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(decode(tokenizer, ids[:middle])) <= at else (low, middle)
    if low < over:
        raise RevisionError(
            f"answer and confidence line do not fit: {over} tokens too many, only {low} tokens of reasoning to drop",
            expected="a response limit that holds answer, confidence line and end-of-turn token",
            fix="raise the response limit (data.max_response_length)",
        )
    return low - over
