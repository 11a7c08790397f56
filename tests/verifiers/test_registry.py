"""One way in: names from the table, a user's own by `module:object`, nothing by import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from caopd_verl.errors import ConfigError
from caopd_verl.verifiers import get_verifier, verifier_names

OWN_MODULE = '''
from caopd_verl.types import Verdict


class Yes:
    """Every response is correct."""

    def __init__(self):
        self.where = None

    def check_gold(self, answer, where):
        self.where = where

    def demonstration(self, gold):
        return gold

    def __call__(self, response, gold):
        return Verdict(True, "correct", response)


class WithArguments(Yes):
    def __init__(self, threshold):
        pass


class OnlyCallable:
    def __call__(self, response, gold):
        return Verdict(True, "correct", response)


def a_function(response, gold):
    return Verdict(True, "correct", response)


yes = Yes()
A_TEXT = "no verifier"
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """An importable module of a user's, under a name that no other test has loaded from."""
    name = f"own_verifiers_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("name", verifier_names())
def test_a_name_of_the_table_gives_one_object(name):
    assert get_verifier(name) is get_verifier(name, where="somewhere else")


def test_two_names_that_share_a_class_give_two_rules():
    assert get_verifier("tool_call") != get_verifier("tool_call_first")


def test_no_verifier_is_imported_before_it_is_asked_for():
    code = "import sys, caopd_verl.verifiers as v; v.verifier_names(); print(*sys.modules)"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    loaded = [name for name in done.stdout.split() if name.startswith("caopd_verl.verifiers.")]
    assert sorted(loaded) == ["caopd_verl.verifiers.registry", "caopd_verl.verifiers.verifier"]


@pytest.mark.parametrize("name", ["mcq", "", "Arithmetic", ".own:Yes", ["x"], None])
def test_an_unknown_verifier_lists_those_that_exist(name):
    with pytest.raises(ConfigError) as caught:
        get_verifier(name, where="jsonl:3")
    assert str(caught.value).startswith(f"jsonl:3: unknown verifier {name!r}\n")
    for known in ("arithmetic", "multiple_choice", "tool_call_first", "package.module:object"):
        assert known in caught.value.expected


@pytest.mark.parametrize("object_name", ["Yes", "yes"])
def test_a_users_class_or_object_is_named_by_its_module(own_module, object_name):
    name = f"{own_module}:{object_name}"
    verify = get_verifier(name)
    assert verify("46", "B").correct
    assert get_verifier(name) is verify


@pytest.mark.parametrize(
    ("object_name", "what"),
    [
        ("OnlyCallable", "it has no check_gold, demonstration"),
        ("a_function", "it has no check_gold, demonstration"),
        ("A_TEXT", "it has no check_gold, demonstration, __call__"),
        ("WithArguments", "can't be made without arguments"),
        ("nothing", "'nothing' does not exist in "),
    ],
)
def test_what_is_no_verifier_is_refused_with_its_place(own_module, object_name, what):
    with pytest.raises(ConfigError) as caught:
        get_verifier(f"{own_module}:{object_name}", where="--verifier")
    assert str(caught.value).startswith("--verifier: ")
    assert what in str(caught.value)


def test_a_module_that_is_not_there_is_refused_with_its_place():
    with pytest.raises(ConfigError, match=r"^rows\.jsonl:3: there is no module 'no_such_"):
        get_verifier("no_such_module:Verifier", where="rows.jsonl:3")
