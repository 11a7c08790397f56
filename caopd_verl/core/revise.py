"""Write p-hat over the confidence that a sampled response states, at token level.

    sampled:  [ reasoning and answer ] [ \\nConfidence: 0.95 ] [<eot>]
    revised:  [ the same token ids   ] [ \\nConfidence: 0.62 ] [<eot>]

Source: section 4.2 of arXiv 2604.16830, first replacement. Decoding the response, editing the text
and encoding it again would be shorter, but it may cut the reasoning into other tokens than were
sampled: the response would be off-policy, and the sampler's log-probs would belong to other tokens.
So the sampled ids in front of the segment are kept, only the new segment is encoded, and the chat's
end-of-turn token ends it.

Rules:

* The stated segment is `replaced`. Without one, the new one is `appended`. A newline is added only
  if the text does not end in one; blank lines in front of the segment stay as they were sampled.
* Where one token holds the end of the answer and a piece of the segment, it cannot be kept: the end
  of the answer is encoded anew (`reencoded`; `core.splice` has examples).
* A response without an end-of-turn token was cut at the length limit. It comes back unchanged
  (`truncated`): revised, it would train "stop here and state p-hat" behind half an answer.
* What does not fit into the limit is cut out of the reasoning, never out of the answer: right
  before the line with the first sign of an answer (`<answer>`, `Action:`, `boxed`), or before the
  last line where there is no sign (`trimmed`).
* Ids are never compared with the pad id, which in some tokenizers is the end-of-turn id. Hand over
  the response without padding; what follows the first end-of-turn token is no part of it.

    python benchmarks/bench_revise.py
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from caopd_verl.core.confidence import ParsedConfidence, parse, render
from caopd_verl.core.splice import SpliceStatus, decode_tail, find_splice
from caopd_verl.core.tokens import Segment, Tokenizer, decode, encode_segment, tokens_up_to
from caopd_verl.errors import RevisionError

RevisionStatus = Literal[SpliceStatus, "trimmed", "truncated"]

# Blanks inside of the tag: WordPiece decodes with blanks around punctuation.
_ANSWER_MARK = re.compile(
    r"<[ ]?answer[ ]?>|^[ \t*]{0,8}action[ \t*]{0,4}:|\\boxed", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class Revision:
    """A revised response. All masks are as long as `token_ids`.

    Attributes:
        token_ids: the revised ids, end-of-turn included.
        n_kept: so many ids at the beginning are the sampled ones in their sampled context; the
            sampler's log-probs hold for these alone.
        confidence_mask: True for the confidence line and the newline that was encoded with it, not
            for the end-of-turn token.
        value_mask: True for the tokens of the number, a subset of `confidence_mask`.
        eot_mask: True for the end-of-turn token, the last one; nowhere in a truncated response.
        status: see the module docstring.
        truncated: whether the sample did not end its turn.
        stated: what the sample stated. Its positions count from the beginning of the decoded
            window, not of the response.
    """

    token_ids: tuple[int, ...]
    n_kept: int
    confidence_mask: tuple[bool, ...]
    value_mask: tuple[bool, ...]
    eot_mask: tuple[bool, ...]
    status: RevisionStatus
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
    """Replace, or append, the confidence of one sampled response.

    Args:
        token_ids: the sampled ids, without padding, with the end-of-turn token if it was sampled.
        value: p-hat, in [0, 1].
        tokenizer: decodes and encodes; special tokens are skipped in decoding.
        eot_id: the chat's end-of-turn id (`tokens.find_eot_id`).
        max_response_tokens: limit of the revised response, end-of-turn included.
        stop_ids: further ids at which the sampler stops (the generation config's other eos ids);
            they end a response too, and `eot_id` takes their place.

    Raises:
        RevisionError: `value` is outside [0, 1] (not read where the response is truncated); the
            sample is longer than the limit; answer, segment and end-of-turn do not fit into it.
        TokenizerError: the tokenizer cannot write a confidence line.
    """
    ids = _plain_ids(token_ids)
    if len(ids) > max_response_tokens:
        raise RevisionError(
            f"a sampled response has {len(ids)} tokens",
            expected=f"at most {max_response_tokens}, the response limit",
        )
    end = _end_of_turn(ids, {eot_id, *stop_ids})
    if end is None:
        return _unfinished(ids, tokenizer)
    tail = decode_tail(ids[:end], tokenizer)
    splice = find_splice(tail)
    text_before = tail.text_up_to(splice.n_kept) + splice.remainder
    segment = encode_segment(
        value, tokenizer, lead=_newline_after(text_before), remainder=splice.remainder
    )
    n_kept = splice.n_kept
    kept_ids = ids[:n_kept]
    status: RevisionStatus = splice.status
    n_tokens = n_kept + len(segment.token_ids) + 1  # 1 for the end-of-turn token
    n_excess = n_tokens - max_response_tokens
    if n_excess > 0:
        n_kept = _cut_before_answer(kept_ids, n_excess, tokenizer)
        kept_ids = kept_ids[:n_kept] + kept_ids[n_kept + n_excess :]
        status = "trimmed"
    revision = _join(kept_ids, n_kept, segment, eot_id, status, tail.parsed)
    assert revision.token_ids[:n_kept] == ids[:n_kept], "the kept prefix must be the sample's"
    return revision


def revise_text(text: str, value: float) -> str:
    """The same on text, for the demonstration that the teacher is shown.

    A demonstration is a rollout too: with its own confidence left in it, it would show the teacher
    the very number that is to be replaced.

    Raises:
        RevisionError: `value` is outside [0, 1].
    """
    parsed = parse(text)
    kept = text[: parsed.start] if parsed.found else text
    return kept + _newline_after(kept) + render(value)


def _newline_after(text: str) -> str:
    """What separates the confidence line from the text in front of it."""
    return "" if not text or text.endswith("\n") else "\n"


def _plain_ids(token_ids: Sequence[int]) -> tuple[int, ...]:
    """Python ints, from an array or a tensor too."""
    if isinstance(token_ids, (list, tuple)):
        return tuple(token_ids)  # as they are: converting thousands of ints takes its time
    return tuple(int(token_id) for token_id in token_ids)


def _end_of_turn(ids: tuple[int, ...], stops: set[int]) -> int | None:
    """Position of the first end-of-turn token, None where there is none."""
    ends = [ids.index(stop) for stop in stops if stop in ids]
    return min(ends, default=None)


def _unfinished(ids: tuple[int, ...], tokenizer: Tokenizer) -> Revision:
    """A response that was cut at the limit, as it was sampled."""
    nothing = (False,) * len(ids)
    return Revision(
        token_ids=ids,
        n_kept=len(ids),
        confidence_mask=nothing,
        value_mask=nothing,
        eot_mask=nothing,
        status="truncated",
        truncated=True,
        stated=decode_tail(ids, tokenizer).parsed,
    )


def _join(
    kept_ids: tuple[int, ...],
    n_kept: int,
    segment: Segment,
    eot_id: int,
    status: RevisionStatus,
    stated: ParsedConfidence,
) -> Revision:
    """Kept ids, segment and end-of-turn token in a row, with their masks."""
    before = (False,) * len(kept_ids)
    inside = (False,) * len(segment.token_ids)
    return Revision(
        token_ids=(*kept_ids, *segment.token_ids, eot_id),
        n_kept=n_kept,
        confidence_mask=(*before, *segment.confidence_mask, False),
        value_mask=(*before, *segment.value_mask, False),
        eot_mask=(*before, *inside, True),
        status=status,
        truncated=False,
        stated=stated,
    )


def _cut_before_answer(ids: tuple[int, ...], n_excess: int, tokenizer: Tokenizer) -> int:
    """Where to cut `n_excess` tokens out, so that the cut ends before the answer's first line.

    Raises:
        RevisionError: there are fewer tokens in front of the answer.
    """

    def text_length(n_tokens: int) -> int:
        return len(decode(tokenizer, ids[:n_tokens]))

    text = decode(tokenizer, ids)
    mark = _ANSWER_MARK.search(text)
    in_answer = mark.start() if mark else len(text.rstrip())
    line_start = text.rfind("\n", 0, in_answer) + 1
    n_before = tokens_up_to(line_start, low=0, high=len(ids), text_length=text_length)
    if n_before < n_excess:
        raise RevisionError(
            f"answer and confidence line do not fit: {n_excess} tokens too many, "
            f"only {n_before} tokens of reasoning to drop",
            expected="a response limit that holds answer, confidence line and end-of-turn token",
            fix="raise the response limit (data.max_response_length)",
        )
    return n_before - n_excess
