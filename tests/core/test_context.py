"""The teacher's privileged context."""

from __future__ import annotations

import copy

import pytest

from caopd_verl.core.context import (
    TEMPLATES,
    choose_demonstrations,
    encode_teacher_prompt,
    strip_thinking,
    teacher_messages,
)
from caopd_verl.core.revise import revise_text
from caopd_verl.errors import TeacherContextError
from caopd_verl.types import TeacherPrompt

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the question?"}]
DEMO = "we add\n" * 100 + "<answer>B</answer>\nConfidence: 0.62"


def shown(demonstration, form="solution", messages=MESSAGES):
    """The last message of the teacher's prompt."""
    return teacher_messages(TeacherPrompt(messages, demonstration, form))[-1]["content"]


def test_the_solution_form_word_for_word():
    before = copy.deepcopy(MESSAGES)
    prompt = TeacherPrompt(MESSAGES, "step\nConfidence: 0.62", "solution")
    built = teacher_messages(prompt)
    assert built[0] == MESSAGES[0] and built[1]["role"] == "user" and len(built) == 2
    assert built[1]["content"] == (
        "the question?\n\nCorrect solution:\n\nstep\nConfidence: 0.62\n\n"
        "Correctly solve the original question."
    )
    assert before == MESSAGES


def test_the_example_form_word_for_word():
    assert shown("step", "example") == (
        "the question?\n\nThis is an example for a response to the question:\nstep\n\n"
        "Now answer with a response of your own, including the thinking process."
    )


def test_the_attempt_form_calls_nothing_correct():
    content = shown("x", "attempt")
    assert "orrect" not in content and content.startswith("the question?\n\nAttempt:\n\nx\n\n")


@pytest.mark.parametrize("form", TEMPLATES)
def test_braces_in_demonstrations_stay(form):
    demonstration = 'Action Input: {"demo": {demo} {0}}'
    assert demonstration in shown(demonstration, form)


@pytest.mark.parametrize(
    "messages", [[], MESSAGES[:1], [*MESSAGES, {"role": "assistant", "content": "x"}]]
)
def test_prompts_that_end_in_no_user_message_are_an_error(messages):
    with pytest.raises(TeacherContextError, match="last message is the user's"):
        shown("x", messages=messages)


def test_a_blank_demonstration_is_an_error():
    with pytest.raises(TeacherContextError, match="blank"):
        shown(strip_thinking("<think>only this"))


def test_equal_prompts_have_equal_keys_and_others_do_not():
    def key(demonstration, form="solution", messages=MESSAGES):
        return TeacherPrompt(messages, demonstration, form).key

    assert key("a") == key("a", messages=copy.deepcopy(MESSAGES))
    assert len({key("a"), key("b"), key("a", "attempt"), key("a", messages=MESSAGES[1:])}) == 4


def test_nobody_demonstrates_itself():
    """The teacher would score the very tokens that it was shown, and be certain of them."""
    assert choose_demonstrations([False, True, False, True]) == (1, 3, 1, 1)
    assert choose_demonstrations([False, True, False]) == (1, None, 1)


def test_a_group_without_success_has_no_demonstration():
    assert choose_demonstrations([False] * 3) == (None,) * 3
    assert choose_demonstrations([True]) == (None,)
    assert choose_demonstrations([]) == ()


def test_a_demonstration_states_p_hat_and_nothing_of_its_own():
    demo = revise_text("My confidence: high\n<answer>B</answer>\n**Confidence:** 99%\n", 0.625)
    content = shown(demo)
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
def test_thinking_blocks_go_even_unclosed(text, left):
    assert strip_thinking(text) == left


def encode(tokenizer, demonstration, max_tokens, *, shorten=False, **template_kwargs):
    return encode_teacher_prompt(
        TeacherPrompt(MESSAGES, demonstration, "solution"),
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        shorten=shorten,
        template_kwargs=template_kwargs,
    )


@pytest.mark.parametrize("family", ["smollm2", "byte_bpe", "sentencepiece"])
def test_overlong_prompts_are_an_error_or_lose_the_demonstrations_beginning(load_tokenizer, family):
    """Cut at its end, a prompt would lose the header of the assistant's turn."""
    tokenizer = load_tokenizer(family)
    whole = encode(tokenizer, DEMO, 100_000)
    assert encode(tokenizer, DEMO, len(whole)) == whole
    with pytest.raises(TeacherContextError, match=f"{len(whole)} tokens"):
        encode(tokenizer, DEMO, len(whole) - 1)
    least = len(encode(tokenizer, "<answer>B</answer>\nConfidence: 0.62", 100_000))
    for limit in (len(whole) - 1, (least + len(whole)) // 2, least):
        short = encode(tokenizer, DEMO, limit, shorten=True)
        assert least <= len(short) <= limit
        text = tokenizer.decode(short, skip_special_tokens=False)
        for kept in ("the question?", "be brief", "Confidence: 0.62", "<answer>B</answer>"):
            assert kept in text
        tail = tokenizer.decode(short[-12:], skip_special_tokens=False)
        assert tail == tokenizer.decode(whole[-12:], skip_special_tokens=False)
    with pytest.raises(TeacherContextError, match="at most"):
        encode(tokenizer, DEMO, least - 1, shorten=True)


def test_shortening_takes_no_more_than_needed(load_tokenizer):
    tokenizer = load_tokenizer("smollm2")
    whole = encode(tokenizer, DEMO, 100_000)
    assert len(encode(tokenizer, DEMO, len(whole) - 20, shorten=True)) > len(whole) - 40


def test_template_arguments_are_handed_through():
    from .conftest import CHAT_TEMPLATE, build_byte_bpe

    tokenizer = build_byte_bpe()
    tokenizer.chat_template = CHAT_TEMPLATE + "{% if enable_thinking is false %}x{% endif %}"
    on = encode(tokenizer, "a", 999)
    off = encode(tokenizer, "a", 999, enable_thinking=False)
    assert off[: len(on)] == on and len(off) == len(on) + 1
