"""The confidence line as token ids, and the end-of-turn token, over several tokenizer families."""

from __future__ import annotations

from itertools import compress

import pytest

from caopd_verl.core.tokens import decode, encode_segment, find_eot_id, tokens_up_to
from caopd_verl.errors import RevisionError, TokenizerError

from .conftest import FAMILIES, build_byte_bpe


def squeeze(text):
    return "".join(text.split())


@pytest.mark.parametrize("family", [*FAMILIES, "crossing"])
def test_a_segment_spells_the_line_and_marks_its_number(load_tokenizer, family):
    tokenizer = load_tokenizer(family)
    segment = encode_segment(0.12, tokenizer)
    assert squeeze(decode(tokenizer, segment.token_ids)) == "Confidence:0.12"
    assert all(segment.confidence_mask)
    number_ids = list(compress(segment.token_ids, segment.value_mask))
    assert squeeze(decode(tokenizer, number_ids)) == "0.12"


@pytest.mark.parametrize("family", ["smollm2", "byte_bpe"])
def test_the_blank_in_front_of_the_number_is_no_part_of_it(load_tokenizer, family):
    tokenizer = load_tokenizer(family)
    segment = encode_segment(0.12, tokenizer)
    number_ids = list(compress(segment.token_ids, segment.value_mask))
    assert decode(tokenizer, number_ids) == "0.12"


def test_the_numbers_tokens_are_found_by_characters_not_counted(load_tokenizer):
    """Digits are single tokens in one tokenizer and merge in another, so no count fits both."""
    counts = set()
    for family in FAMILIES:
        segment = encode_segment(0.12, load_tokenizer(family))
        counts.add(sum(segment.value_mask))
    assert len(counts) > 1, f"families should cut numbers differently: {counts}"


def test_text_that_is_encoded_again_is_no_confidence(load_tokenizer):
    tokenizer = load_tokenizer("smollm2")
    segment = encode_segment(0.62, tokenizer, lead="\n", remainder="the base.")
    confidence_ids = list(compress(segment.token_ids, segment.confidence_mask))
    assert decode(tokenizer, segment.token_ids) == "the base.\nConfidence: 0.62"
    assert squeeze(decode(tokenizer, confidence_ids)) == "Confidence:0.62"


def test_segments_are_kept_for_each_value_and_lead(load_tokenizer):
    tokenizer = load_tokenizer("byte_bpe")
    segment = encode_segment(0.5, tokenizer)
    assert encode_segment(0.5, tokenizer) is segment
    assert encode_segment(0.25, tokenizer).token_ids != segment.token_ids
    assert encode_segment(0.5, tokenizer, lead="").token_ids != segment.token_ids


def test_a_tokenizer_that_drops_line_breaks_is_refused(load_tokenizer):
    with pytest.raises(TokenizerError, match="line breaks"):
        encode_segment(0.5, load_tokenizer("bert"))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_values_that_are_no_probability_are_an_error(load_tokenizer, value):
    with pytest.raises(RevisionError, match=r"\[0, 1\]"):
        encode_segment(value, load_tokenizer("byte_bpe"))


def test_the_end_of_turn_is_the_chat_templates_not_the_eos_token(tokenizer):
    eot_id = find_eot_id(tokenizer)
    assert tokenizer.convert_ids_to_tokens(eot_id) == "<|im_end|>"


def test_an_added_token_ends_a_turn_too():
    """Some chat models add the token that ends a turn without declaring it as special."""
    from transformers import AddedToken

    tokenizer = build_byte_bpe()
    tokenizer.add_tokens([AddedToken("<end>", special=True)])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<end>' }}{% endfor %}"
    assert find_eot_id(tokenizer) == tokenizer.convert_tokens_to_ids("<end>")


def test_the_end_of_turn_is_read_behind_the_answer_and_not_behind_the_question():
    """Some templates end a user's turn with a token of its own, or repeat the conversation."""
    tokenizer = build_byte_bpe()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '<|im_start|>' }}{% endfor %}"
        "{{ messages[-1]['content'] + '<|im_end|>' }}"
    )
    assert find_eot_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_no_template_or_no_end_of_turn_is_an_error():
    tokenizer = build_byte_bpe()
    tokenizer.chat_template = None
    with pytest.raises(TokenizerError, match="no chat template"):
        find_eot_id(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"
    with pytest.raises(TokenizerError, match="no special token"):
        find_eot_id(tokenizer)


@pytest.mark.parametrize(("position", "count"), [(0, 0), (1, 0), (3, 1), (5, 1), (6, 2), (99, 3)])
def test_tokens_up_to_a_position_are_the_most_that_fit(position, count):
    lengths = [0, 3, 6, 7]
    found = tokens_up_to(position, low=0, high=4, text_length=lambda n: lengths[n])
    assert found == count
