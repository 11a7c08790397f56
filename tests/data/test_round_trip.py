"""From a loader to the trainer: nothing of an `Example` is lost in the Parquet file or in verl."""

from __future__ import annotations

import json

import pytest

from caopd_verl.data import load_task, to_verl_rows, write_parquet
from caopd_verl.errors import DataError
from caopd_verl.verl_ext.dataset import example_of
from tests.data.row_files import EVALUATION_FILE, FILES, OWN, edited, load

# Keys and types that differ from row to row, and texts that UTF-8 does not take as they are.
METAS = [
    {"level": 1, "tags": []},
    {"level": "hard", "tags": ["é", "half an emoji: \ud83d"], "nested": {"a": [1, None, 0.5]}},
]
LOADERS = ["arithmetic", *FILES, "evaluation file", "with meta and demonstration"]


def write_own_rows(path):
    rows = []
    for i, meta in enumerate(METAS):
        row = {"prompt": f"{i}+1=?", "answer": str(i + 1), "verifier": "arithmetic", "meta": meta}
        rows.append(row)
    rows[1]["demonstration"] = 'Counting on: "1", then\n2'
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(params=LOADERS)
def examples(request, tmp_path):
    """What each loader returns, from each form of file that it takes."""
    if request.param == "arithmetic":
        return load_task("arithmetic", path=None, seed=0, n=3, split="train")
    if request.param == "evaluation file":
        with pytest.warns(UserWarning, match="left out 1 of 4"):
            return load("toolalpaca", EVALUATION_FILE, placeholders="exclude")
    if request.param == "with meta and demonstration":
        return load(OWN, write_own_rows(tmp_path / "rows.jsonl"))
    return load(request.param, FILES[request.param])


def test_an_example_survives_the_parquet_file(examples, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_parquet(examples, tmp_path / "rows.parquet")
    rows = parquet.read_table(path).to_pylist()
    # verl's data set gives the column `prompt` under this name too
    assert [example_of({**row, "raw_prompt": row["prompt"]}) for row in rows] == examples


def test_an_example_survives_verls_data_set_and_batch(examples, tmp_path, verl_on_cpu):
    """The way that the trainer reads them: verl's data set, its collation, its TensorDict."""
    from omegaconf import OmegaConf
    from verl.utils import tensordict_utils
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    path = write_parquet(examples, tmp_path / "rows.parquet")
    settings = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False}
    data = RLHFDataset(str(path), tokenizer=None, config=OmegaConf.create(settings))
    rows = [data[i] for i in range(len(data))]
    assert [example_of(row) for row in rows] == examples
    batch = tensordict_utils.get_tensordict(collate_fn(rows))
    assert [example_of(batch[i]) for i in range(len(batch))] == examples


@pytest.mark.parametrize("first_has_one", [True, False])
def test_files_with_and_without_demonstrations_have_the_same_columns(tmp_path, first_has_one):
    """verl concatenates the files of a list, which needs equal types in all of them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = edited(tmp_path, OWN, 1, demonstration="4" if first_has_one else ...)
    written = write_parquet(load(OWN, path), tmp_path / "rows.parquet")
    extra_info = parquet.read_schema(written).field("extra_info").type
    types = {field.name: str(field.type) for field in extra_info}
    assert types["meta"] == types["demonstration"] == "string"


def test_the_keys_of_a_row_are_those_that_verl_reads():
    examples = load("toolalpaca", FILES["toolalpaca"])
    row = to_verl_rows(examples)[1]
    assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert row["reward_model"] == {"style": "rule", "ground_truth": examples[1].answer}
    assert row["extra_info"] == {
        "id": "tooluse-101",
        "verifier": "tool_call",
        "where": examples[1].where,
        "index": 1,
        "meta": "{}",
        "demonstration": "null",
    }


def test_no_examples_are_an_error_and_folders_are_made(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="no examples"):
        write_parquet([], tmp_path / "rows.parquet")
    examples = load_task("arithmetic", path=None, seed=0, n=1, split="train")
    assert write_parquet(examples, tmp_path / "new" / "rows.parquet").exists()
