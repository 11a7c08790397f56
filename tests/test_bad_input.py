"""A bad value is one clear error before Ray starts, which names its key and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from caopd_verl.errors import ConfigError
from caopd_verl.preflight.checks.devices import check_devices
from caopd_verl.preflight.prepare import prepare
from caopd_verl.preflight.run_context import Context
from caopd_verl.preflight.table import run_checks

from .refusals import refusal, set_keys


def test_good_input_is_accepted_and_written(demo_config, tiny_model_path):
    prepare(demo_config)
    assert Path(demo_config.data.train_files).exists()
    assert Path(demo_config.data.val_files).exists()
    assert Path(demo_config.actor_rollout_ref.model.path) == tiny_model_path
    assert Path(demo_config.caopd.output_dir).is_absolute()


def test_paths_become_absolute(demo_config, tmp_path, monkeypatch):
    """Ray's actors have working folders of their own."""
    monkeypatch.chdir(tmp_path)
    demo_config.caopd.output_dir = "here"
    prepare(demo_config)
    assert demo_config.caopd.output_dir == str(tmp_path / "here")
    assert demo_config.data.train_files == str(tmp_path / "here" / "data" / "train.parquet")


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
            {"actor_rollout_ref.actor.ppo_mini_batch_size": 0},
            "actor_rollout_ref.actor.ppo_mini_batch_size",
            ("mini-batches of 0", "divisor"),
        ),
        (
            {"trainer.n_gpus_per_node": 0},
            "trainer.n_gpus_per_node",
            ("over 0 ranks",),
        ),
        (
            {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 0},
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
            ("micro-batches of 0", "at least 1"),
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
        (
            {
                "actor_rollout_ref.rollout.val_kwargs.do_sample": False,
                "actor_rollout_ref.rollout.val_kwargs.n": 2,
            },
            "actor_rollout_ref.rollout.val_kwargs.n",
            ("2 samples a prompt", "greedy"),
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
def test_an_impossible_value_names_its_key(demo_config, values, where, words):
    error = refusal(demo_config, values)
    assert isinstance(error, ConfigError)
    assert error.where == where
    assert str(error).startswith(f"{where}: ")
    assert all(word in str(error) for word in words), str(error)


def test_an_unknown_key_names_the_block_and_the_nearest_key(demo_config):
    OmegaConf.update(demo_config, "caopd.teacher.ema", 0.1, force_add=True)
    error = refusal(demo_config, {})
    assert error.where == "caopd.teacher.ema"
    assert "did you mean caopd.teacher.ema_rate?" in str(error)


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
def test_more_ranks_than_logical_devices(demo_config, values, where):
    error = refusal(demo_config, values)
    assert error.where == where
    assert "2 ranks" in str(error) and "ray_kwargs.ray_init.num_gpus=1" in str(error)


@pytest.fixture
def paper_config(compose, tmp_path, monkeypatch):
    """The paper's setting without a CPU scale."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = compose("+recipe=sdpo_caopd", "+scale=h200x4")
    config.caopd.output_dir = str(tmp_path / "out")
    return config


def test_cpus_without_a_cpu_scale_are_devices_that_ray_would_wait_for(paper_config):
    error = refusal(paper_config, {"trainer.device": "cpu"})
    assert error.where == "trainer.n_gpus_per_node"
    assert "+scale=cpu_tiny" in str(error)


@pytest.mark.parametrize("found", [0, 3])
def test_more_ranks_than_gpus(paper_config, monkeypatch, found):
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    error = refusal(paper_config, {})
    assert error.where == "trainer.n_gpus_per_node"
    assert f"4 ranks a node, and this machine has {found} GPUs" in str(error)
    assert "+scale=cpu_tiny" in str(error)


def test_as_many_gpus_as_ranks_are_enough(paper_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    check_devices(Context(paper_config))


def test_the_devices_of_a_running_cluster_are_not_counted_here(paper_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_devices(Context(paper_config))


@pytest.mark.parametrize(
    "values",
    [
        {"caopd.loss.top_k": 270},  # the tiny model's whole vocabulary
        {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 48},  # filled up to whole ones
        {"trainer.n_gpus_per_node": 3},
        {
            "actor_rollout_ref.actor.use_dynamic_bsz": True,
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": True,
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": None,
        },
        {"actor_rollout_ref.rollout.val_kwargs.n": 4},
        {"actor_rollout_ref.rollout.val_kwargs.do_sample": False},
    ],
)
def test_what_just_works_is_accepted(demo_config, values):
    set_keys(demo_config, values)
    run_checks(Context(demo_config))
