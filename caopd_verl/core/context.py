"""The teacher's privileged context, as messages that are built, never edited by index.

Source: section 4.2 and appendix B.3 of arXiv 2604.16830. The student's messages stay as they are,
except that the last user message is followed by the demonstration in one of three forms:

* `solution` (SDPO): a verified sibling rollout. CaOPD writes p-hat over the confidence it states.
* `example` (SDFT): the gold demonstration.
* `attempt` (ours): a rollout of a group without any success, which is not called correct.

A rollout is never its own demonstration: the teacher would see the very tokens that it scores, be
certain of them, and sharpen the student on itself (`choose_demonstrations`). A prompt over the
limit is an error, or takes from the demonstration's beginning only; cutting its end would drop the
header that opens the assistant's turn, and the teacher would score inside the user's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from caopd_verl.core.tokens import Tokenizer
from caopd_verl.errors import TeacherContextError
from caopd_verl.types import Messages, TeacherForm, TeacherPrompt

# form -> what stands before and after the demonstration
TEMPLATES: dict[TeacherForm, tuple[str, str]] = {
    "solution": ("Correct solution:\n\n", "\n\nCorrectly solve the original question."),
    "example": (
        "This is an example for a response to the question:\n",
        "\n\nNow answer with a response of your own, including the thinking process.",
    ),
    "attempt": ("Attempt:\n\n", "\n\nSolve the original question."),
}

_THINK_BLOCK = re.compile(r"<think>.*?(?:</think>\s*|\Z)", re.DOTALL)
_END_OF_THINKING = "</think>"


def choose_demonstrations(correct: Sequence[bool]) -> tuple[int | None, ...]:
    """For each rollout of a group the first successful sibling other than itself; None if none.

    With one success the failures get it and the success itself gets none; with two or more,
    everyone has one.

    Args:
        correct: the verdicts, in the order of the rollouts.

    Returns:
        for each rollout an index into the group, or None.
    """
    successes = [index for index, ok in enumerate(correct) if ok]
    chosen: list[int | None] = []
    for own in range(len(correct)):
        others = [index for index in successes[:2] if index != own]
        chosen.append(others[0] if others else None)
    return tuple(chosen)


def strip_thinking(text: str) -> str:
    """`text` without `<think>` blocks, an unclosed one included.

    Where a chat template opens the block in the prompt, only `</think>` shows: what precedes it
    goes as well.
    """
    text = _THINK_BLOCK.sub("", text)
    if _END_OF_THINKING not in text:
        return text
    return text.rpartition(_END_OF_THINKING)[2].lstrip()


def teacher_messages(prompt: TeacherPrompt) -> Messages:
    """The student's messages with the demonstration behind the question; the prompt's are kept.

    Raises:
        TeacherContextError: the prompt does not end in a user message, or the demonstration is
            blank.
    """
    messages = prompt.messages
    last_role = messages[-1].get("role") if messages else "nothing"
    if last_role != "user":
        raise TeacherContextError(
            f"the prompt ends in {last_role!r}",
            expected="a prompt whose last message is the user's",
        )
    if not prompt.demonstration.strip():
        raise TeacherContextError(
            "the demonstration is blank",
            expected="a response with some text besides its thinking block",
        )
    before, after = TEMPLATES[prompt.form]
    *earlier, last = messages
    content = f"{last['content']}\n\n{before}{prompt.demonstration}{after}"
    return [*(dict(message) for message in earlier), {**last, "content": content}]


def encode_prompt(
    messages: Messages, *, tokenizer: Tokenizer, template_kwargs: Mapping[str, Any]
) -> list[int]:
    """Token ids of a prompt through the chat template, with the header of the assistant's turn.

    The one place where a prompt is encoded: training, its validation and `caopd eval --model` ask
    the same model the same question only if they share it.

    Args:
        messages: the prompt.
        tokenizer: with a chat template.
        template_kwargs: arguments of the chat template, e.g. `{"enable_thinking": False}`.
    """
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **template_kwargs
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def encode_teacher_prompt(
    prompt: TeacherPrompt,
    *,
    tokenizer: Tokenizer,
    max_tokens: int,
    shorten: bool,
    template_kwargs: Mapping[str, Any],
) -> list[int]:
    """Token ids of the teacher's prompt, generation header included.

    Args:
        prompt: question, demonstration, form.
        max_tokens: limit of the teacher's prompt.
        shorten: over the limit, take from the demonstration's beginning; it keeps its end, answer
            and confidence.
        template_kwargs: as in `encode_prompt`.

    Raises:
        TeacherContextError: over the limit, and not to be shortened; or too long even with only
            the last two lines of the demonstration.
    """

    def encode(demonstration: str) -> list[int]:
        messages = teacher_messages(replace(prompt, demonstration=demonstration))
        return encode_prompt(messages, tokenizer=tokenizer, template_kwargs=template_kwargs)

    whole = prompt.demonstration
    ids = encode(whole)
    if len(ids) <= max_tokens:
        return ids
    if not shorten:
        raise _too_long(len(ids), max_tokens)
    whole_ids = tokenizer.encode(whole, add_special_tokens=False)
    least = _last_two_lines(whole)
    dropped = 0
    while True:
        # Text that is cut may encode into more tokens than before, so this may take some rounds.
        dropped += max(1, len(ids) - max_tokens)
        tail = _tail_text(whole, whole_ids[dropped:], tokenizer)
        shortened = tail if len(tail) > len(least) else least
        ids = encode(shortened)
        if len(ids) <= max_tokens:
            return ids
        if shortened == least:
            raise _too_long(len(ids), max_tokens)


def _last_two_lines(demonstration: str) -> str:
    """The least that a shortened demonstration keeps: answer and confidence."""
    lines = [line for line in demonstration.splitlines() if line.strip()]
    return "\n".join(lines[-2:])


def _tail_text(demonstration: str, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The end of the demonstration that is as long as the decoded `ids`, from a whole word on."""
    if not ids:
        return ""
    decoded = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    start = max(0, len(demonstration) - len(decoded))
    tail = demonstration[start:]
    word = re.search(r"\s\S", tail)
    return tail[word.start() + 1 :] if word else tail


def _too_long(found: int, limit: int) -> TeacherContextError:
    return TeacherContextError(
        f"a teacher prompt has {found} tokens",
        expected=f"at most {limit}",
        fix="raise caopd.context.max_tokens, or set caopd.context.overlong=shorten_demo",
    )
