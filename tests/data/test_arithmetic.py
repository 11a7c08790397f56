"""The generated arithmetic task: deterministic, disjoint splits, right answers, one instruction."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from caopd_verl.data import additions
from caopd_verl.data.additions import LEVELS, generate, split_of
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.errors import CaopdError

SPLITS = ("train", "test", "val")


def operands(example):
    return tuple(example.meta["operands"])


def level_of(example):
    digits = [len(str(number)) for number in operands(example)]
    return tuple(sorted(digits))


@pytest.mark.parametrize("split", SPLITS)
def test_same_arguments_give_same_questions_and_another_seed_gives_others(split):
    first = generate(n=200, seed=3, split=split)
    assert first == generate(n=200, seed=3, split=split)
    other = generate(n=200, seed=4, split=split)
    assert {e.id for e in first} != {e.id for e in other}


@pytest.mark.parametrize("split", SPLITS)
def test_fewer_questions_are_a_prefix_of_more(split):
    more = generate(n=100, seed=0, split=split)
    assert generate(n=50, seed=0, split=split) == more[:50]


def test_splits_share_no_question_not_even_with_swapped_operands():
    seen = set()
    for seed, split in enumerate(SPLITS):
        examples = generate(n=1500, seed=seed, split=split)
        pairs = {frozenset(operands(example)) for example in examples}
        assert not pairs & seen
        seen |= pairs


def test_split_is_symmetric_and_has_the_documented_shares():
    counts: Counter[str] = Counter()
    for a in range(100, 200):
        for b in range(300, 400):
            assert split_of(a, b) == split_of(b, a)
            counts[split_of(a, b)] += 1
    assert [round(counts[split] / 10_000, 1) for split in SPLITS] == [0.7, 0.2, 0.1]


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_distinct_right_and_of_one_to_three_digits(split):
    examples = generate(n=1000, seed=1, split=split)
    assert len({operands(e) for e in examples}) == len(examples)
    assert len({e.id for e in examples}) == len(examples)
    for example in examples:
        a, b = operands(example)
        (message,) = example.messages
        assert message == {"role": "user", "content": f"{a}+{b}=?\n{CONFIDENCE_INSTRUCTION}"}
        assert example.answer == str(a + b)
        assert example.verifier == "arithmetic"
        assert re.search(rf"split={split}:seed=1:index=\d+$", example.where)
        assert level_of(example) in LEVELS


def test_levels_come_in_their_shares():
    examples = generate(n=2000, seed=0, split="train")
    counts = Counter(level_of(example) for example in examples)
    for level, share in LEVELS.items():
        assert abs(counts[level] / len(examples) - share) < 0.05, level


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 0, "seed": 0, "split": "train"}, "0 questions"),
        ({"n": 5, "seed": 0, "split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_impossible_requests_name_what_is_wrong(kwargs, message):
    with pytest.raises(CaopdError, match=message):
        generate(**kwargs)


def test_more_questions_than_a_split_has_are_refused(monkeypatch):
    monkeypatch.setattr(additions, "LEVELS", {(1, 2): 1.0})
    with pytest.raises(CaopdError, match="no 5000 distinct questions"):
        generate(n=5000, seed=0, split="val")
