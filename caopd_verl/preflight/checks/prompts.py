"""The questions can be read, and each fits into the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caopd_verl.core.context import encode_prompt
from caopd_verl.errors import DataError

if TYPE_CHECKING:
    from caopd_verl.preflight.run_context import Context


def check_questions(context: Context) -> None:
    """Raises `ConfigError` (a key under `caopd.task`) or `DataError` (a file's line)."""
    _ = context.questions


def check_prompt_lengths(context: Context) -> None:
    """Raises `DataError` for the first question that is too long, naming its row.

    verl would leave it out of the data set without a word (`data.filter_overlong_prompts`).
    """
    limit = context.config.data.max_prompt_length
    arguments = context.template_arguments
    for example in context.questions.all:
        ids = encode_prompt(
            example.messages, tokenizer=context.tokenizer, template_kwargs=arguments
        )
        if len(ids) > limit:
            raise DataError(
                f"the prompt has {len(ids)} tokens",
                where=example.where,
                expected=f"at most data.max_prompt_length={limit}",
                fix="raise data.max_prompt_length, or leave the row out of the file",
            )
