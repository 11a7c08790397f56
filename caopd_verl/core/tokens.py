"""What revision needs of a tokenizer: the confidence line as token ids, and the end-of-turn token.

The line is encoded behind a short anchor text, so that its ids are those it has in the middle of a
response (SentencePiece puts a blank in front of a text that stands alone). It is decoded again and
read: a tokenizer that cannot write a confidence line is refused, instead of training nonsense.

    "x" + "\\nConfidence: 0.62"  ->  [x]   [\\n] [Confidence] [:] [ ] [0] [.] [62]
                                   anchor  the segment

Which of the tokens carry the number comes from character positions. A fixed count would be wrong
for most tokenizers: "0.62" is four tokens where each digit is one, fewer where digits merge.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from caopd_verl.core.confidence import parse, render
from caopd_verl.errors import TokenizerError

# Several, because a small vocabulary may lack some, and a merge with the text behind rules others
# out.
ANCHORS = ("x", "a", "e", "1", "0", ")")


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer (`PreTrainedTokenizerBase` has it all)."""

    chat_template: Any
    all_special_ids: list[int]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Segment:
    """A confidence segment as token ids. Both masks are as long as `token_ids`.

    Attributes:
        token_ids: the ids, without end-of-turn.
        confidence_mask: True for the tokens of the confidence line and the newline in front of it;
            False for answer text that was encoded again with them.
        value_mask: True for the tokens that carry a character of the number.
    """

    token_ids: tuple[int, ...]
    confidence_mask: tuple[bool, ...]
    value_mask: tuple[bool, ...]


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`, without special tokens and without cleaning up blanks."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def tokens_up_to(position: int, *, low: int, high: int, text_length: Callable[[int], int]) -> int:
    """How many leading tokens have a text of at most `position` characters, found by bisection.

    Args:
        position: a number of characters.
        low: a count of tokens known to fit.
        high: a count of tokens known not to, or one more than there are.
        text_length: the characters of the first n tokens' text.

    Returns:
        The largest count in [low, high) that fits. Where a character of several tokens makes
        `text_length` fall by a few in between, it may be a neighbouring count.
    """
    while high - low > 1:
        middle = (low + high) // 2
        if text_length(middle) <= position:
            low = middle
        else:
            high = middle
    return low


_SegmentsByLine = dict[tuple[str, str], Segment]  # by (line, lead)

# Weak, so that a tokenizer that nobody uses any more is not kept alive by its segments.
_SEGMENTS: weakref.WeakKeyDictionary[Any, _SegmentsByLine] = weakref.WeakKeyDictionary()


def encode_segment(
    value: float, tokenizer: Tokenizer, *, lead: str = "\n", remainder: str = ""
) -> Segment:
    """The ids of `remainder + lead + "Confidence: 0.62"`, as in the middle of a text.

    Kept for each tokenizer where there is no remainder: a step asks for the same few lines
    hundreds of times.

    Args:
        value: in [0, 1].
        tokenizer: encodes, and decodes to check.
        lead: what separates the line from the text before it: a newline, or nothing.
        remainder: the end of the answer, where its own token could not be kept.

    Raises:
        RevisionError: `value` is outside [0, 1].
        TokenizerError: what the tokenizer writes does not read as a confidence line with this
            value, for example because it drops line breaks, as BERT's does.
    """
    line = render(value)
    if remainder:
        return _build_segment(line, tokenizer, lead, remainder)
    try:
        kept = _SEGMENTS.setdefault(tokenizer, {})
    except TypeError:  # a tokenizer that cannot be hashed or referenced weakly
        return _build_segment(line, tokenizer, lead, remainder)
    if (line, lead) not in kept:
        kept[line, lead] = _build_segment(line, tokenizer, lead, remainder)
    return kept[line, lead]


def find_eot_id(tokenizer: Tokenizer) -> int:
    """The id that ends an assistant's turn in the chat template, such as that of `<|im_end|>`.

    It is read from the template, because many chat models end a turn with another token than
    their `eos_token_id`. A response that is trained to end with the wrong one goes on after it.

    Raises:
        TokenizerError: there is no chat template, or no special token behind the assistant's text.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(
            "the tokenizer has no chat template",
            expected="a tokenizer with a chat template",
            fix="use an instruct model, or set tokenizer.chat_template",
        )
    ending = _text_behind_answer(tokenizer)
    special_ids = _special_ids(tokenizer)
    ending_ids = tokenizer.encode(ending, add_special_tokens=False) if ending.strip() else []
    for token_id in ending_ids:
        if token_id in special_ids:
            return token_id
    raise TokenizerError(
        f"the chat template ends an assistant turn with {ending!r}, which holds no special token",
        expected="an end-of-turn token such as <|im_end|> right behind the assistant's text",
        fix="declare the end-of-turn token as a special token of the tokenizer",
    )


def _text_behind_answer(tokenizer: Tokenizer) -> str:
    """What the chat template writes behind an assistant's message."""
    answer = "caopd answer"
    messages = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": answer},
    ]
    chat = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    position = chat.rfind(answer)
    return chat[position + len(answer) :] if position >= 0 else ""


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    """Declared special ids, and added tokens marked as special: templates end turns with both."""
    special_ids = set(tokenizer.all_special_ids)
    added = getattr(tokenizer, "added_tokens_decoder", {})  # id -> AddedToken
    for token_id, token in added.items():
        if getattr(token, "special", True):
            special_ids.add(token_id)
    return special_ids


@dataclass(frozen=True)
class _Encoded:
    """A text encoded behind an anchor."""

    anchor: str
    anchor_ids: list[int]
    ids: list[int]


def _build_segment(line: str, tokenizer: Tokenizer, lead: str, remainder: str) -> Segment:
    written = remainder + lead + line
    # Without a lead the line follows a newline, so the anchor has to end in one.
    encoded = _encode_behind_anchor(written, tokenizer, newline=not lead)
    read_back = decode(tokenizer, encoded.anchor_ids + encoded.ids)
    parsed = parse(read_back)
    number_start, number_end = parsed.value_start, parsed.value_end
    is_readable = parsed.value is not None and render(parsed.value) == line
    if not is_readable or number_start is None or number_end is None:
        raise TokenizerError(
            "the tokenizer cannot write the confidence line: "
            f"{encoded.anchor + written!r} comes back as {read_back!r}",
            expected="a tokenizer that keeps line breaks, digits and the decimal point",
            fix="use a tokenizer without lossy normalisation (BERT-like ones drop line breaks)",
        )
    borders = _character_borders(encoded, tokenizer)
    answer_end = len(read_back[: parsed.start].rstrip())
    confidence_mask = []
    value_mask = []
    for begin, end in pairwise(borders):
        # The newline in front of the line belongs to it, so the line begins where the answer ends.
        confidence_mask.append(not remainder or end > answer_end)
        value_mask.append(begin < number_end and end > number_start)
    return Segment(tuple(encoded.ids), tuple(confidence_mask), tuple(value_mask))


def _character_borders(encoded: _Encoded, tokenizer: Tokenizer) -> list[int]:
    """Where the anchor ends in the decoded text, and then each of the n tokens: n + 1 positions."""
    borders = []
    for n_tokens in range(len(encoded.ids) + 1):
        ids = encoded.anchor_ids + encoded.ids[:n_tokens]
        borders.append(len(decode(tokenizer, ids)))
    return borders


def _encode_behind_anchor(text: str, tokenizer: Tokenizer, *, newline: bool) -> _Encoded:
    """Encode `text` behind the first anchor that stays a token sequence of its own.

    If none does, anchor and text are encoded apart; the caller sees by decoding whether that works.

    Args:
        newline: whether the anchor ends in a newline.

    Raises:
        TokenizerError: the tokenizer knows none of the anchors.
    """
    ending = "\n" if newline else ""
    anchors = [letter + ending for letter in _known_anchors(tokenizer)]
    for anchor in anchors:
        anchor_ids = _encode(tokenizer, anchor)
        both_ids = _encode(tokenizer, anchor + text)
        n_anchor = len(anchor_ids)
        stays_apart = both_ids[:n_anchor] == anchor_ids
        if anchor_ids and stays_apart and len(both_ids) > n_anchor:
            return _Encoded(anchor, anchor_ids, both_ids[n_anchor:])
    anchor = anchors[0]
    return _Encoded(anchor, _encode(tokenizer, anchor), _encode(tokenizer, text))


def _known_anchors(tokenizer: Tokenizer) -> list[str]:
    """The anchors that are text to the tokenizer, and not an unknown token."""
    known = []
    for anchor in ANCHORS:
        read_back = decode(tokenizer, _encode(tokenizer, anchor))
        if anchor in read_back:
            known.append(anchor)
    if not known:
        raise TokenizerError(
            "the tokenizer cannot write a single letter or digit", expected=f"one of {ANCHORS}"
        )
    return known


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
