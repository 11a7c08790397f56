"""Revision at token level, over several tokenizer families."""

from __future__ import annotations

from itertools import compress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caopd_verl.core.confidence import parse, render
from caopd_verl.core.revise import revise_response, revise_text
from caopd_verl.core.tokens import decode, find_eot_id
from caopd_verl.errors import RevisionError

from .conftest import FAMILIES, get_tokenizer
from .revising import BODY, LIMIT, marked_text, revise, sample, squeeze

BODY_PIECES = [
    "the acid",
    " base",
    ".",
    "\n",
    "\n\n",
    " ",
    "<answer>B</answer>",
    "confidence: 1",
    "12",
]
STATED = [
    "\nConfidence: 0.9",
    "\n**Confidence:** 90%",
    "Confidence: 0.5\n",
    " \n confidence: .8",
    "",
    "\n",
]


def check(tokenizer, ids, revision, value=0.62):
    """What holds for every revision that ends a turn; returns its text."""
    n_kept, n_tokens = revision.n_kept, len(revision.token_ids)
    eot_id = find_eot_id(tokenizer)
    assert list(revision.token_ids[:n_kept]) == list(ids[:n_kept])
    assert revision.token_ids.count(eot_id) == 1 and revision.token_ids[-1] == eot_id
    assert revision.eot_mask == (False,) * (n_tokens - 1) + (True,)
    assert len(revision.confidence_mask) == len(revision.value_mask) == n_tokens
    assert all(compress(revision.confidence_mask, revision.value_mask))
    assert not any(revision.confidence_mask[:n_kept]) and not revision.confidence_mask[-1]
    text = decode(tokenizer, revision.token_ids)
    parsed = parse(text)
    assert parsed.status == "ok" and render(parsed.value) == render(value)
    assert marked_text(tokenizer, revision, revision.confidence_mask) == squeeze(render(value))
    assert marked_text(tokenizer, revision, revision.value_mask) == f"{value:.2f}"
    return text


@pytest.mark.parametrize("value", [0.0, 0.125, 0.625, 1.0])
@pytest.mark.parametrize(
    "stated", ["\nConfidence: 0.95", "\n\n**Confidence:** 90%\n", "\nconfidence: high", ""]
)
def test_the_ids_in_front_of_the_segment_are_the_sampled_ones(tokenizer, stated, value):
    """Encoding the text again could cut the reasoning into tokens that were never sampled."""
    ids = sample(tokenizer, BODY + stated)
    revision = revise(tokenizer, ids, value)
    text = check(tokenizer, ids, revision, value)
    assert revision.status == ("replaced" if stated else "appended")
    body_text = decode(tokenizer, sample(tokenizer, BODY))
    assert squeeze(text) == squeeze(body_text + render(value))
    kept_text = decode(tokenizer, revision.token_ids[: revision.n_kept])
    assert squeeze(kept_text) == squeeze(body_text)


def test_the_word_confidence_in_the_reasoning_does_not_cut_the_answer(tokenizer):
    body = "a confidence: high.\nconfidence: low so\n<answer>A</answer>"
    ids = sample(tokenizer, body + "\nConfidence: 0.95")
    text = check(tokenizer, ids, revise(tokenizer, ids))
    assert squeeze(text) == squeeze(body) + "Confidence:0.62"


@pytest.mark.parametrize("family", ["smollm2", "byte_bpe"])
@pytest.mark.parametrize(
    "form",
    ["**Confidence:** 0.9", "<confidence>0.9</confidence>", "confidence: .85", "Confidence 0.9"],
)
def test_two_confidences_never_remain(load_tokenizer, family, form):
    tokenizer = load_tokenizer(family)
    revision = revise(tokenizer, sample(tokenizer, f"{BODY}\n{form}"))
    assert decode(tokenizer, revision.token_ids) == f"{BODY}\nConfidence: 0.62"


def test_truncated_responses_are_flagged_and_untouched(tokenizer):
    """A confidence behind half an answer would teach the student to stop early and state it."""
    ids = sample(tokenizer, BODY + "\nConfidence: 0.9", end=False)
    revision = revise(tokenizer, ids, limit=len(ids))
    assert revision.truncated and revision.status == "truncated"
    assert list(revision.token_ids) == ids and revision.n_kept == len(ids)
    assert not any(revision.confidence_mask) and not any(revision.eot_mask)
    assert revision.stated.value == 0.9


def test_the_end_of_turn_stands_once_however_often_it_was_sampled(tokenizer):
    eot_id = find_eot_id(tokenizer)
    revision = revise(tokenizer, [*sample(tokenizer, BODY, end=False), eot_id, eot_id])
    assert revision.token_ids.count(eot_id) == 1


def test_other_stop_tokens_become_the_end_of_turn(load_tokenizer):
    """Without the token that ends the chat's turns, the model would go on after the number."""
    tokenizer = load_tokenizer("byte_bpe")
    eos_id, eot_id = tokenizer.eos_token_id, find_eot_id(tokenizer)
    assert eos_id != eot_id
    ids = [*sample(tokenizer, BODY, end=False), eos_id]
    assert revise(tokenizer, ids).truncated
    revision = revise(tokenizer, ids, stop_ids=[eos_id])
    assert not revision.truncated
    assert revision.token_ids[-1] == eot_id and eos_id not in revision.token_ids
    assert revise(tokenizer, [*ids, eot_id], stop_ids=[eos_id]) == revision


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.lists(st.sampled_from(BODY_PIECES)).map("".join),
    stated=st.sampled_from(STATED),
    value=st.integers(0, 8).map(lambda n: n / 8),
)
def test_tokens_and_text_are_spliced_alike(family, body, stated, value):
    """A demonstration is revised as text, the trajectory as tokens: both must say the same."""
    tokenizer = get_tokenizer(family)
    ids = sample(tokenizer, body + stated)
    revision = revise(tokenizer, ids, value)
    check(tokenizer, ids, revision, value)
    spliced = revise_text(decode(tokenizer, ids), value)
    assert squeeze(decode(tokenizer, revision.token_ids)) == squeeze(spliced)
    assert parse(spliced).value == float(f"{value:.2f}")


@settings(max_examples=80, deadline=None)
@given(
    body=st.text(max_size=40),
    stated=st.sampled_from(["\nConfidence: 0.9", "\n\n**Confidence:** 90%.", ""]),
)
def test_any_unicode_in_the_reasoning_stays(body, stated):
    tokenizer = get_tokenizer("byte_bpe")
    ids = sample(tokenizer, body + stated)
    revision = revise(tokenizer, ids)
    check(tokenizer, ids, revision)
    assert decode(tokenizer, revision.token_ids) == revise_text(decode(tokenizer, ids), 0.62)


def test_over_the_limit_reasoning_goes_and_the_answer_stays(tokenizer):
    body = "the acid reacts with a base so we add\n" * 5 + "<answer>B</answer>"
    ids = sample(tokenizer, body)
    revision = revise(tokenizer, ids, limit=len(ids))
    text = check(tokenizer, ids, revision)
    assert revision.status == "trimmed" and len(revision.token_ids) == len(ids)
    assert squeeze(text).endswith("<answer>B</answer>Confidence:0.62")


def test_every_tool_call_survives_trimming(load_tokenizer):
    tokenizer = load_tokenizer("smollm2")
    thought = "Thought: the acid reacts with a base so we add numbers and so on\n"
    calls = 'Action: add\nAction Input: {"a": 1}\nAction: sub\nAction Input: {"a": 2}'
    ids = sample(tokenizer, thought + calls)
    revision = revise(tokenizer, ids, limit=len(ids))
    assert decode(tokenizer, revision.token_ids).endswith(calls + "\nConfidence: 0.62")


def test_limits_that_cannot_hold_the_answer_are_an_error(tokenizer):
    ids = sample(tokenizer, "<answer>B</answer>")
    with pytest.raises(RevisionError, match="do not fit"):
        revise(tokenizer, ids, limit=len(ids))
    with pytest.raises(RevisionError, match="at most 3"):
        revise(tokenizer, ids, limit=3)


def test_a_pad_id_equal_to_the_end_of_turn_changes_nothing(load_tokenizer):
    tokenizer = load_tokenizer("byte_bpe")
    eos_id = tokenizer.pad_token_id
    assert eos_id == tokenizer.eos_token_id
    ids = [*sample(tokenizer, BODY + "\nConfidence: 0.9", end=False), eos_id]
    kwargs = {"tokenizer": tokenizer, "eot_id": eos_id, "max_response_tokens": LIMIT}
    bare = revise_response(ids, 0.5, **kwargs)
    padded = revise_response([*ids, eos_id, eos_id], 0.5, **kwargs)
    assert bare == padded and bare.token_ids.count(eos_id) == 1


def test_an_empty_response_gets_the_line_alone(tokenizer):
    revision = revise(tokenizer, [find_eot_id(tokenizer)])
    assert revision.n_kept == 0
    assert squeeze(check(tokenizer, [], revision)) == "Confidence:0.62"
    assert revise(tokenizer, []).truncated


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_values_that_are_no_probability_are_an_error(load_tokenizer, value):
    tokenizer = load_tokenizer("byte_bpe")
    with pytest.raises(RevisionError, match=r"\[0, 1\]"):
        revise(tokenizer, sample(tokenizer, BODY), value)
    with pytest.raises(RevisionError, match=r"\[0, 1\]"):
        revise_text(BODY, value)
