"""Objects named by `module:Name` strings."""

from __future__ import annotations

import importlib
import sys

import pytest

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.sources import BACKENDS, load_backend
from caopd_verl.plugins import load_object


def test_the_object_of_that_name_is_loaded_from_its_module():
    assert load_object("collections:OrderedDict", where="x").__name__ == "OrderedDict"


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("collections", "'collections' names no object"),
        ("collections:", "'collections:' names no object"),
        (":OrderedDict", "':OrderedDict' names no object"),
        ("collections.no_such:Name", "there is no module 'collections.no_such'"),
        ("no_such_package.part:Name", "there is no module 'no_such_package'"),
        ("collections:NoSuch", "'NoSuch' does not exist in collections"),
    ],
)
def test_a_reference_to_nothing_says_what_is_wrong_and_where(reference, what):
    with pytest.raises(ConfigError) as caught:
        load_object(reference, where="--backend")
    assert str(caught.value).startswith(f"--backend: {what}\n")
    assert "package.module:Name" in (caught.value.expected or "")


def test_what_a_module_itself_lacks_is_not_taken_for_the_module(tmp_path, monkeypatch):
    """torch not installed is another error than a misspelt reference: the reader can install it."""
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_object("needs_more:Name", where="--backend")
    assert "needs_more" not in sys.modules


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_is_there_and_has_what_an_evaluation_calls(name):
    backend = load_backend(name)
    for method in ("batches", "generate", "report"):
        assert callable(getattr(backend, method))
