"""What revision needs of a tokenizer: the confidence segment as token ids, and the chat's end-of-turn token.

A segment is encoded behind a short anchor text, so that it comes out as in the middle of a response (no dummy blank of
SentencePiece in front), and decoded again: a tokenizer that cannot write a confidence line is refused with a clear
error. Which tokens carry the number comes from character offsets, not from a fixed count (T7).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from caopd_verl.core.confidence import parse, render
from caopd_verl.errors import TokenizerError

_ANCHORS = ("x", "a", "e", "1", "0", ")")


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
    """A confidence segment as token ids.

    Attributes:
        token_ids: the ids, without end-of-turn.
        confidence_mask: True for the tokens of the segment; False for re-encoded answer text in front of it.
        value_mask: True for the tokens that carry characters of the number (T7: from offsets, not from a fixed count).
    """

    token_ids: tuple[int, ...]
    confidence_mask: tuple[bool, ...]
    value_mask: tuple[bool, ...]


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`, without special tokens and without cleaning up."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encode_segment(
    value: float, tokenizer: Tokenizer, *, lead: str = "\n", remainder: str = ""
) -> Segment:
    """The ids of `remainder + lead + "Confidence: 0.62"`, encoded as in the middle of a text; cached without remainder.

    Raises:
        RevisionError: `value` outside [0, 1].
        TokenizerError: what the tokenizer writes cannot be read back as a confidence line with this value, e.g. because
            it drops line breaks, as BERT's does.
    """
    line = render(value)
    if remainder:
        return _build_segment(line, tokenizer, lead, remainder)
    try:
        cache = _SEGMENTS.setdefault(tokenizer, {})
    except TypeError:  # a tokenizer that cannot be referenced weakly or hashed
        return _build_segment(line, tokenizer, lead, remainder)
    if (line, lead) not in cache:
        cache[line, lead] = _build_segment(line, tokenizer, lead, remainder)
    return cache[line, lead]


_SEGMENTS: weakref.WeakKeyDictionary[Any, dict[tuple[str, str], Segment]] = (
    weakref.WeakKeyDictionary()
)


def find_eot_id(tokenizer: Tokenizer) -> int:
    """The id that ends an assistant turn in the chat template (T6), e.g. `<|im_end|>`; may differ from `eos_token_id`.

    Raises:
        TokenizerError: no chat template, or the template ends an assistant turn with no special token.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(
            "the tokenizer has no chat template",
            expected="a tokenizer with a chat template",
            fix="use an instruct model, or set tokenizer.chat_template",
        )
    mark = "caopd answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    at = text.rfind(mark)
    tail = text[at + len(mark) :] if at >= 0 else ""
    added = getattr(
        tokenizer, "added_tokens_decoder", {}
    )  # id -> AddedToken; a template may end turns with one
    special = {
        *tokenizer.all_special_ids,
        *(i for i, token in added.items() if getattr(token, "special", True)),
    }
    for token in tokenizer.encode(tail, add_special_tokens=False) if tail.strip() else []:
        if token in special:
            return token
    raise TokenizerError(
        f"the chat template ends an assistant turn with {tail!r}, which holds no special token",
        expected="an end-of-turn token such as <|im_end|> right behind the assistant's text",
        fix="declare the end-of-turn token as a special token of the tokenizer",
    )


def _build_segment(line: str, tokenizer: Tokenizer, lead: str, remainder: str) -> Segment:
    anchor, anchor_ids, ids = _encode_behind_anchor(
        remainder + lead + line, tokenizer, newline=not lead
    )
    lossless = decode(tokenizer, [*anchor_ids, *ids])
    parsed = parse(lossless)
    written = anchor + remainder + lead + line
    if (
        parsed.value is None
        or render(parsed.value) != line
        or parsed.value_start is None
        or parsed.value_end is None
    ):
        raise TokenizerError(
            f"the tokenizer cannot write the confidence line: {written!r} comes back as {lossless!r}",
            expected="a tokenizer that keeps line breaks, digits and the decimal point",
            fix="use a tokenizer without lossy normalisation (BERT-like ones drop line breaks)",
        )
    label = lossless.rfind(
        lossless[parsed.start : parsed.value_start].strip(), 0, parsed.value_start
    )
    first = len(
        (lossless[:label] if remainder else lossless[: len(decode(tokenizer, anchor_ids))]).rstrip()
    )
    ends = [len(decode(tokenizer, [*anchor_ids, *ids[: n + 1]])) for n in range(len(ids))]
    starts = [len(decode(tokenizer, anchor_ids)), *ends[:-1]]
    return Segment(
        token_ids=tuple(ids),
        confidence_mask=tuple(not remainder or end > first for end in ends),
        value_mask=tuple(
            begin < parsed.value_end and end > parsed.value_start
            for begin, end in zip(starts, ends, strict=True)
        ),
    )


def _encode_behind_anchor(
    text: str, tokenizer: Tokenizer, *, newline: bool
) -> tuple[str, list[int], list[int]]:
    """Encode `text` as it would be encoded in the middle of a text (no dummy blank of SentencePiece in front)."""

    def encode(s: str) -> list[int]:
        return list(tokenizer.encode(s, add_special_tokens=False))

    known = [
        a for a in _ANCHORS if a in decode(tokenizer, encode(a))
    ]  # others are unknown tokens, not text
    if not known:
        raise TokenizerError(
            "the tokenizer cannot write a single letter or digit", expected=f"one of {_ANCHORS}"
        )
    anchors = [a + ("\n" if newline else "") for a in known]
    for anchor in anchors:
        before, both = encode(anchor), encode(anchor + text)
        if before and both[: len(before)] == before and len(both) > len(before):
            return anchor, before, both[len(before) :]
    return anchors[0], encode(anchors[0]), encode(text)
