"""Imports go down only, and what is meant to be used without verl can be (design: layers)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import caopd_verl

PACKAGE = Path(next(iter(caopd_verl.__path__)))
FRAMEWORKS = ("verl", "ray", "vllm", "transfer_queue", "tensordict")
TOOLS = ("torchmetrics", "lm_eval", "inspect_ai", "huggingface_hub", "datasets")
BASE = {"errors", "types", "run_files"}
# layer -> layers it may import besides itself; the entry points stand on top
MAY_IMPORT = {
    "errors": set(),
    "types": set(),
    "plugins": {"errors"},
    "run_files": set(),
    "config": {"errors"},
    "core": BASE,
    "losses": BASE,
    "verifiers": BASE | {"plugins", "core"},
    "data": BASE | {"core", "verifiers"},
    "evaluation": BASE | {"plugins", "core", "config", "verifiers", "data"},
    "cascade": BASE | {"core", "config", "verifiers", "data", "evaluation"},
    "integrations": BASE | {"core", "config", "verifiers", "data", "evaluation"},
    "methods": BASE | {"core", "config", "losses"},
    "assets": BASE | {"core", "verifiers", "data"},
    "pipeline": BASE | {"core", "config", "losses", "methods"},
    "preflight": BASE | {"core", "config", "verifiers", "data", "methods"},
    "verl_ext": BASE
    | {"pipeline"}
    | {"core", "config", "losses", "verifiers", "data", "evaluation", "methods"},
}
NEEDS_TORCH = {
    "evaluation/sources/local.py"
}  # answers questions with a local model; imported by name only
ENTRY_POINTS = {"main", "cli", "demo"}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)} imports relatively"
            yield node.module or ""
            if node.module == "caopd_verl":
                yield from (f"caopd_verl.{alias.name}" for alias in node.names)


def test_every_file_belongs_to_a_known_layer():
    assert {layer_of(file) for file in FILES} <= {"__init__", *MAY_IMPORT, *ENTRY_POINTS}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_verl_ext_imports_verl_ray_or_vllm(file):
    if layer_of(file) != "verl_ext":
        assert not [name for name in imported(file) if name.split(".")[0] in FRAMEWORKS]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_integrations_imports_other_peoples_tools(file):
    if layer_of(file) != "integrations":
        assert not [name for name in imported(file) if name.split(".")[0] in TOOLS]


@pytest.mark.parametrize("file", [f for f in FILES if layer_of(f) in MAY_IMPORT], ids=name_of)
def test_imports_go_down_only(file):
    layer = layer_of(file)
    ours = {name.split(".")[1] for name in imported(file) if name.startswith("caopd_verl.")}
    assert ours <= MAY_IMPORT[layer] | {layer}


@pytest.mark.parametrize("layer", ["core", "errors", "types", "plugins"])
def test_core_needs_torch_and_the_standard_library_only(layer):
    allowed = {"torch", "caopd_verl", *sys.stdlib_module_names}
    for file in FILES:
        if layer_of(file) == layer:
            assert {name.split(".")[0] for name in imported(file)} <= allowed, name_of(file)


def loaded_after_importing(layers: tuple[str, ...]) -> set[str]:
    """Top-level modules in a fresh interpreter after importing every module of the layers."""
    modules = [
        "caopd_verl."
        + name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in FILES
        if layer_of(file) in layers and name_of(file) not in NEEDS_TORCH
    ]
    assert len(modules) >= len(layers)
    code = (
        f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_core_methods_and_config_work_without_verl():
    loaded = loaded_after_importing(
        ("core", "losses", "methods", "pipeline", "config", "errors", "types")
    )
    assert "torch" in loaded
    assert not loaded & {*FRAMEWORKS, "transformers", "hydra", "omegaconf"}


def test_verifiers_data_evaluation_and_cascade_work_without_torch():
    loaded = loaded_after_importing(("verifiers", "data", "evaluation", "cascade"))
    assert not loaded & {*FRAMEWORKS, "torch", "transformers", "hydra", "omegaconf"}
