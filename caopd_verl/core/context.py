"""The teacher's privileged context, as messages that are built, never edited by index (paper 4.2 and B.3).

The student's messages stay as they are, except that the content of the last user message is followed by the privileged
part. Two forms of the paper, one of ours:

* SDPO (`build_sdpo_messages`): a verified sibling rollout, its own confidence replaced by p-hat (T17).
* SDFT (`build_sdft_messages`): the gold demonstration.
* attempt (`build_attempt_messages`): for groups without any success under `confidence_only`, the rollout itself with
  confidence 0.00. `header="solution"` words it as the SDPO form, `header="attempt"` does not call it correct.

A rollout is never its own demonstration (`choose_demonstrations`, T18). A prompt over the limit is an error, or takes
from the demonstration's beginning only (`encode_teacher_prompt`, T25).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caopd_verl.core.tokens import Tokenizer
from caopd_verl.errors import ConfigError, TeacherContextError
from caopd_verl.types import Messages

SDPO_HEADER = "Correct solution:"
SDPO_CLOSING = "Correctly solve the original question."
SDFT_HEADER = "This is an example for a response to the question:"
SDFT_CLOSING = "Now answer with a response of your own, including the thinking process."
ATTEMPT_HEADER = "Attempt:"
ATTEMPT_CLOSING = "Solve the original question."

_THINK = re.compile(r"<think>.*?(?:</think>\s*|\Z)", re.DOTALL)


def choose_demonstrations(correct: Sequence[bool]) -> tuple[int | None, ...]:
    """For each rollout of a group the index of the first successful sibling other than itself, None if none (T18).

    With one success the seven failures get it and the success itself gets none; with two or more, everyone has one.
    """
    successes = [index for index, ok in enumerate(correct) if ok][:2]
    return tuple(next((s for s in successes if s != own), None) for own in range(len(correct)))


def strip_thinking(text: str) -> str:
    """`text` without `<think>` blocks, an unclosed one included (T27); what precedes a lone `</think>` goes as well."""
    text = _THINK.sub("", text)
    return text.rpartition("</think>")[2].lstrip() if "</think>" in text else text


def build_sdpo_messages(messages: Messages, demo_text: str) -> Messages:
    """The student's messages with a verified solution behind the question.

    Args:
        messages: the student's prompt; its last message must be the user's. Not changed.
        demo_text: the sibling's response, its confidence already replaced (`revise_text`).

    Raises:
        TeacherContextError: the prompt does not end in a user message, or the demonstration is blank.
    """
    return _with_privileged(messages, f"{SDPO_HEADER}\n\n{{demo}}\n\n{SDPO_CLOSING}", demo_text)


def build_sdft_messages(messages: Messages, demo_text: str) -> Messages:
    """The student's messages with a gold demonstration behind the question. Arguments and errors as above."""
    return _with_privileged(messages, f"{SDFT_HEADER}\n{{demo}}\n\n{SDFT_CLOSING}", demo_text)


def build_attempt_messages(messages: Messages, attempt_text: str, *, header: str) -> Messages:
    """The student's messages with the rollout itself behind the question, for its confidence tokens only.

    Args:
        header: `solution` (the SDPO form's words) or `attempt` (does not call a failed attempt correct).

    Raises:
        ConfigError: another header.
        TeacherContextError: as `build_sdpo_messages`.
    """
    if header == "solution":
        return build_sdpo_messages(messages, attempt_text)
    if header != "attempt":
        raise ConfigError(f"attempt header {header!r}", expected="solution or attempt")
    return _with_privileged(
        messages, f"{ATTEMPT_HEADER}\n\n{{demo}}\n\n{ATTEMPT_CLOSING}", attempt_text
    )


def _with_privileged(messages: Messages, template: str, demo_text: str) -> Messages:
    if not messages or messages[-1].get("role") != "user":
        raise TeacherContextError(
            f"the prompt ends in {messages[-1].get('role') if messages else 'nothing'!r}",
            expected="a prompt whose last message is the user's",
        )
    if not demo_text.strip():
        raise TeacherContextError(
            "the demonstration is blank",
            expected="a response with some text besides its thinking block",
        )
    before, head, after = (
        *template.partition("{demo}")[:1],
        demo_text,
        template.partition("{demo}")[2],
    )
    *earlier, last = messages
    question = {**last, "content": f"{last['content']}\n\n{before}{head}{after}"}
    return [*(dict(m) for m in earlier), question]


def encode_teacher_prompt(
    build: Callable[[str], Messages],
    demo_text: str,
    *,
    tokenizer: Tokenizer,
    max_tokens: int,
    overlong: str,
    template_kwargs: Mapping[str, Any],
) -> list[int]:
    """Token ids of the teacher's prompt, generation prompt included.

    Args:
        build: makes the messages from a demonstration, e.g. `lambda demo: build_sdpo_messages(messages, demo)`.
        demo_text: the demonstration.
        max_tokens: limit of the teacher's prompt.
        overlong: `error`, or `shorten_demo`: the demonstration loses its beginning and keeps its end, answer and
            confidence. Question, closing line and assistant header are never cut (T25).
        template_kwargs: handed to the chat template, e.g. `{"enable_thinking": False}`.

    Raises:
        TeacherContextError: over the limit under `error`; or the prompt does not fit even with only the last two lines
            of the demonstration.
        ConfigError: another value of `overlong`.
    """
    if overlong not in ("error", "shorten_demo"):
        raise ConfigError(
            f"overlong teacher prompts: {overlong!r}", expected="error or shorten_demo"
        )
    ids = encode_prompt(build(demo_text), tokenizer=tokenizer, template_kwargs=template_kwargs)
    if len(ids) <= max_tokens:
        return ids
    if overlong == "error":
        raise _too_long(len(ids), max_tokens)
    demo_ids = tokenizer.encode(demo_text, add_special_tokens=False)
    drop = 0
    floor = _end_of_demo(demo_text)
    while True:
        drop += max(1, len(ids) - max_tokens)
        demo = _tail_text(demo_text, demo_ids[drop:], tokenizer) if drop < len(demo_ids) else ""
        demo = demo if len(demo) > len(floor) else floor
        ids = encode_prompt(build(demo), tokenizer=tokenizer, template_kwargs=template_kwargs)
        if len(ids) <= max_tokens:
            return ids
        if demo == floor:
            raise _too_long(len(ids), max_tokens)


def encode_prompt(
    messages: Messages, *, tokenizer: Tokenizer, template_kwargs: Mapping[str, Any]
) -> list[int]:
    """Token ids of a prompt through the chat template, with the header that opens the assistant's turn."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **template_kwargs
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def _end_of_demo(demo_text: str) -> str:
    """The least that a shortened demonstration keeps: its last two non-blank lines, answer and confidence."""
    lines = [line for line in demo_text.splitlines() if line.strip()]
    return "\n".join(lines[-2:])


def _tail_text(demo_text: str, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The end of `demo_text` that is as long as the decoded `ids`, from the next word on."""
    decoded = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    tail = demo_text[max(0, len(demo_text) - len(decoded)) :]
    word = re.search(r"\s\S", tail)
    return tail[word.start() + 1 :] if word else tail


def _too_long(found: int, limit: int) -> TeacherContextError:
    return TeacherContextError(
        f"a teacher prompt has {found} tokens",
        expected=f"at most {limit}",
        fix="raise the limit of the teacher's prompt, or shorten demonstrations (overlong=shorten_demo)",
    )
