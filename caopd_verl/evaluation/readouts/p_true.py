"""P(True) (Kadavath et al. 2022, arXiv 2207.05221): the model is asked about its own answer.

A second turn follows the response, and the figure is the probability of `True` among `True` and
`False` as the next words: p(True) / (p(True) + p(False)). `mass` is their sum before that; with a
low one the model would have said something else, and the figure describes a corner of its
distribution.

The response's confidence line is left out of what the model is shown: otherwise it would read its
stated confidence back. Zero-shot, as users have it; the paper also shows the model several sampled
answers, which raises the figure's worth and the cost.

Cost: one forward pass over the prompt, the response and the question, and one short one for each
further token of the two words (none where both are single tokens). vLLM has prompt and response in
its prefix cache; the transformers backend runs them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from caopd_verl.core.confidence import parse
from caopd_verl.core.tokens import Tokenizer, decode
from caopd_verl.errors import TokenizerError
from caopd_verl.evaluation.readouts.next_token import (
    LogProbs,
    NextTokenLogProbs,
    ask_model,
    log_probs_of,
)
from caopd_verl.evaluation.readouts.number_strings import Tokens
from caopd_verl.evaluation.readouts.readout import EXACT, Readout
from caopd_verl.types import Messages

QUESTION = "Is the proposed answer above correct? Answer with one word: True or False."
WORDS = ("True", "False")
P_TRUE_NOT_ASKED = Readout(reason="not asked for (--p-true, local checkpoints)")
NO_ANSWER = Readout(reason="there is no answer to ask about")
TOO_LONG = Readout(reason="the question does not fit into the model's context")
NO_WORD = Readout(mass=0.0, reason="neither True nor False has any probability")


def p_true_readouts(
    chats: Sequence[Messages],
    responses: Sequence[str],
    *,
    model: NextTokenLogProbs,
    tokenizer: Tokenizer,
    encode: Callable[[Messages], list[int]],
    max_tokens: int | None,
) -> list[Readout]:
    """P(True) of each response, or the reason why there is none.

    Args:
        chats: the messages that were answered.
        responses: texts, one a chat.
        model, tokenizer: the ones that answered.
        encode: from messages to the prompt's token ids, generation header included.
        max_tokens: of the model's context; None where it has no limit.

    Raises:
        TokenizerError: as `word_tokens`. DataError: what the model returns is no log-probabilities.
    """
    longest = max(len(tokens) for tokens in word_tokens(tokenizer))
    prefixes: list[list[int]] = []
    unread: list[Readout | None] = []
    for chat, response in zip(chats, responses, strict=True):
        question = follow_up(chat, response)
        if question is None:
            unread.append(NO_ANSWER)
            continue
        prefix = encode(question)
        if max_tokens is not None and len(prefix) + longest > max_tokens:
            unread.append(TOO_LONG)
        else:
            unread.append(None)
            prefixes.append(prefix)
    found = iter(p_true(model, prefixes, tokenizer=tokenizer))
    return [next(found) if readout is None else readout for readout in unread]


def follow_up(messages: Messages, response: str) -> Messages | None:
    """The chat that ends with the question about `response`; None where it holds no answer."""
    answer = response[: parse(response).start].rstrip()
    if not answer:
        return None
    return [
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": QUESTION},
    ]


def word_tokens(tokenizer: Tokenizer) -> list[Tokens]:
    """The token ids of `WORDS` as the beginning of a response.

    Raises:
        TokenizerError: the tokenizer can't write them, or one begins with the other.
    """
    words, spelled = [], []
    for word in WORDS:
        # Without a blank in front: the word is the first thing behind the generation header.
        ids = tokenizer.encode(word, add_special_tokens=False)
        words.append(tuple(ids))
        spelled.append(decode(tokenizer, ids).strip())
    shortest = min(len(ids) for ids in words)
    one_begins_with_other = words[0][:shortest] == words[1][:shortest]
    if tuple(spelled) != WORDS or one_begins_with_other:
        written = " and ".join(map(repr, spelled))
        raise TokenizerError(
            f"the tokenizer writes True and False as {written}",
            expected="two words that differ",
            fix="leave --p-true out",
        )
    return words


def p_true(
    model: NextTokenLogProbs, prefixes: Sequence[Sequence[int]], *, tokenizer: Tokenizer
) -> list[Readout]:
    """The readout after each prefix (token ids up to the generation header behind the question).

    Raises:
        TokenizerError: as `word_tokens`. DataError: what the model returns is no log-probabilities.
    """
    words = word_tokens(tokenizer)
    wanted = sorted({token for word in words for token in word})
    nodes = _beginnings(words)
    sequences = [[*prefix, *node] for prefix in prefixes for node in nodes]
    rows = ask_model(model, sequences, wanted)
    readouts = []
    for start in range(0, len(rows), len(nodes)):
        own_rows = rows[start : start + len(nodes)]
        rows_by_node = dict(zip(nodes, own_rows, strict=True))
        true, false = (_probability(word, rows_by_node) for word in words)
        mass = true + false
        if mass > 0.0:
            readouts.append(Readout(true / mass, min(mass, 1.0), EXACT))
        else:
            readouts.append(NO_WORD)
    return readouts


def _beginnings(words: Sequence[Tokens]) -> list[Tokens]:
    """What has to be asked to know all tokens of the words; what they share once."""
    found: dict[Tokens, None] = {}
    for word in words:
        for depth in range(len(word)):
            found[word[:depth]] = None
    return list(found)


def _probability(word: Tokens, rows_by_node: dict[Tokens, LogProbs]) -> float:
    total = 0.0
    for depth, token in enumerate(word):
        total += log_probs_of(rows_by_node[word[:depth]], [token])[0]
    return math.exp(total)
