"""Which questions `caopd eval` asks."""

import argparse
import json

import pytest

from caopd_verl.data.registry import load_task
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.eval_cli import EvalCommand, examples_of


@pytest.fixture
def options():
    """`options("--split", "val")` -> the parsed command line."""
    parser = argparse.ArgumentParser()
    EvalCommand.add_parser(parser.add_subparsers())
    return lambda *given: parser.parse_args(["eval", *given, "--output", "unused"])


@pytest.fixture
def own_rows(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": str(i), "prompt": f"{i}+1=?", "answer": str(i + 1), "verifier": "arithmetic"}
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_validation_split_is_the_one_of_training(options, own_rows):
    args = ["--task", "jsonl", "--data", str(own_rows), "--val-fraction", "0.25"]
    parts = {
        split: {e.id for e in examples_of(options(*args, "--split", split))}
        for split in ("train", "val", "test")
    }
    assert len(parts["val"]) == 15 and not parts["val"] & parts["train"]
    assert parts["val"] | parts["train"] == parts["test"]
    trained = load_task(
        "jsonl", path=own_rows, seed=0, n=None, split="val", validation_fraction=0.25
    )
    assert parts["val"] == {e.id for e in trained}


def test_a_generated_task_needs_a_number_and_has_splits_of_its_own(options):
    with pytest.raises(ConfigError, match="--limit"):
        examples_of(options("--task", "arithmetic"))
    assert len(examples_of(options("--task", "arithmetic", "--limit", "5", "--split", "val"))) == 5


def test_data_without_a_task_is_an_error(options, own_rows):
    with pytest.raises(ConfigError, match="--task"):
        examples_of(options("--data", str(own_rows)))
