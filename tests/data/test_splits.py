from dataclasses import replace
from pathlib import Path

import pytest

from caopd_verl.data import (
    check_disjoint,
    load_task,
    subsample,
    to_verl_rows,
    validation_split,
    write_parquet,
)
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.types import Example

ROWS = Path(__file__).parent / "rows"


def make(n):
    return [
        Example(
            f"id{i}",
            [{"role": "user", "content": f"q{i}"}],
            "A",
            "multiple_choice",
            "s",
            f"f:{i + 1}",
        )
        for i in range(n)
    ]


def test_t32_the_validation_split_is_deterministic_disjoint_and_independent_of_order():
    examples = make(100)
    train, val = validation_split(examples, fraction=0.05, seed=3)
    assert (len(train), len(val)) == (95, 5)
    assert sorted(train + val, key=lambda e: e.id) == sorted(examples, key=lambda e: e.id)
    check_disjoint(train, val, names=("train", "val"))
    _, again = validation_split(examples[::-1], fraction=0.05, seed=3)
    assert again == val[::-1]
    assert validation_split(examples, fraction=0.05, seed=4)[1] != val


def test_t32_equal_prompts_stay_on_one_side():
    examples = make(50)
    twins = [replace(e, id=e.id + "b") for e in examples]
    for seed in range(5):
        train, val = validation_split(examples + twins, fraction=0.3, seed=seed)
        assert len(val) == 30
        check_disjoint(train, val, names=("train", "val"))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1, 0.995])
def test_impossible_fractions_are_config_errors(fraction):
    with pytest.raises(ConfigError, match="validation_fraction"):
        validation_split(make(20), fraction=fraction, seed=0)


def test_a_shared_prompt_is_named_on_both_sides():
    examples = make(4)
    with pytest.raises(DataError, match=r"^f:4 \(test\): .* train split too, at f:4 \(1 shared"):
        check_disjoint(examples, examples[3:], names=("train", "test"))


def test_subsamples_are_nested_and_never_smaller_than_asked():
    examples = make(30)
    small, large = subsample(examples, n=5, seed=1), subsample(examples, n=9, seed=1)
    assert len(small) == 5 and all(e in large for e in small)
    assert subsample(examples, n=30, seed=1) == examples
    for n in (0, 31):
        with pytest.raises(ConfigError, match="between 1 and the 30"):
            subsample(examples, n=n, seed=1)


def test_splits_of_a_file_task():
    path = ROWS / "sciknoweval.json"

    def ids(split, fraction=0.25, n=None):
        task = load_task(
            "sciknoweval", path=path, seed=0, n=n, split=split, validation_fraction=fraction
        )
        return [e.id for e in task]

    assert len(ids("train")) == 3 and len(ids("val")) == 1
    assert sorted(ids("train") + ids("val")) == ids("test") == ids("train", fraction=None)
    assert len(ids("train", n=2)) == 2
    with pytest.raises(ConfigError, match="validation split was asked for without its size"):
        ids("val", fraction=None)


def test_verl_rows_and_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    examples = load_task("toolalpaca", path=ROWS / "tooluse.json", seed=0, n=None, split="test")
    rows = to_verl_rows(examples)
    assert set(rows[0]) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert rows[1]["reward_model"] == {"style": "rule", "ground_truth": examples[1].answer}
    assert rows[1]["extra_info"] == {
        "id": "tooluse-101",
        "verifier": "tool_call",
        "where": examples[1].where,
        "index": 1,
    }
    path = write_parquet(examples, tmp_path / "new" / "rows.parquet")
    assert parquet.read_table(path).to_pylist() == rows
    with pytest.raises(DataError, match="no examples"):
        write_parquet([], path)
