"""The model can be found; its tokenizer and its vocabulary can do what a method needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caopd_verl.core.tokens import encode_segment, find_eot_id
from caopd_verl.errors import ConfigError, TokenizerError
from caopd_verl.preflight.model_files import KEY

if TYPE_CHECKING:
    from caopd_verl.preflight.run_context import Context


def check_model_path(context: Context) -> None:
    """Raises `ConfigError` for a path without a model. A hub id is looked up by later checks."""
    _ = context.model_path


def check_tokenizer(context: Context) -> None:
    """The tokenizer ends an assistant's turn and writes a confidence line without loss.

    Raises:
        ConfigError: it cannot be loaded.
        TokenizerError: naming the model.
    """
    tokenizer = context.tokenizer
    try:
        find_eot_id(tokenizer)
        # any value will do: what fails is the line break, the label or the decimal point
        encode_segment(0.5, tokenizer)
    except TokenizerError as error:
        where = f"{KEY}={context.model_path}"
        raise TokenizerError(
            error.what, where=where, expected=error.expected, fix=error.fix
        ) from error


def check_vocabulary(context: Context) -> None:
    """Raises `ConfigError` for a top-k of more tokens than there are."""
    top_k = context.caopd.loss.top_k
    if top_k is None:
        return  # the whole vocabulary is compared
    vocabulary = context.vocabulary_size
    if top_k > vocabulary:
        raise ConfigError(
            f"k = {top_k} is larger than the vocabulary of {vocabulary} tokens",
            where="caopd.loss.top_k",
            expected=f"at most {vocabulary}, or null for the full vocabulary",
        )
