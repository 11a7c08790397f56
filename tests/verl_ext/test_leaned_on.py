"""The table of names that `verl_ext/` leans on is what its source uses, no less and no more."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import caopd_verl.verl_ext
from caopd_verl.verl_ext import leaned_on
from caopd_verl.verl_ext.compat import entries

FOLDER = Path(next(iter(caopd_verl.verl_ext.__path__)))
FILES = {f"caopd_verl.verl_ext.{path.stem}": path for path in FOLDER.glob("[!_]*.py")}
VERSION = leaned_on.SUPPORTED["0.9.1"]


@pytest.fixture(scope="module")
def used(verl_on_cpu):
    from tests.verl_ext.names_used import names_used

    return names_used(FILES)


def listed() -> set[tuple[str, str]]:
    tables = (VERSION.names, VERSION.cpu_names)
    return {(module, dotted) for table in tables for module, dotted, _ in entries(table)}


def test_every_name_that_is_used_is_listed(used):
    missing = {name: at for name, at in used.names.items() if name not in listed()}
    assert not missing, "add to verl_ext/leaned_on.py, each with its reason:\n" + "\n".join(
        f'{module}: "{dotted}"  (used at {at})' for (module, dotted), at in sorted(missing.items())
    )


def test_every_name_that_is_listed_is_used(used):
    stale = listed() - set(used.names)
    assert not stale, f"remove from verl_ext/leaned_on.py: {sorted(stale)}"


def test_no_use_is_left_unexplained(used):
    assert not used.unexplained


def test_a_literal_that_a_framework_reads_is_set_by_us():
    constants = {
        node.value
        for path in FILES.values()
        if path.name != "leaned_on.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert set(VERSION.literals) <= constants


def test_every_name_says_why_it_is_needed():
    for table in (VERSION.names, VERSION.cpu_names, *VERSION.literals.values()):
        assert all(why.strip() for _, _, why in entries(table))


# ---------------------------------------------------------------------- what the reading finds

SAMPLE = """
import ray
from ray import exceptions
from verl.trainer.ppo.utils import Role
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker
from verl.workers.rollout.replica import RolloutReplicaRegistry as Registry

ray.get([])
exceptions.RayError
tu.get({}, "key", None)
Role.Actor.name
Registry._registry


class Sample(TrainingWorker):
    own = 1

    def __init__(self):
        pass

    def reset(self):
        self.later = self.own
        self.loss_fn = None
        return self.engine.optimizer_step()

    def step(self):
        return super().train_batch(self.later)
"""


@pytest.fixture
def read(verl_on_cpu, tmp_path, monkeypatch):
    """What is found in a module of that text."""
    from tests.verl_ext.names_used import names_used

    def read(text: str, name: str):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return names_used({name: path})

    return read


def test_the_reading_finds_imports_attributes_overrides_and_what_they_lead_to(read):
    found = read(SAMPLE, "sample_of_uses")
    workers, fsdp = "verl.workers.engine_workers", "verl.workers.engine.fsdp.transformer_impl"
    replica = "verl.workers.rollout.replica"
    assert found.names == {
        ("ray", "get"): "sample_of_uses.py:9",
        ("ray.exceptions", "RayError"): "sample_of_uses.py:10",
        ("verl.trainer.ppo.utils", "Role"): "sample_of_uses.py:4",
        ("verl.trainer.ppo.utils", "Role.Actor"): "sample_of_uses.py:12",
        ("verl.utils.tensordict_utils", "get"): "sample_of_uses.py:11",
        (workers, "TrainingWorker"): "sample_of_uses.py:6",
        (workers, "TrainingWorker.reset"): "sample_of_uses.py:22",
        (workers, "TrainingWorker.loss_fn"): "sample_of_uses.py:24",
        (workers, "TrainingWorker.engine"): "sample_of_uses.py:25",
        (workers, "TrainingWorker.train_batch"): "sample_of_uses.py:28",
        (fsdp, "FSDPEngine.optimizer_step"): "sample_of_uses.py:25",
        (replica, "RolloutReplicaRegistry"): "sample_of_uses.py:7",
        (replica, "RolloutReplicaRegistry._registry"): "sample_of_uses.py:13",
    }
    assert found.unexplained == []


@pytest.mark.parametrize(
    ("name", "line", "what"),
    [
        ("gone", "return self.engine.no_such_method()", "CaopdEngine has no no_such_method"),
        ("unset", "return self.no_such_attribute", "Sample has no no_such_attribute"),
        ("beyond", "return self.flops_counter.x", "not say what TrainingWorker.flops_counter is"),
        ("private", "return self.own._secret", "whose attribute is self.own._secret?"),
    ],
)
def test_what_the_reading_cannot_explain_is_reported(read, name, line, what):
    text = SAMPLE.replace("return super().train_batch(self.later)", line)
    (report,) = read(text, name).unexplained
    assert report.startswith(f"{name}.py:28: ") and what in report
