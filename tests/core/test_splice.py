"""The cut between a response's answer and its confidence segment, where tokens run across it."""

from __future__ import annotations

import pytest

from caopd_verl.core.confidence import parse
from caopd_verl.core.revise import revise_text
from caopd_verl.core.tokens import decode

from .revising import BODY, marked_text, revise, sample


def test_a_token_of_answer_and_newline_is_kept(load_tokenizer):
    """Pre-tokenizers like Qwen's merge `>` with the newline that belongs to the segment."""
    tokenizer = load_tokenizer("byte_bpe")
    ids = sample(tokenizer, BODY + "\nConfidence: 0.95")
    merged = [token for token in ids if decode(tokenizer, [token]).endswith(">\n")]
    assert merged, "the fixture must merge '>' and the newline"
    revision = revise(tokenizer, ids)
    assert revision.token_ids[revision.n_kept - 1] == merged[-1]
    assert decode(tokenizer, revision.token_ids) == BODY + "\nConfidence: 0.62"


@pytest.mark.parametrize("family", ["smollm2", "byte_bpe"])
def test_blank_lines_in_front_of_the_segment_stay_as_sampled(load_tokenizer, family):
    tokenizer = load_tokenizer(family)
    revision = revise(tokenizer, sample(tokenizer, BODY + "\n\n\nConfidence: 0.95\n\n"))
    assert decode(tokenizer, revision.token_ids) == BODY + "\n\n\nConfidence: 0.62"


def test_a_token_of_answer_and_label_is_encoded_anew(load_tokenizer):
    """It cannot be kept, since it carries a piece of the old segment; its `.` must not be lost."""
    tokenizer = load_tokenizer("crossing")
    ids = sample(tokenizer, "the base.\nConfidence: 0.95")
    crossing = tokenizer.convert_tokens_to_ids(".\nConf")
    assert crossing in ids
    revision = revise(tokenizer, ids)
    assert revision.status == "reencoded"
    assert revision.n_kept == ids.index(crossing)
    assert decode(tokenizer, revision.token_ids) == "the base.\nConfidence: 0.62"
    assert marked_text(tokenizer, revision, revision.value_mask) == "0.62"


def test_a_token_of_blanks_and_label_is_dropped(load_tokenizer):
    tokenizer = load_tokenizer("crossing")
    ids = sample(tokenizer, "the base \nConfidence: 0.95")
    assert tokenizer.convert_tokens_to_ids(" \nConfidence:") in ids
    revision = revise(tokenizer, ids)
    assert revision.status == "replaced"
    assert decode(tokenizer, revision.token_ids) == "the base\nConfidence: 0.62"


def test_a_token_of_answer_and_indentation_is_kept(load_tokenizer):
    """It reaches into the segment, but with blanks alone."""
    tokenizer = load_tokenizer("crossing")
    ids = sample(tokenizer, "the base.\n Confidence: 0.95")
    crossing = tokenizer.convert_tokens_to_ids(".\n ")
    revision = revise(tokenizer, ids)
    assert revision.status == "replaced"
    assert revision.token_ids[revision.n_kept - 1] == crossing
    assert decode(tokenizer, revision.token_ids) == "the base.\n \nConfidence: 0.62"


@pytest.mark.parametrize("family", ["byte_bpe", "smollm2"])
@pytest.mark.parametrize(
    "body", ["\u4e2d\u6587", "ok \U0001f642", "\U0001f469\u200d\U0001f52c", "\u00e9"]
)
def test_characters_of_several_tokens_right_before_the_segment(load_tokenizer, family, body):
    tokenizer = load_tokenizer(family)
    revision = revise(tokenizer, sample(tokenizer, body + "\nConfidence: 0.9"))
    assert decode(tokenizer, revision.token_ids) == body + "\nConfidence: 0.62"


def test_no_half_character_is_kept(load_tokenizer):
    """The label shares a token with an emoji's last byte, so the whole emoji is encoded anew."""
    tokenizer = load_tokenizer("byte_crossing")
    ids = sample(tokenizer, "so \U0001f642\nConfidence: 0.9")
    revision = revise(tokenizer, ids)
    assert revision.status == "reencoded" and revision.n_kept == len("so ")
    assert decode(tokenizer, revision.token_ids) == "so \U0001f642\nConfidence: 0.62"


@pytest.mark.parametrize("n_before", range(8))
def test_half_characters_that_decode_to_more_text_do_not_mislead_the_cut(load_tokenizer, n_before):
    """An emoji's first three bytes are three characters of text; the fourth makes them one."""
    tokenizer = load_tokenizer("byte_fallback")
    body = "x" * n_before + "\U0001f642"
    ids = sample(tokenizer, body + "\nConfidence: 0.9")
    revision = revise(tokenizer, ids)
    assert revision.n_kept == n_before + len("\U0001f642".encode()) + len("\n")
    assert decode(tokenizer, revision.token_ids) == body + "\nConfidence: 0.62"


@pytest.mark.parametrize(
    "stated",
    [
        "\nConfidence: 0.9",
        "\nConfidence: 0.9" * 200,
        "\nConfidence: 0.9" + "\n \n" * 200,
        "\n" * 500,
        "",
    ],
)
@pytest.mark.parametrize("body", ["the acid " * 1000, "the acid\n" * 1000, "x" * 3000])
def test_the_window_grows_until_it_shows_what_the_whole_text_would(load_tokenizer, body, stated):
    tokenizer = load_tokenizer("smollm2")
    text = body + "<answer>A</answer>" + stated
    ids = sample(tokenizer, text)
    revision = revise(tokenizer, ids, limit=10**6)
    assert decode(tokenizer, revision.token_ids) == revise_text(decode(tokenizer, ids), 0.62)
    assert revision.stated.status == parse(text).status
