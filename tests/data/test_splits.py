"""Validation splits and subsets of a file's rows: deterministic, disjoint, by the prompt's text."""

from dataclasses import replace

import pytest

from caopd_verl.data import check_disjoint, load_task, subsample, validation_split
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.types import Example
from tests.data.row_files import FILES


def make(n):
    examples = []
    for i in range(n):
        prompt = [{"role": "user", "content": f"q{i}"}]
        example = Example(f"id{i}", prompt, "A", "multiple_choice", "s", where=f"f:{i + 1}")
        examples.append(example)
    return examples


def test_the_validation_split_is_deterministic_disjoint_and_independent_of_order():
    examples = make(100)
    train, val = validation_split(examples, fraction=0.05, seed=3)
    assert (len(train), len(val)) == (95, 5)
    assert sorted(train + val, key=examples.index) == examples
    check_disjoint(train, val, names=("train", "val"))
    _, again = validation_split(examples[::-1], fraction=0.05, seed=3)
    assert again == val[::-1]
    _, other = validation_split(examples, fraction=0.05, seed=4)
    assert other != val


def test_equal_prompts_stay_on_one_side():
    examples = make(50)
    twins = [replace(example, id=f"{example.id}b") for example in examples]
    for seed in range(5):
        train, val = validation_split(examples + twins, fraction=0.3, seed=seed)
        assert len(val) == 30
        check_disjoint(train, val, names=("train", "val"))


def test_a_rounding_error_does_not_add_a_prompt():
    assert 0.07 * 100 > 7
    _, val = validation_split(make(100), fraction=0.07, seed=0)
    assert len(val) == 7


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1, 0.995])
def test_impossible_fractions_are_config_errors(fraction):
    with pytest.raises(ConfigError, match="validation_fraction"):
        validation_split(make(20), fraction=fraction, seed=0)


def test_a_shared_prompt_is_named_on_both_sides():
    examples = make(4)
    with pytest.raises(DataError, match=r"^f:4 \(test\): .* train split too, at f:4 \(1 shared"):
        check_disjoint(examples, examples[3:], names=("train", "test"))


def test_subsets_are_nested():
    examples = make(30)
    small = subsample(examples, n=5, seed=1)
    large = subsample(examples, n=9, seed=1)
    assert len(small) == 5
    assert all(example in large for example in small)
    assert subsample(examples, n=30, seed=1) == examples


@pytest.mark.parametrize("n", [0, 31])
def test_a_subset_is_never_smaller_than_asked(n):
    with pytest.raises(ConfigError, match="between 1 and the 30"):
        subsample(make(30), n=n, seed=1)


def ids(split, *, fraction=0.25, n=None):
    path = FILES["sciknoweval"]
    options = {"split": split, "validation_fraction": fraction}
    examples = load_task("sciknoweval", path=path, seed=0, n=n, **options)
    return [example.id for example in examples]


def test_splits_of_a_file_task():
    assert (len(ids("train")), len(ids("val"))) == (3, 1)
    assert sorted(ids("train") + ids("val")) == ids("test")
    assert ids("train", fraction=None) == ids("test")
    assert len(ids("train", n=2)) == 2
    with pytest.raises(ConfigError, match="validation split was asked for without its size"):
        ids("val", fraction=None)
