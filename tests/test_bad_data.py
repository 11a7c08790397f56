"""A bad row, a bad file or a bad model is one clear error before Ray starts.

It names the file and line, or the model, and says what to do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from caopd_verl.core.context import encode_prompt
from caopd_verl.errors import DataError, TokenizerError
from caopd_verl.preflight.checks.prompts import check_prompt_lengths
from caopd_verl.preflight.prepare import prepare
from caopd_verl.preflight.run_context import Context

from .refusals import ROWS, file_task, refusal, science_rows, set_keys, write_rows


@pytest.fixture
def broken_model(tmp_path, tiny_model_path):
    """A copy of the tiny model, to take something away from."""
    return Path(shutil.copytree(tiny_model_path, tmp_path / "model"))


def test_good_files_are_accepted(demo_config):
    set_keys(demo_config, file_task(ROWS / "sciknoweval.json"))
    prepare(demo_config)
    assert Path(demo_config.data.train_files).exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda row: row.pop("answer") and row, ("no 'answer'",)),
        (lambda row: {**row, "answer": "  "}, ("'answer' is empty",)),
        (lambda row: {**row, "answer": None}, ("'answer'",)),
        (lambda row: {**row, "answer": "E"}, ("'E'", "A, B, C, D")),
        (lambda row: json.dumps(row)[:-20], ("not JSON", "correct or remove the line")),
        (lambda row: {**row, "system": "Answer."}, ("response format",)),
    ],
    ids=[
        "no answer",
        "blank answer",
        "null answer",
        "unknown label",
        "broken JSON",
        "no response format",
    ],
)
def test_a_bad_row_names_file_and_line(demo_config, tmp_path, edit, words):
    good, bad, *rest = science_rows()
    path = write_rows(tmp_path / "rows.jsonl", [good, edit(dict(bad)), *rest])
    error = refusal(demo_config, file_task(path))
    assert isinstance(error, DataError)
    assert error.where == f"{path}:2"
    assert all(word in str(error) for word in words), str(error)


def test_a_missing_or_empty_file(demo_config, tmp_path):
    missing = tmp_path / "missing.jsonl"
    error = refusal(demo_config, file_task(missing))
    assert isinstance(error, DataError) and str(missing) in str(error)
    empty = write_rows(tmp_path / "empty.jsonl", [])
    error = refusal(demo_config, file_task(empty))
    assert error.where == str(empty) and "no rows" in str(error)


def test_more_rows_asked_for_than_there_are(demo_config):
    set_keys(demo_config, file_task(ROWS / "sciknoweval.json"))
    error = refusal(demo_config, {"caopd.task.n_train": 1000})
    assert error.where == "caopd.task.n_train" and "1000" in str(error)


def test_a_validation_split_that_leaves_a_side_empty(demo_config):
    set_keys(demo_config, file_task(ROWS / "sciknoweval.json"))
    error = refusal(demo_config, {"caopd.task.val_fraction": 0.0})
    assert error.where == "caopd.task.val_fraction"


def test_training_and_validation_file_share_a_prompt(demo_config):
    path = ROWS / "sciknoweval.json"
    error = refusal(demo_config, {**file_task(path), "caopd.task.val_path": str(path)})
    assert isinstance(error, DataError)
    assert f"{path}:1" in str(error) and "caopd.task.val_path" in str(error)


def test_a_prompt_over_the_limit_names_its_row(demo_config, tmp_path):
    rows = science_rows()
    rows[1]["prompt"] = "very long " * 300 + rows[1]["prompt"]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    error = refusal(demo_config, {**file_task(path), "data.max_prompt_length": 2000})
    assert isinstance(error, DataError) and error.where == f"{path}:2"
    assert "data.max_prompt_length=2000" in str(error)
    assert "what to do: raise data.max_prompt_length" in str(error)


def test_a_generated_prompt_over_the_limit(demo_config):
    error = refusal(demo_config, {"data.max_prompt_length": 8})
    assert error.where.startswith("generated:split=train")
    assert "data.max_prompt_length=8" in str(error)


def test_a_prompt_of_just_the_limit_is_accepted(demo_config):
    context = Context(demo_config)
    lengths = []
    for example in context.questions.all:
        ids = encode_prompt(example.messages, tokenizer=context.tokenizer, template_kwargs={})
        lengths.append(len(ids))
    demo_config.data.max_prompt_length = max(lengths)
    check_prompt_lengths(context)


def test_the_chat_templates_arguments_count_towards_the_length(demo_config, broken_model):
    template = (broken_model / "chat_template.jinja").read_text()
    longer = "{% if enable_thinking %}" + "think " * 100 + "{% endif %}" + template
    (broken_model / "chat_template.jinja").write_text(longer)
    demo_config.actor_rollout_ref.model.path = str(broken_model)
    check_prompt_lengths(Context(demo_config))
    demo_config.data.apply_chat_template_kwargs.enable_thinking = True
    with pytest.raises(DataError, match="the prompt has"):
        check_prompt_lengths(Context(demo_config))


# ---------------------------------------------------------------------- model and tokenizer


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nowhere/model", ("does not exist", "hub id")),
        ("./model", ("does not exist",)),
        ("embedded:qwen3", ("no embedded model", "embedded:tiny_arith")),
    ],
)
def test_a_missing_model_path(demo_config, path, words):
    error = refusal(demo_config, {"actor_rollout_ref.model.path": path})
    assert error.where == "actor_rollout_ref.model.path"
    assert path in str(error) and all(word in str(error) for word in words), str(error)


def test_a_folder_that_is_no_checkpoint(demo_config, tmp_path):
    error = refusal(demo_config, {"actor_rollout_ref.model.path": str(tmp_path)})
    assert error.where == "actor_rollout_ref.model.path" and "config.json" in str(error)


def test_a_hub_id_that_cannot_be_reached(demo_config, monkeypatch):
    def offline(path: str, **kwargs: Any) -> None:
        raise OSError(f"{path} is not a local folder and the hub cannot be reached\nmore lines")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", offline)
    error = refusal(demo_config, {"actor_rollout_ref.model.path": "nobody/nothing"})
    assert error.where == "actor_rollout_ref.model.path"
    assert "'nobody/nothing'" in str(error) and "download the model first" in str(error)
    assert "more lines" not in str(error)


def test_a_tokenizer_without_chat_template(demo_config, broken_model):
    (broken_model / "chat_template.jinja").unlink()
    error = refusal(demo_config, {"actor_rollout_ref.model.path": str(broken_model)})
    assert isinstance(error, TokenizerError)
    assert error.where == f"actor_rollout_ref.model.path={broken_model}"
    assert "no chat template" in str(error) and "what to do: use an instruct model" in str(error)


def test_a_chat_template_without_end_of_turn_token(demo_config, broken_model):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (broken_model / "chat_template.jinja").write_text(template)
    error = refusal(demo_config, {"actor_rollout_ref.model.path": str(broken_model)})
    assert isinstance(error, TokenizerError)
    assert str(broken_model) in str(error)
    assert "end-of-turn" in str(error) and "what to do" in str(error)


def test_a_tokenizer_that_loses_line_breaks(demo_config, broken_model):
    """As those of BERT's kind do: the confidence would not stand on a line of its own."""
    path = broken_model / "tokenizer.json"
    content = json.loads(path.read_text())
    blank = {"type": "Replace", "pattern": {"String": "\n"}, "content": " "}
    path.write_text(json.dumps({**content, "normalizer": blank}))
    error = refusal(demo_config, {"actor_rollout_ref.model.path": str(broken_model)})
    assert isinstance(error, TokenizerError)
    assert error.where == f"actor_rollout_ref.model.path={broken_model}"
    assert "cannot write the confidence line" in str(error)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_model_file(demo_config, broken_model, name):
    (broken_model / name).write_text("{")
    error = refusal(demo_config, {"actor_rollout_ref.model.path": str(broken_model)})
    assert error.where == "actor_rollout_ref.model.path" and str(broken_model) in str(error)
