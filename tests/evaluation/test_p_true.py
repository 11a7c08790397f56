"""P(True) with a table for a model; local backends are checked in tests/eval_cli."""

import math

import pytest

from caopd_verl.errors import DataError, TokenizerError
from caopd_verl.evaluation.readouts.p_true import (
    NO_ANSWER,
    QUESTION,
    TOO_LONG,
    follow_up,
    p_true,
    p_true_readouts,
    word_tokens,
)

CHAT = [{"role": "user", "content": "2+2=?"}]


class Words:
    """A tokenizer with these tokens alone, longest first."""

    def __init__(self, *tokens):
        self.tokens = sorted(tokens, key=len, reverse=True)

    def encode(self, text, *, add_special_tokens):
        ids = []
        while text:
            token = next((t for t in self.tokens if text.startswith(t)), None)
            if token is None:
                return ids
            ids.append(self.tokens.index(token))
            text = text[len(token) :]
        return ids

    def decode(self, token_ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        return "".join(self.tokens[i] for i in token_ids)


def test_single_tokens_by_hand():
    words = Words("True", "False", "x")
    true, false = (words.tokens.index(w) for w in ("True", "False"))
    asked = []

    def model(sequences, wanted):
        assert wanted == sorted([true, false])
        asked.extend(sequences)
        return [{true: math.log(0.3), false: math.log(0.1)} for _ in sequences]

    found = p_true(model, [[2], [2, 2]], tokenizer=words)
    assert [readout.value for readout in found] == pytest.approx([0.75, 0.75])
    assert found[0].mass == pytest.approx(0.4)
    assert asked == [[2], [2, 2]]  # one pass each


def test_words_of_several_tokens_share_their_beginnings():
    words = Words("T", "F", "rue", "alse", "a", "b")
    t, f, rue, alse = (words.tokens.index(w) for w in ("T", "F", "rue", "alse"))

    def model(sequences, wanted):
        table = {
            (9,): {t: math.log(0.5), f: math.log(0.5)},
            (9, t): {rue: math.log(0.2)},
            (9, f): {alse: 0.0},
        }
        return [table[tuple(s)] for s in sequences]

    (found,) = p_true(model, [[9]], tokenizer=words)
    assert found.value == pytest.approx(0.1 / 0.6) and found.mass == pytest.approx(0.6)


def test_no_probability_at_all_is_none_with_a_reason():
    words = Words("True", "False")
    (found,) = p_true(lambda sequences, wanted: [{}] * len(sequences), [[0]], tokenizer=words)
    assert found.value is None and "neither" in found.reason
    assert p_true(lambda sequences, wanted: [], [], tokenizer=words) == []


def test_only_answers_that_fit_are_asked_about():
    words = Words("True", "False", "x")
    true, false = (words.tokens.index(w) for w in ("True", "False"))
    asked = []

    def model(sequences, wanted):
        asked.extend(sequences)
        return [{true: math.log(0.2 * len(s)), false: math.log(0.2)} for s in sequences]

    def encode(chat):
        return [9] * len(chat[-2]["content"])

    found = p_true_readouts(
        [CHAT] * 4,
        ["4\nConfidence: 0.9", "Confidence: 0.9", "1234", "12"],
        model=model,
        tokenizer=words,
        encode=encode,
        max_tokens=4,  # three and the longest word
    )
    assert found[1] is NO_ANSWER and found[2] is TOO_LONG
    assert asked == [[9], [9, 9]]
    assert [found[0].value, found[3].value] == pytest.approx([1 / 2, 2 / 3])


def test_the_confidence_line_is_not_shown():
    chat = follow_up(CHAT, "4\nConfidence: 0.93")
    assert [m["content"] for m in chat] == ["2+2=?", "4", QUESTION]
    assert [m["role"] for m in chat] == ["user", "assistant", "user"] and CHAT == [
        {"role": "user", "content": "2+2=?"}
    ]
    assert follow_up(CHAT, "Confidence: 0.93") is None and follow_up(CHAT, "  ") is None


def test_bad_tokenizers_and_models():
    with pytest.raises(TokenizerError, match="True and False"):
        word_tokens(Words("x"))
    with pytest.raises(DataError, match="0 rows for 1 sequences"):
        p_true(lambda sequences, wanted: [], [[0]], tokenizer=Words("True", "False"))
