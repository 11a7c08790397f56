"""The confidence instruction, and the one place of each source's prompt that it goes into.

Student, teacher, baselines and evaluation all start from `Example.messages`, so that an instruction
which the loaders place is the same in all of them: figures of two methods that were asked in
different words can't be compared. The wording is the paper's (appendix B.2); the CaOPD repository
uses another one.

* Science: inside the response format that the system message describes, on the line after the
  answer tag, so that the answer comes first and the confidence is about it.
* Tool use: as the last line of the response format, before the line `Begin!`.
* Own data: where the text says `{confidence_instruction}`, otherwise at the end of the last user
  message.
"""

from __future__ import annotations

import re

from caopd_verl.errors import DataError
from caopd_verl.types import Messages

CONFIDENCE_INSTRUCTION = (
    "Confidence: your confidence level (0.0-1.0) regarding your answer, "
    "must be in numerical format, no other words or explanation."
)
PLACEHOLDER = "{confidence_instruction}"
ANSWER_END = "</answer>"
FORMAT_ANCHOR = "following format"
# At the start of a line only: "Begin!" may also stand in the documentation of a tool.
_BEGIN = re.compile(r"^Begin!", re.MULTILINE)


def has_instruction(messages: Messages) -> bool:
    """Whether any message holds the confidence instruction."""
    return any(CONFIDENCE_INSTRUCTION in message["content"] for message in messages)


def science_system(system: str, *, where: str) -> str:
    """A science system prompt with the instruction after the answer tag of its response format.

    Raises:
        DataError: no response format with an `</answer>` in it.
    """
    start = system.find(FORMAT_ANCHOR)
    # The first tag from there: the ones after it belong to the prompt's example of an answer.
    end = system.find(ANSWER_END, start) if start >= 0 else -1
    if end < 0:
        raise DataError(
            "the system prompt describes no response format with an answer tag",
            where=where,
            expected=f"the words {FORMAT_ANCHOR!r} and, after them, {ANSWER_END!r}",
            fix="use the system prompt of SDPO's data sets, or load the rows with the jsonl task",
        )
    end += len(ANSWER_END)
    return f"{system[:end]}\n{CONFIDENCE_INSTRUCTION}{system[end:]}"


def tool_prompt(prompt: str, *, where: str) -> str:
    """A tool-use prompt with the instruction as last line before `Begin!`.

    Raises:
        DataError: the prompt has no line that starts with `Begin!`, or several of them.
    """
    anchors = list(_BEGIN.finditer(prompt))
    if len(anchors) != 1:
        raise DataError(
            f"the prompt has {len(anchors)} lines that start with 'Begin!'",
            where=where,
            expected="exactly one: the confidence instruction goes before it",
            fix="correct the prompt, or load the rows with the jsonl task",
        )
    start = anchors[0].start()
    before, after = prompt[:start].rstrip(), prompt[start:]
    return f"{before}\n{CONFIDENCE_INSTRUCTION}\n\n{after}"


def own_messages(messages: Messages) -> Messages:
    """Messages of a user's own data with the instruction, once.

    Every `{confidence_instruction}` is replaced. Where there is none, and no message holds the
    instruction already, the last user message gets it as its last line.

    Args:
        messages: with at least one user message; they are not changed.
    """
    messages = [dict(message) for message in messages]
    if any(PLACEHOLDER in message["content"] for message in messages):
        for message in messages:
            text = message["content"]
            message["content"] = text.replace(PLACEHOLDER, CONFIDENCE_INSTRUCTION)
        return messages
    if has_instruction(messages):
        return messages
    last = next(message for message in reversed(messages) if message["role"] == "user")
    question = last["content"].rstrip()
    # Own prompts have no response format that the instruction could be a line of: it needs a lead.
    lead = "End your response with this line:"
    last["content"] = f"{question}\n\n{lead}\n{CONFIDENCE_INSTRUCTION}"
    return messages
