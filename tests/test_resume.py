"""A run goes on from a checkpoint only if it is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from caopd_verl.errors import ConfigError
from caopd_verl.preflight.checks.resume import FILE, check_resume
from caopd_verl.preflight.prepare import prepare
from caopd_verl.preflight.run_context import Context

LATEST = "latest_checkpointed_iteration.txt"


def run_file(config) -> Path:
    return Path(config.caopd.output_dir) / FILE


def add_checkpoint(config) -> Path:
    """What verl leaves in the run's folder when it saves a step."""
    folder = Path(config.trainer.default_local_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LATEST).write_text("5")
    return folder / LATEST


@pytest.fixture
def begun(demo_config):
    """A run that has saved a checkpoint."""
    prepare(demo_config)
    add_checkpoint(demo_config)
    return demo_config


def test_the_same_run_goes_on_and_may_be_longer(begun):
    before = run_file(begun).read_text()
    begun.trainer.total_training_steps = 500
    begun.trainer.test_freq = 7
    begun.caopd.task.n_val = 16
    begun.caopd.evaluation.n_bins = 5
    begun.caopd.rollout.record_path = "elsewhere"
    prepare(begun)
    assert run_file(begun).read_text() == before


def test_two_spellings_of_a_models_folder_are_one_model(begun):
    assert begun.actor_rollout_ref.model.path.endswith("assets/tiny_arith")
    begun.actor_rollout_ref.model.path = "embedded:tiny_arith"
    check_resume(Context(begun))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("caopd.method", "sdpo"),
        ("caopd.teacher.ema_rate", 0.5),
        ("caopd.loss.alpha", 0.0),
        ("caopd.confidence_loss", "cross_entropy"),
        ("caopd.target.shrinkage", [1.0, 1.0]),
        ("caopd.task.seed", 3),
        ("data.seed", 7),
        ("data.apply_chat_template_kwargs", {"enable_thinking": True}),
        ("actor_rollout_ref.actor.optim.lr", 1.0),
    ],
)
def test_another_runs_checkpoint_is_refused(begun, key, value):
    OmegaConf.update(begun, key, value, merge=False)
    with pytest.raises(ConfigError, match="checkpoints of another run") as caught:
        check_resume(Context(begun))
    assert caught.value.where == "caopd.output_dir"
    assert f"{key} was " in str(caught.value)


def test_another_model_is_another_run(begun, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    begun.actor_rollout_ref.model.path = str(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"actor_rollout_ref.model.path was '.*tiny_arith'"):
        check_resume(Context(begun))


def test_a_setting_that_is_no_more_is_another_run_and_a_younger_one_is_not(begun):
    recorded = json.loads(run_file(begun).read_text())
    del recorded["caopd.confidence_loss"]
    run_file(begun).write_text(json.dumps(recorded))
    check_resume(Context(begun))
    run_file(begun).write_text(json.dumps({**recorded, "caopd.loss.beta": 0.5}))
    with pytest.raises(ConfigError, match=r"caopd\.loss\.beta was 0\.5, is None"):
        check_resume(Context(begun))


def test_starting_over_forgets_the_old_runs_checkpoint(begun):
    """Should it be killed before its own first one, `auto` must not go on from the old one."""
    latest = Path(begun.trainer.default_local_dir) / LATEST
    begun.data.seed = 7
    begun.trainer.resume_mode = "disable"
    check_resume(Context(begun))
    assert latest.exists(), "a check writes and removes nothing"
    prepare(begun)
    assert not latest.exists()
    assert json.loads(run_file(begun).read_text())["data.seed"] == 7
    begun.trainer.resume_mode = "auto"
    check_resume(Context(begun))  # the folder is this run's now


def test_a_checkpoint_that_the_user_names_is_not_compared(begun):
    before = run_file(begun).read_text()
    begun.data.seed = 7
    begun.trainer.resume_mode = "resume_path"
    prepare(begun)
    assert run_file(begun).read_text() == before


def test_before_the_first_checkpoint_nothing_is_held_against_a_run(demo_config):
    prepare(demo_config)
    demo_config.data.seed = 9
    prepare(demo_config)
    add_checkpoint(demo_config)
    check_resume(Context(demo_config))
    assert json.loads(run_file(demo_config).read_text())["data.seed"] == 9


def test_checkpoints_of_unknown_origin_are_named(demo_config, capsys):
    add_checkpoint(demo_config)
    prepare(demo_config)
    assert "can't be checked" in capsys.readouterr().out
    assert not run_file(demo_config).exists(), "that would claim them for this run"
