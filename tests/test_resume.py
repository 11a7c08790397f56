"""A run goes on from a checkpoint only if it is the same run."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from caopd_verl.errors import ConfigError
from caopd_verl.preflight.resume import FILE, check_resume


@pytest.fixture
def base(compose, tmp_path):
    config = compose("+recipe=sdpo_caopd", "+scale=cpu_tiny")
    OmegaConf.update(config, "caopd.output_dir", str(tmp_path / "run"))
    return config


def checkpoint(config) -> None:
    folder = Path(config.trainer.default_local_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("5")


def test_the_same_run_goes_on_and_may_be_longer(base):
    check_resume(base)
    checkpoint(base)
    base.trainer.total_training_steps = 500
    base.trainer.test_freq = 7
    check_resume(base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("caopd.method", "sdpo"),
        ("caopd.teacher.ema_rate", 0.5),
        ("data.seed", 7),
        ("caopd.loss.alpha", 0.0),
    ],
)
def test_another_runs_checkpoint_is_refused(base, key, value):
    check_resume(base)
    checkpoint(base)
    OmegaConf.update(base, key, value)
    with pytest.raises(ConfigError, match="checkpoints of another run") as caught:
        check_resume(base)
    assert caught.value.where == "caopd.output_dir" and key.rpartition(".")[0] in str(caught.value)
    base.trainer.resume_mode = "disable"
    check_resume(base)
    assert json.loads((Path(base.caopd.output_dir) / FILE).read_text())
    # the old run's checkpoint is not this run's, should it be killed before its own first one
    assert not (Path(base.trainer.default_local_dir) / "latest_checkpointed_iteration.txt").exists()
    base.trainer.resume_mode = "auto"
    check_resume(base)  # the folder is this run's now


def test_before_the_first_checkpoint_nothing_is_held_against_a_run(base):
    check_resume(base)
    base.data.seed = 9
    check_resume(base)
    checkpoint(base)
    check_resume(base)


def test_checkpoints_of_unknown_origin_are_named(base, capsys):
    checkpoint(base)
    check_resume(base)
    assert "can't be checked" in capsys.readouterr().out
