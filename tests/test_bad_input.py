"""Bad input is one clear error before Ray starts: it names the config key or the file and line, and says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from caopd_verl.errors import CaopdError, ConfigError, DataError, TokenizerError
from caopd_verl.preflight import prepare as preflight

ROWS = Path(__file__).parent / "data" / "rows"
TINY = Path(preflight.resolve_model_path("embedded:tiny_arith"))


@pytest.fixture
def base(compose, tmp_path, monkeypatch):
    """The CPU demo's config on a handful of questions."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = compose("+recipe=sdpo_caopd", "+scale=cpu_tiny")
    set_keys(
        config,
        {
            "caopd.task.n_train": 32,
            "caopd.task.n_val": 8,
            "caopd.output_dir": str(tmp_path / "out"),
        },
    )
    return config


def set_keys(config: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        OmegaConf.update(config, key, value)


def refusal(config: Any, values: dict[str, Any]) -> CaopdError:
    """The one error that `prepare` raises; nothing is written before it."""
    set_keys(config, values)
    with pytest.raises(CaopdError) as caught:
        preflight.prepare(config)
    assert not Path(config.caopd.output_dir, "data").exists()
    return caught.value


def file_task(path: Path, name: str = "sciknoweval") -> dict[str, Any]:
    return {
        "caopd.task.name": name,
        "caopd.task.train_path": str(path),
        "caopd.task.val_fraction": 0.34,
        "caopd.task.n_train": None,
        "caopd.task.n_val": None,
        "data.max_prompt_length": 4096,
        "data.train_batch_size": 1,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 1,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
    }


def science_rows() -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (ROWS / "sciknoweval.json").read_text().splitlines() if line
    ]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return path


def test_good_input_is_accepted_and_written(base):
    preflight.prepare(base)
    assert Path(base.data.train_files).exists() and Path(base.data.val_files).exists()
    assert Path(base.actor_rollout_ref.model.path) == TINY
    assert Path(base.caopd.output_dir).is_absolute()


def test_good_files_are_accepted(base, tmp_path):
    set_keys(base, file_task(ROWS / "sciknoweval.json"))
    preflight.prepare(base)
    assert Path(base.data.train_files).exists()


# ---------------------------------------------------------------------- config values


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        (
            {"actor_rollout_ref.rollout.n": 1, "caopd.target.leave_one_out": True},
            "caopd.target.leave_one_out",
            ("K is 1", "raise actor_rollout_ref.rollout.n"),
        ),
        ({"caopd.loss.alpha": -0.1}, "caopd.loss.alpha", ("-0.1", "[0, 1]")),
        ({"caopd.loss.alpha": 1.5}, "caopd.loss.alpha", ("1.5", "[0, 1]")),
        ({"caopd.loss.alpha": float("nan")}, "caopd.loss.alpha", ("nan", "[0, 1]")),
        ({"caopd.loss.confidence_alpha": 2.0}, "caopd.loss.confidence_alpha", ("2.0", "[0, 1]")),
        (
            {"caopd.loss.top_k": 271},
            "caopd.loss.top_k",
            ("271", "vocabulary of 270", "at most 270"),
        ),
        ({"caopd.loss.top_k": 0}, "caopd.loss.top_k", ("at least 1", "null")),
        ({"caopd.teacher.ema_rate": 0.0}, "caopd.teacher.ema_rate", ("0.0", "(0, 1]")),
        ({"caopd.teacher.ema_rate": 1.01}, "caopd.teacher.ema_rate", ("1.01", "(0, 1]")),
        ({"caopd.teacher.ema_rate": float("nan")}, "caopd.teacher.ema_rate", ("nan", "(0, 1]")),
        ({"caopd.method": "grpo2"}, "caopd.method", ("grpo2", "one of sdpo, sdpo_caopd")),
        (
            {"caopd.method": "sdpo", "caopd.unsolved": "confidence_only"},
            "caopd.unsolved",
            ("caopd.unsolved=mask",),
        ),
        ({"caopd.target.shrinkage": [1.0]}, "caopd.target.shrinkage", ("[a, b]",)),
        ({"caopd.target.shrinkage": [-1.0, 1.0]}, "caopd.target.shrinkage", ("[a, b]",)),
        ({"caopd.loss.is_clip": 0.0}, "caopd.loss.is_clip", ("positive",)),
        ({"caopd.loss.tis_clip": -1.0}, "caopd.loss.tis_clip", ("positive", "null")),
        ({"actor_rollout_ref.rollout.n": 0}, "actor_rollout_ref.rollout.n", ("at least 1",)),
        (
            {"data.train_batch_size": 48},
            "actor_rollout_ref.actor.ppo_mini_batch_size",
            ("48", "divisor"),
        ),
        (
            {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 48},
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
            ("256 rows", "48"),
        ),
        (
            {"actor_rollout_ref.actor.use_dynamic_bsz": True},
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz",
            ("use_dynamic_bsz=True", "the same for both"),
        ),
        (
            {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": None},
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
            ("micro-batches of None", "use_dynamic_bsz=true"),
        ),
        (
            {
                "actor_rollout_ref.rollout.val_kwargs.do_sample": False,
                "actor_rollout_ref.rollout.val_kwargs.n": 8,
            },
            "actor_rollout_ref.rollout.val_kwargs.n",
            ("8 samples a prompt", "greedy"),
        ),
        ({"actor_rollout_ref.rollout.temperature": 0}, "actor_rollout_ref.rollout.n", ("greedy",)),
        (
            {"actor_rollout_ref.rollout.n": 1},
            "actor_rollout_ref.rollout.n",
            ("never its own demonstration",),
        ),
        (
            {"actor_rollout_ref.model.lora_rank": 8},
            "actor_rollout_ref.model.lora_rank",
            ("8", "base model"),
        ),
        (
            {"actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": 2},
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
            ("2", "logits"),
        ),
        (
            {"actor_rollout_ref.model.use_fused_kernels": True},
            "actor_rollout_ref.model.use_fused_kernels",
            ("logits",),
        ),
        (
            {"actor_rollout_ref.actor.checkpoint.async_save": True},
            "actor_rollout_ref.actor.checkpoint.async_save",
            ("True", "go on from it"),
        ),
        ({"trainer.rollout_data_dir": "x"}, "trainer.rollout_data_dir", ("record_path",)),
        (
            {"actor_rollout_ref.actor.strategy": "fsdp"},
            "actor_rollout_ref.actor.strategy",
            ("fsdp2",),
        ),
        ({"caopd.task.name": "mmlu"}, "caopd.task.name", ("mmlu", "sciknoweval")),
        ({"caopd.task.name": "sciknoweval"}, "caopd.task.train_path", ("needs a data file",)),
        (
            {"caopd.task.train_path": "questions.jsonl"},
            "caopd.task.train_path",
            ("generated", "leave it out"),
        ),
        ({"caopd.task.n_train": 0}, "caopd.task.n_train", ("0 questions", "at least 1")),
        ({"caopd.task.n_val": 0}, "caopd.task.n_val", ("0 questions", "at least 1")),
        (
            {"caopd.task.n_train": 31},
            "data.train_batch_size",
            ("31 training prompts", "at most 31"),
        ),
    ],
)
def test_an_impossible_value_names_its_key(base, values, where, words):
    error = refusal(base, values)
    assert isinstance(error, ConfigError)
    assert error.where == where
    assert str(error).startswith(f"{where}: ")
    assert all(word in str(error) for word in words), str(error)


def test_an_unknown_key_names_the_block_and_the_nearest_key(base):
    OmegaConf.update(base, "caopd.teacher.ema", 0.1, force_add=True)
    error = refusal(base, {})
    assert error.where == "caopd.teacher.ema" and "did you mean caopd.teacher.ema_rate?" in str(
        error
    )


# ---------------------------------------------------------------------- devices


@pytest.mark.parametrize(
    ("values", "where"),
    [
        (
            {"trainer.n_gpus_per_node": 2, "ray_kwargs.ray_init.num_gpus": 1},
            "trainer.n_gpus_per_node",
        ),
        ({"trainer.nnodes": 2}, "trainer.nnodes"),
    ],
)
def test_more_ranks_than_logical_devices(base, values, where):
    error = refusal(base, values)
    assert error.where == where
    assert "2 ranks" in str(error) and "ray_kwargs.ray_init.num_gpus=1" in str(error)


def test_cpu_device_without_a_cpu_scale_would_wait_for_devices_that_ray_does_not_have(
    compose, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    error = refusal(compose("+recipe=sdpo_caopd"), {"trainer.device": "cpu"})
    assert error.where == "trainer.n_gpus_per_node" and "+scale=cpu_tiny" in str(error)


@pytest.mark.parametrize("found", [0, 2])
def test_more_ranks_than_gpus(compose, monkeypatch, found):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    error = refusal(compose("+recipe=sdpo_caopd", "+scale=h200x4"), {})
    assert error.where == "trainer.n_gpus_per_node"
    assert f"4 ranks a node, and this machine has {found} GPUs" in str(
        error
    ) and "+scale=cpu_tiny" in str(error)


def test_rows_that_do_not_split_over_the_ranks(base):
    error = refusal(base, {"trainer.n_gpus_per_node": 3})
    assert error.where == "trainer.n_gpus_per_node" and "256 rows" in str(error)


# ---------------------------------------------------------------------- data


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
def test_a_bad_row_names_file_and_line(base, tmp_path, edit, words):
    good, bad, *rest = science_rows()
    path = write(tmp_path / "rows.jsonl", [good, edit(dict(bad)), *rest])
    error = refusal(base, file_task(path))
    assert isinstance(error, DataError)
    assert error.where == f"{path}:2"
    assert all(word in str(error) for word in words), str(error)


def test_a_missing_or_empty_file(base, tmp_path):
    missing = tmp_path / "missing.jsonl"
    error = refusal(base, file_task(missing))
    assert isinstance(error, DataError) and str(missing) in str(error)
    empty = write(tmp_path / "empty.jsonl", [])
    error = refusal(base, file_task(empty))
    assert error.where == str(empty) and "no rows" in str(error)


def test_more_rows_asked_for_than_there_are(base, tmp_path):
    error = refusal(base, {**file_task(ROWS / "sciknoweval.json"), "caopd.task.n_train": 1000})
    assert error.where == "caopd.task.n_train" and "1000" in str(error)


def test_a_validation_split_that_leaves_a_side_empty(base):
    error = refusal(base, {**file_task(ROWS / "sciknoweval.json"), "caopd.task.val_fraction": 0.0})
    assert error.where == "caopd.task.val_fraction"


def test_training_and_validation_file_share_a_prompt(base):
    path = ROWS / "sciknoweval.json"
    error = refusal(base, {**file_task(path), "caopd.task.val_path": str(path)})
    assert (
        isinstance(error, DataError)
        and f"{path}:1" in str(error)
        and "caopd.task.val_path" in str(error)
    )


def test_a_prompt_over_the_limit_names_its_row(base, tmp_path):
    rows = science_rows()
    rows[1]["prompt"] = "very long " * 300 + rows[1]["prompt"]
    path = write(tmp_path / "rows.jsonl", rows)
    error = refusal(base, {**file_task(path), "data.max_prompt_length": 2000})
    assert isinstance(error, DataError) and error.where == f"{path}:2"
    assert "data.max_prompt_length=2000" in str(
        error
    ) and "what to do: raise data.max_prompt_length" in str(error)


def test_a_generated_prompt_over_the_limit(base):
    error = refusal(base, {"data.max_prompt_length": 8})
    assert error.where.startswith("generated:split=train") and "data.max_prompt_length=8" in str(
        error
    )


# ---------------------------------------------------------------------- model and tokenizer


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nowhere/model", ("does not exist", "hub id")),
        ("./model", ("does not exist",)),
        ("embedded:qwen3", ("no embedded model", "embedded:tiny_arith")),
    ],
)
def test_a_missing_model_path(base, path, words):
    error = refusal(base, {"actor_rollout_ref.model.path": path})
    assert error.where == "actor_rollout_ref.model.path"
    assert path in str(error) and all(word in str(error) for word in words), str(error)


def test_a_folder_that_is_no_checkpoint(base, tmp_path):
    error = refusal(base, {"actor_rollout_ref.model.path": str(tmp_path)})
    assert error.where == "actor_rollout_ref.model.path" and "config.json" in str(error)


def test_a_hub_id_that_cannot_be_reached(base, monkeypatch):
    def offline(path: str, **kwargs: Any) -> None:
        raise OSError(f"{path} is not a local folder and the hub cannot be reached\nmore lines")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", offline)
    error = refusal(base, {"actor_rollout_ref.model.path": "nobody/nothing"})
    assert error.where == "actor_rollout_ref.model.path"
    assert "'nobody/nothing'" in str(error) and "download the model first" in str(error)
    assert "more lines" not in str(error)


@pytest.fixture
def broken_model(tmp_path):
    """A copy of the tiny model, to take something away from."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def test_a_tokenizer_without_chat_template(base, broken_model):
    (broken_model / "chat_template.jinja").unlink()
    error = refusal(base, {"actor_rollout_ref.model.path": str(broken_model)})
    assert isinstance(error, TokenizerError)
    assert error.where == f"actor_rollout_ref.model.path={broken_model}"
    assert "no chat template" in str(error) and "what to do: use an instruct model" in str(error)


def test_a_chat_template_without_end_of_turn_token(base, broken_model):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (broken_model / "chat_template.jinja").write_text(template)
    error = refusal(base, {"actor_rollout_ref.model.path": str(broken_model)})
    assert isinstance(error, TokenizerError)
    assert (
        str(broken_model) in str(error)
        and "end-of-turn" in str(error)
        and "what to do" in str(error)
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_model_file(base, broken_model, name):
    (broken_model / name).write_text("{")
    error = refusal(base, {"actor_rollout_ref.model.path": str(broken_model)})
    assert error.where == "actor_rollout_ref.model.path" and str(broken_model) in str(error)


# ---------------------------------------------------------------------- a batch without a teacher
