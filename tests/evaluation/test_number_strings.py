"""The strings 0.00 to 1.00 as tokens, and where a response's number begins, for five tokenizers."""

import itertools

import pytest

from caopd_verl.core.confidence import LABEL, parse, render
from caopd_verl.errors import TokenizerError
from caopd_verl.evaluation.readouts.number_strings import (
    STRINGS,
    VALUES,
    string_tokens,
    value_prefix,
)
from tests.evaluation.tokenizer_families import FAMILIES, byte_level

RESPONSE = "<answer>B</answer>\nConfidence: 0.62"


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return FAMILIES[request.param]()


def test_the_strings_are_the_rendered_grid():
    assert len(STRINGS) == 101 and STRINGS[0] == "0.00" and STRINGS[-1] == "1.00"
    for value, string in zip(VALUES, STRINGS, strict=True):
        assert render(value) == f"{LABEL} {string}" and parse(render(value)).value == value
    for a, b in itertools.pairwise(VALUES):
        assert a < b


def test_the_strings_continue_the_prefix_as_the_response_itself_does(tokenizer):
    for i in (0, 7, 62, 99, 100):
        full = tokenizer.encode(RESPONSE.replace("0.62", STRINGS[i]), add_special_tokens=False)
        prefix = value_prefix(full, tokenizer)
        continuations = string_tokens(prefix.ids, tokenizer=tokenizer, lead=prefix.lead)
        assert len(set(continuations)) == 101
        assert [*prefix.ids, *continuations[i]] == full


def test_merged_digits_are_merged_in_the_tree():
    tokenizer = byte_level(split_digits=False)
    prefix = tokenizer.encode("x\nConfidence:", add_special_tokens=False)
    strings = string_tokens(prefix, tokenizer=tokenizer, lead=" ")
    # some numbers take fewer tokens than characters
    assert min(len(tokens) for tokens in strings) < 4


@pytest.mark.parametrize("ending", ["", "\n", "<|im_end|>", "<|im_end|>\n"])
def test_value_prefix_takes_the_last_confidence_line(tokenizer, ending):
    text = "Confidence: 0.11\nthe answer B\nConfidence: 0.62" + ending
    full = tokenizer.encode(text, add_special_tokens=False)
    prefix = value_prefix(full, tokenizer)
    assert prefix.ids is not None, prefix.reason
    assert list(prefix.ids) == full[: len(prefix.ids)]
    rest = tokenizer.decode(full[len(prefix.ids) :], skip_special_tokens=True).replace(" ", "")
    assert rest.startswith("0.62")


def test_value_prefix_of_a_long_response_and_of_ones_without_a_number(tokenizer):
    body = tokenizer.encode("the answer is high\n" * 400, add_special_tokens=False)
    line = tokenizer.encode("\nConfidence: 0.62", add_special_tokens=False)
    prefix = value_prefix(body + line, tokenizer)
    assert prefix.ids is not None and len(prefix.ids) > len(body)
    for text, reason in {
        "": "missing",
        "the answer": "missing",
        "x\nConfidence: high": "malformed",
    }.items():
        none = value_prefix(tokenizer.encode(text, add_special_tokens=False), tokenizer)
        assert none.ids is None and reason in none.reason
    assert value_prefix(body, tokenizer).ids is None


def test_a_tokenizer_that_cannot_spell_the_strings_is_an_error():
    class Deaf:
        def encode(self, text, *, add_special_tokens):
            return []

        def decode(self, token_ids, *, skip_special_tokens, clean_up_tokenization_spaces):
            return "x" * len(token_ids)

    with pytest.raises(TokenizerError, match=r"can't continue 'xxx' with ' 0\.00'"):
        string_tokens([1, 2, 3], tokenizer=Deaf(), lead=" ")
