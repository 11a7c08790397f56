"""Revision at token level, over several tokenizer families."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caopd_verl.core.confidence import parse, render
from caopd_verl.core.revise import encode_segment, find_eot_id, revise_response, revise_text
from caopd_verl.errors import RevisionError, TokenizerError

from .conftest import FAMILIES, get_tokenizer

LIMIT = 4096
BODY = "the acid reacts with a base.\n<answer>B</answer>"


def sample(tokenizer, text, *, end=True):
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [*ids, find_eot_id(tokenizer)] if end else ids


def revise(tokenizer, ids, value=0.62, limit=LIMIT, **kwargs):
    eot = find_eot_id(tokenizer)
    return revise_response(
        ids, value, tokenizer=tokenizer, eot_id=eot, max_response_tokens=limit, **kwargs
    )


def decode(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def squeeze(text):
    return "".join(text.split())


def check(tokenizer, ids, revision, value=0.62):
    """What holds for every revision that ends a turn."""
    n = revision.n_kept
    eot = find_eot_id(tokenizer)
    assert list(revision.token_ids[:n]) == list(ids[:n])
    assert revision.token_ids.count(eot) == 1 and revision.token_ids[-1] == eot
    assert revision.eot_mask == (False,) * (len(revision.token_ids) - 1) + (True,)
    assert len(revision.confidence_mask) == len(revision.value_mask) == len(revision.token_ids)
    assert all(c for c, v in zip(revision.confidence_mask, revision.value_mask, strict=True) if v)
    assert not any(revision.confidence_mask[:n]) and not revision.confidence_mask[-1]
    text = decode(tokenizer, revision.token_ids)
    parsed = parse(text)
    assert parsed.status == "ok" and render(parsed.value) == render(value)
    masked = [i for i, m in zip(revision.token_ids, revision.confidence_mask, strict=True) if m]
    assert squeeze(decode(tokenizer, masked)) == squeeze(render(value))
    numbers = [i for i, m in zip(revision.token_ids, revision.value_mask, strict=True) if m]
    assert squeeze(decode(tokenizer, numbers)) == f"{value:.2f}"
    return text


@pytest.mark.parametrize("value", [0.0, 0.125, 0.625, 1.0])
@pytest.mark.parametrize(
    "stated", ["\nConfidence: 0.95", "\n\n**Confidence:** 90%\n", "\nconfidence: high", ""]
)
def test_t2_prefix_ids_are_the_sampled_ones(tokenizer, stated, value):
    ids = sample(tokenizer, BODY + stated)
    revision = revise(tokenizer, ids, value)
    text = check(tokenizer, ids, revision, value)
    assert revision.status == ("replaced" if stated else "appended")
    assert squeeze(text) == squeeze(decode(tokenizer, sample(tokenizer, BODY)) + render(value))
    kept = decode(tokenizer, revision.token_ids[: revision.n_kept])
    assert squeeze(kept) == squeeze(decode(tokenizer, sample(tokenizer, BODY)))


def test_t1_a_token_of_answer_and_newline_is_kept(load_tokenizer):
    tokenizer = load_tokenizer("byte_bpe")
    ids = sample(tokenizer, BODY + "\nConfidence: 0.95")
    merged = [i for i in ids if decode(tokenizer, [i]).endswith(">\n")]
    assert merged, "the fixture must merge '>' and the newline"
    revision = revise(tokenizer, ids)
    assert revision.token_ids[revision.n_kept - 1] == merged[-1]
    assert decode(tokenizer, revision.token_ids) == BODY + "\nConfidence: 0.62"


def test_t1_double_newlines_stay_as_sampled(load_tokenizer):
    for family in ("smollm2", "byte_bpe"):
        tokenizer = load_tokenizer(family)
        revision = revise(tokenizer, sample(tokenizer, BODY + "\n\n\nConfidence: 0.95\n\n"))
        assert decode(tokenizer, revision.token_ids) == BODY + "\n\n\nConfidence: 0.62"


def crossing_tokenizer():
    """One token holds the end of the answer, the newline and a piece of the label; blanks merge with the label too."""
    from tokenizers import Tokenizer, decoders, models

    from .conftest import _wrap

    pieces = [".\nConf", "idence:", " \nConfidence:", *"abcdefghijklmnopqrstuvwxyzC.:0123456789 \n"]
    vocabulary = [("<unk>", -20.0), *((p, -1.0 if len(p) > 1 else -5.0) for p in pieces)]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    inner.decoder = decoders.Fuse()
    return _wrap(inner)


def test_t1_a_token_of_answer_and_label_is_encoded_anew():
    tokenizer = crossing_tokenizer()
    ids = sample(tokenizer, "the base.\nConfidence: 0.95")
    crossing = tokenizer.convert_tokens_to_ids(".\nConf")
    assert crossing in ids
    revision = revise(tokenizer, ids)
    assert revision.status == "reencoded"
    assert revision.n_kept == ids.index(crossing)
    text = decode(tokenizer, revision.token_ids)
    assert text == "the base.\nConfidence: 0.62"
    numbers = [i for i, m in zip(revision.token_ids, revision.value_mask, strict=True) if m]
    assert decode(tokenizer, numbers) == "0.62"


def test_t1_a_token_of_blanks_and_label_is_dropped():
    tokenizer = crossing_tokenizer()
    ids = sample(tokenizer, "the base \nConfidence: 0.95")
    assert tokenizer.convert_tokens_to_ids(" \nConfidence:") in ids
    revision = revise(tokenizer, ids)
    assert revision.status == "replaced"
    assert decode(tokenizer, revision.token_ids) == "the base\nConfidence: 0.62"


def test_t3_early_confidence_word_does_not_cut_the_answer(tokenizer):
    body = "a confidence: high.\nconfidence: low so\n<answer>A</answer>"
    ids = sample(tokenizer, body + "\nConfidence: 0.95")
    revision = revise(tokenizer, ids)
    text = check(tokenizer, ids, revision)
    assert squeeze(text) == squeeze(body) + "Confidence:0.62"


@pytest.mark.parametrize(
    "form",
    ["**Confidence:** 0.9", "<confidence>0.9</confidence>", "confidence: .85", "Confidence 0.9"],
)
def test_t4_two_confidences_never_remain(load_tokenizer, form):
    for family in ("smollm2", "byte_bpe"):
        tokenizer = load_tokenizer(family)
        revision = revise(tokenizer, sample(tokenizer, f"{BODY}\n{form}"))
        assert decode(tokenizer, revision.token_ids) == f"{BODY}\nConfidence: 0.62"


def test_t5_truncated_rollouts_are_flagged_and_untouched(tokenizer):
    ids = sample(tokenizer, BODY + "\nConfidence: 0.9", end=False)
    revision = revise(tokenizer, ids, limit=len(ids))
    assert revision.truncated and revision.status == "truncated"
    assert list(revision.token_ids) == ids and revision.n_kept == len(ids)
    assert not any(revision.confidence_mask) and not any(revision.eot_mask)


def test_t6_end_of_turn_is_the_chat_templates_not_eos(tokenizer):
    eot = find_eot_id(tokenizer)
    assert tokenizer.convert_ids_to_tokens(eot) == "<|im_end|>"
    revision = revise(tokenizer, [*sample(tokenizer, BODY, end=False), eot, eot])
    assert revision.token_ids.count(eot) == 1


def test_t6_other_stop_tokens_become_the_end_of_turn(load_tokenizer):
    tokenizer = load_tokenizer("byte_bpe")
    eos = tokenizer.eos_token_id
    ids = [*sample(tokenizer, BODY, end=False), eos]
    assert eos != find_eot_id(tokenizer)
    assert revise(tokenizer, ids).truncated
    revision = revise(tokenizer, ids, stop_ids=[eos])
    assert (
        not revision.truncated
        and revision.token_ids[-1] == find_eot_id(tokenizer)
        and eos not in revision.token_ids
    )


def test_t6_no_template_or_no_end_of_turn_is_an_error(load_tokenizer):
    from .conftest import build_byte_bpe

    tokenizer = build_byte_bpe()
    tokenizer.chat_template = None
    with pytest.raises(TokenizerError, match="no chat template"):
        find_eot_id(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"
    with pytest.raises(TokenizerError, match="no special token"):
        find_eot_id(tokenizer)


def test_t7_value_tokens_come_from_offsets(load_tokenizer):
    counts = {}
    for family in FAMILIES:
        tokenizer = load_tokenizer(family)
        segment = encode_segment(0.12, tokenizer)
        numbers = [i for i, m in zip(segment.token_ids, segment.value_mask, strict=True) if m]
        assert squeeze(decode(tokenizer, numbers)) == "0.12"
        counts[family] = len(numbers)
    assert len(set(counts.values())) > 1, f"families should cut numbers differently: {counts}"


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.lists(
        st.sampled_from(
            [
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
        )
    ).map("".join),
    stated=st.sampled_from(
        [
            "\nConfidence: 0.9",
            "\n**Confidence:** 90%",
            "Confidence: 0.5\n",
            " \n confidence: .8",
            "",
            "\n",
        ]
    ),
    value=st.integers(0, 8).map(lambda n: n / 8),
)
def test_t17_tokens_and_text_are_spliced_alike(family, body, stated, value):
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
def test_t2_any_unicode_in_the_reasoning_stays(body, stated):
    tokenizer = get_tokenizer("byte_bpe")
    ids = sample(tokenizer, body + stated)
    revision = revise(tokenizer, ids)
    check(tokenizer, ids, revision)
    assert decode(tokenizer, revision.token_ids) == revise_text(decode(tokenizer, ids), 0.62)


def test_t2_characters_of_several_tokens_right_before_the_segment(load_tokenizer):
    for family in ("byte_bpe", "smollm2"):
        tokenizer = load_tokenizer(family)
        for body in ("\u4e2d\u6587", "ok \U0001f642", "\U0001f469\u200d\U0001f52c", "\u00e9"):
            revision = revise(tokenizer, sample(tokenizer, body + "\nConfidence: 0.9"))
            assert decode(tokenizer, revision.token_ids) == body + "\nConfidence: 0.62"


@pytest.mark.parametrize("stated", ["\nConfidence: 0.9", "\nConfidence: 0.9" * 200, "", "\n" * 500])
def test_the_window_grows_until_it_shows_what_the_whole_text_would(load_tokenizer, stated):
    tokenizer = load_tokenizer("smollm2")
    for body in ("the acid " * 1000, "the acid\n" * 1000, "x" * 3000):
        ids = sample(tokenizer, body + "<answer>A</answer>" + stated)
        revision = revise(tokenizer, ids, limit=10**6)
        assert decode(tokenizer, revision.token_ids) == revise_text(decode(tokenizer, ids), 0.62)
        assert revision.stated.status == parse(body + "<answer>A</answer>" + stated).status


def test_t21_over_the_limit_reasoning_goes_and_the_answer_stays(tokenizer):
    body = "the acid reacts with a base so we add\n" * 5 + "<answer>B</answer>"
    ids = sample(tokenizer, body)
    revision = revise(tokenizer, ids, limit=len(ids))
    text = check(tokenizer, ids, revision)
    assert revision.status == "trimmed" and len(revision.token_ids) == len(ids)
    assert squeeze(text).endswith("<answer>B</answer>Confidence:0.62")


def test_t21_every_tool_call_survives_trimming(load_tokenizer):
    tokenizer = load_tokenizer("smollm2")
    calls = 'Action: add\nAction Input: {"a": 1}\nAction: sub\nAction Input: {"a": 2}'
    ids = sample(
        tokenizer, "Thought: the acid reacts with a base so we add numbers and so on\n" + calls
    )
    revision = revise(tokenizer, ids, limit=len(ids))
    assert decode(tokenizer, revision.token_ids).endswith(calls + "\nConfidence: 0.62")


def test_t21_limits_that_cannot_hold_the_answer_are_an_error(tokenizer):
    ids = sample(tokenizer, "<answer>B</answer>")
    with pytest.raises(RevisionError, match="do not fit"):
        revise(tokenizer, ids, limit=len(ids))
    with pytest.raises(RevisionError, match="at most 3"):
        revise(tokenizer, ids, limit=3)


def test_t21_pad_equal_to_end_of_turn_changes_nothing(load_tokenizer):
    tokenizer = load_tokenizer("byte_bpe")
    eos = tokenizer.pad_token_id
    assert eos == tokenizer.eos_token_id
    ids = [*sample(tokenizer, BODY + "\nConfidence: 0.9", end=False), eos]
    kwargs = {"tokenizer": tokenizer, "eot_id": eos, "max_response_tokens": LIMIT}
    bare, padded = (
        revise_response(ids, 0.5, **kwargs),
        revise_response([*ids, eos, eos], 0.5, **kwargs),
    )
    assert bare == padded and bare.token_ids.count(eos) == 1


def test_empty_response_gets_the_line_alone(tokenizer):
    revision = revise(tokenizer, [find_eot_id(tokenizer)])
    assert revision.n_kept == 0
    assert squeeze(check(tokenizer, [], revision)) == "Confidence:0.62"
    assert revise(tokenizer, []).truncated


def test_a_tokenizer_that_drops_line_breaks_is_refused(load_tokenizer):
    tokenizer = load_tokenizer("bert")
    with pytest.raises(TokenizerError, match="line breaks"):
        revise(tokenizer, sample(tokenizer, BODY))


def test_bad_values_are_an_error(load_tokenizer):
    tokenizer = load_tokenizer("byte_bpe")
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(RevisionError):
            revise(tokenizer, sample(tokenizer, BODY), value)
