"""P(True) with a table for a model; local backends are checked in tests/eval_cli."""

import math

import pytest

from caopd_verl.errors import DataError, TokenizerError
from caopd_verl.evaluation.readouts.p_true import QUESTION, follow_up, p_true, word_tokens

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

    def decode(self, token_ids, *, skip_special_tokens):
        return "".join(self.tokens[i] for i in token_ids)


def test_single_tokens_by_hand():
    words = Words("True", "False", "x")
    true, false = (words.tokens.index(w) for w in ("True", "False"))
    asked = []

    def model(sequences):
        asked.extend(sequences)
        return [{true: math.log(0.3), false: math.log(0.1)} for _ in sequences]

    found = p_true(model, [[2], [2, 2]], tokenizer=words)
    assert [r.value for r in found] == pytest.approx([0.75, 0.75]) and found[
        0
    ].mass == pytest.approx(0.4)
    assert asked == [[2], [2, 2]]  # one pass each


def test_words_of_several_tokens_share_their_beginnings():
    words = Words("T", "F", "rue", "alse", "a", "b")
    t, f, rue, alse = (words.tokens.index(w) for w in ("T", "F", "rue", "alse"))

    def model(sequences):
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
    (found,) = p_true(lambda sequences: [{} for _ in sequences], [[0]], tokenizer=words)
    assert found.value is None and "neither" in found.reason
    assert p_true(lambda sequences: [], [], tokenizer=words) == []


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
        p_true(lambda sequences: [], [[0]], tokenizer=Words("True", "False"))
