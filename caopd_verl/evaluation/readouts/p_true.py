"""P(True) (Kadavath et al. 2022, arXiv 2207.05221): the model is asked whether its own answer is correct.

A second turn follows the response, and the figure is the probability of `True` among `True` and `False` as the next
words: p(True) / (p(True) + p(False)). `mass` is their sum before that; with a low one the model would have said
something else, and the figure describes a corner of its distribution.

The response's confidence line is left out of what the model is shown: otherwise it would read its stated confidence
back. Zero-shot, as users have it; the paper also shows the model several sampled answers, which raises the figure's
worth and the cost.

Cost: one forward pass over the prompt, the response and the question, and one short one for each further token of the
two words (none where both are single tokens). vLLM has prompt and response in its prefix cache; the transformers
backend runs them again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from caopd_verl.core.confidence import parse
from caopd_verl.errors import DataError, TokenizerError
from caopd_verl.evaluation.readouts.expected import (
    NextTokenLogprobs,
    TokenizerLike,
    child_log_probs,
)
from caopd_verl.evaluation.rows.row import EXACT, Readout
from caopd_verl.types import Messages

QUESTION = "Is the proposed answer above correct? Answer with one word: True or False."
WORDS = ("True", "False")
NO_ANSWER = "there is no answer to ask about"
TOO_LONG = "the question does not fit into the model's context"


def follow_up(messages: Messages, response: str) -> Messages | None:
    """The chat that ends with the question about `response`; None where nothing but a confidence line is there."""
    answer = response[: parse(response).start].rstrip()
    if not answer:
        return None
    return [
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": QUESTION},
    ]


def word_tokens(tokenizer: TokenizerLike) -> list[tuple[int, ...]]:
    """The token ids of `WORDS` as the beginning of a response.

    Raises:
        TokenizerError: the tokenizer can't write them, or the first begins with the other.
    """
    words = [tuple(tokenizer.encode(word, add_special_tokens=False)) for word in WORDS]
    spelled = [tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in words]
    if (
        tuple(spelled) != WORDS
        or words[0][: len(words[1])] == words[1]
        or words[1][: len(words[0])] == words[0]
    ):
        raise TokenizerError(
            f"the tokenizer writes {' and '.join(WORDS)} as {' and '.join(map(repr, spelled))}",
            expected="two words that differ",
            fix="leave --p-true out",
        )
    return words


def p_true(
    next_token_logprobs: NextTokenLogprobs,
    prefixes: Sequence[Sequence[int]],
    *,
    tokenizer: TokenizerLike,
) -> list[Readout]:
    """The readout after each prefix (token ids up to the generation header behind the question).

    Raises:
        TokenizerError: as `word_tokens`. DataError: what the callback returns is no log-probabilities.
    """
    words = word_tokens(tokenizer)
    nodes = list(dict.fromkeys(word[:depth] for word in words for depth in range(len(word))))
    sequences = [[*prefix, *node] for prefix in prefixes for node in nodes]
    rows = next_token_logprobs(sequences) if sequences else []
    if len(rows) != len(sequences):
        raise DataError(f"the model callback gave {len(rows)} rows for {len(sequences)} sequences")
    readouts = []
    for i in range(len(prefixes)):
        at = dict(zip(nodes, rows[i * len(nodes) : (i + 1) * len(nodes)], strict=True))
        true, false = (
            math.exp(sum(child_log_probs(at[word[:d]], [token])[0] for d, token in enumerate(word)))
            for word in words
        )
        mass = true + false
        readouts.append(
            Readout(true / mass, min(mass, 1.0), EXACT)
            if mass > 0.0
            else Readout(mass=0.0, reason="neither True nor False has any probability")
        )
    return readouts
