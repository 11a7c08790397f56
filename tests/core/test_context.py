"""The teacher's privileged context."""

from __future__ import annotations

import copy

import pytest

from caopd_verl.core import context
from caopd_verl.core.context import (
    build_attempt_messages,
    build_sdft_messages,
    build_sdpo_messages,
    choose_demonstrations,
    encode_teacher_prompt,
    strip_thinking,
)
from caopd_verl.core.revise import revise_text
from caopd_verl.errors import ConfigError, TeacherContextError

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the question?"}]
DEMO = "we add\n" * 100 + "<answer>B</answer>\nConfidence: 0.62"


def test_sdpo_form_word_for_word():
    before = copy.deepcopy(MESSAGES)
    built = build_sdpo_messages(MESSAGES, "step\nConfidence: 0.62")
    assert built[0] == MESSAGES[0] and built[1]["role"] == "user" and len(built) == 2
    assert built[1]["content"] == (
        "the question?\n\nCorrect solution:\n\nstep\nConfidence: 0.62\n\nCorrectly solve the original question."
    )
    assert before == MESSAGES


def test_sdft_form_word_for_word():
    content = build_sdft_messages(MESSAGES, "step")[-1]["content"]
    head = "the question?\n\nThis is an example for a response to the question:\nstep\n\n"
    assert content == head + context.SDFT_CLOSING
    assert "thinking process" in content


def test_braces_in_demonstrations_stay():
    demo = 'Action Input: {"demo": {demo} {0}}'
    for build in (build_sdpo_messages, build_sdft_messages):
        assert demo in build(MESSAGES, demo)[-1]["content"]


def test_attempt_forms():
    assert build_attempt_messages(MESSAGES, "x", header="solution") == build_sdpo_messages(
        MESSAGES, "x"
    )
    content = build_attempt_messages(MESSAGES, "x", header="attempt")[-1]["content"]
    assert "orrect" not in content and content.startswith("the question?\n\nAttempt:\n\nx\n\n")
    with pytest.raises(ConfigError, match="solution or attempt"):
        build_attempt_messages(MESSAGES, "x", header="")


@pytest.mark.parametrize(
    "messages", [[], MESSAGES[:1], [*MESSAGES, {"role": "assistant", "content": "x"}]]
)
def test_prompts_that_end_in_no_user_message_are_an_error(messages):
    with pytest.raises(TeacherContextError, match="last message is the user's"):
        build_sdpo_messages(messages, "x")


def test_a_blank_demonstration_is_an_error():
    with pytest.raises(TeacherContextError, match="blank"):
        build_sdpo_messages(MESSAGES, strip_thinking("<think>only this"))


def test_t18_nobody_demonstrates_itself():
    assert choose_demonstrations([False, True, False, True]) == (1, 3, 1, 1)
    assert choose_demonstrations([False, True, False]) == (1, None, 1)


def test_t16_a_group_without_success_has_no_demonstration():
    assert choose_demonstrations([False] * 3) == (None,) * 3
    assert choose_demonstrations([True]) == (None,)
    assert choose_demonstrations([]) == ()


def test_t17_a_demonstration_states_p_hat():
    demo = revise_text("My confidence: high\n<answer>B</answer>\n**Confidence:** 99%\n", 0.625)
    content = build_sdpo_messages(MESSAGES, demo)[-1]["content"]
    assert "\n<answer>B</answer>\nConfidence: 0.62\n\nCorrectly" in content and "99" not in content


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a confidence: 1</think>\n\nb", "b"),
        ("<think>a\nb", ""),
        ("a<think>b</think> c<think>d", "ac"),
        ("thought</think>\nb", "b"),
        ("plain", "plain"),
    ],
)
def test_t27_thinking_blocks_go_even_unclosed(text, left):
    assert strip_thinking(text) == left


def encode(tokenizer, demo, max_tokens, overlong, **template_kwargs):
    return encode_teacher_prompt(
        lambda text: build_sdpo_messages(MESSAGES, text),
        demo,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        overlong=overlong,
        template_kwargs=template_kwargs,
    )


def test_t25_overlong_prompts_are_an_error_or_lose_the_beginning_of_the_demonstration(
    load_tokenizer,
):
    for family in ("smollm2", "byte_bpe", "sentencepiece"):
        tokenizer = load_tokenizer(family)
        whole = encode(tokenizer, DEMO, 100_000, "error")
        assert encode(tokenizer, DEMO, len(whole), "error") == whole
        with pytest.raises(TeacherContextError, match=f"{len(whole)} tokens"):
            encode(tokenizer, DEMO, len(whole) - 1, "error")
        least = len(encode(tokenizer, "<answer>B</answer>\nConfidence: 0.62", 100_000, "error"))
        for limit in (len(whole) - 1, (least + len(whole)) // 2, least):
            short = encode(tokenizer, DEMO, limit, "shorten_demo")
            assert least <= len(short) <= limit
            text = tokenizer.decode(short, skip_special_tokens=False)
            assert "the question?" in text and "be brief" in text and "Confidence: 0.62" in text
            assert "<answer>B</answer>" in text
            tail = tokenizer.decode(short[-12:], skip_special_tokens=False)
            assert tail == tokenizer.decode(whole[-12:], skip_special_tokens=False)
        with pytest.raises(TeacherContextError, match="at most"):
            encode(tokenizer, DEMO, least - 1, "shorten_demo")


def test_t25_shortening_takes_no_more_than_needed(load_tokenizer):
    tokenizer = load_tokenizer("smollm2")
    whole = encode(tokenizer, DEMO, 100_000, "error")
    assert len(encode(tokenizer, DEMO, len(whole) - 20, "shorten_demo")) > len(whole) - 40


def test_template_arguments_are_handed_through(load_tokenizer):
    from .conftest import CHAT_TEMPLATE, build_byte_bpe

    tokenizer = build_byte_bpe()
    tokenizer.chat_template = CHAT_TEMPLATE + "{% if enable_thinking is false %}x{% endif %}"
    on, off = (
        encode(tokenizer, "a", 999, "error"),
        encode(tokenizer, "a", 999, "error", enable_thinking=False),
    )
    assert off[: len(on)] == on and len(off) == len(on) + 1
    with pytest.raises(ConfigError, match="shorten_demo"):
        encode(tokenizer, "a", 999, "cut")
