"""What runs after a save, through verl's own builder; the folders are those that verl leaves."""

from __future__ import annotations

import importlib
import sys

import pytest

from caopd_verl.errors import ConfigError

OVERRIDES = ("+recipe=sdpo_caopd", "+scale=cpu_tiny")
USERS = """
from pathlib import Path
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from caopd_verl.verl_ext.checkpoint_callback import AfterSave

class Upload(CheckpointCallback):
    seen = []
    def on_save(self, **told):
        folder = Path(told["checkpoint_dir"]).parent
        teachers = sorted(path.parent.name for path in folder.glob("*/teacher"))
        self.seen.append({**told, "teachers": teachers})

class Own(AfterSave):
    pass

def no_class(config):
    pass
"""


@pytest.fixture
def users(verl_on_cpu, tmp_path, monkeypatch):
    """A module of the user's with callbacks."""
    (tmp_path / "users_callbacks.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("users_callbacks")
    del sys.modules["users_callbacks"]


@pytest.fixture
def build(verl_on_cpu, compose):
    """The callback that a trainer has for `trainer.checkpoint_callback_class=value`."""
    from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback

    from caopd_verl.verl_ext.checkpoint_callback import keep_own

    def build(value: str | None = None):
        named = () if value is None else (f"trainer.checkpoint_callback_class={value}",)
        config = compose(*OVERRIDES, *named)
        keep_own(config)
        return build_checkpoint_callback(config)

    return build


@pytest.fixture
def checkpoints(tmp_path):
    """Three steps; verl has removed the student of the first."""
    for step in (5, 10, 15):
        (tmp_path / f"global_step_{step}" / "teacher").mkdir(parents=True)
        if step > 5:
            (tmp_path / f"global_step_{step}" / "actor").mkdir()
    return tmp_path


def teachers(folder) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/teacher"))


def save(callback, folder, **more) -> None:
    step = folder / "global_step_15"
    callback.on_save(trainer=None, global_step=15, checkpoint_dir=str(step), **more)


def test_the_base_config_names_our_callback(build):
    from caopd_verl.verl_ext.checkpoint_callback import OWN

    callback = build()
    assert f"{type(callback).__module__}.{type(callback).__name__}" == OWN
    assert callback.config.trainer.checkpoint_callback_class == OWN


@pytest.mark.parametrize("value", [None, "null", "users_callbacks.Upload", "users_callbacks.Own"])
def test_teachers_go_with_the_students_that_verl_removes(build, users, checkpoints, value):
    """Whatever the user named: ours is never lost."""
    callback = build(value)
    save(callback, checkpoints, async_save=False)
    assert teachers(checkpoints) == ["global_step_10", "global_step_15"]


def test_the_step_just_saved_keeps_its_teacher_even_without_a_student(build, tmp_path):
    (tmp_path / "global_step_15" / "teacher").mkdir(parents=True)
    save(build(), tmp_path)
    assert teachers(tmp_path) == ["global_step_15"]


def test_the_users_callback_is_told_all_and_sees_the_finished_checkpoint(build, users, checkpoints):
    callback = build("users_callbacks.Upload")
    save(callback, checkpoints, async_save=False, a_later_versions="news")
    assert users.Upload.seen == [
        {
            "trainer": None,
            "global_step": 15,
            "checkpoint_dir": str(checkpoints / "global_step_15"),
            "async_save": False,
            "a_later_versions": "news",
            "teachers": ["global_step_10", "global_step_15"],
        }
    ]


def test_a_subclass_of_ours_is_built_as_it_is(build, users):
    assert type(build("users_callbacks.Own")) is users.Own


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("users_callbacks.Missing", "Missing"),
        ("no_such_module.Upload", "no_such_module"),
        ("Upload", "Invalid checkpoint_callback_class 'Upload'"),
        ("users_callbacks.no_class", "it is no class"),
    ],
)
def test_a_class_that_is_not_there_is_refused_by_its_key(build, users, value, what):
    with pytest.raises(ConfigError, match=what) as caught:
        build(value)
    assert caught.value.where == "trainer.checkpoint_callback_class"
