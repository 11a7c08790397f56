"""The wheel holds what an install needs: configs, the tiny model, type marker, entry points."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "caopd_verl"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, so that no build folder is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    shutil.copytree(PACKAGE, source / "caopd_verl", ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "dist",
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").glob("caopd_verl-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def info(wheel: zipfile.ZipFile, name: str) -> str:
    """The text of a file of the wheel's metadata."""
    ending = f".dist-info/{name}"
    (path,) = [found for found in wheel.namelist() if found.endswith(ending)]
    return wheel.read(path).decode()


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files
    for needed in (
        "py.typed",
        "configs/caopd_trainer.yaml",
        "configs/recipe/_table6.yaml",
        "configs/scale/cpu_tiny.yaml",
        "assets/tiny_arith/config.json",
        "assets/tiny_arith/model.safetensors",
        "assets/tiny_arith/tokenizer.json",
        "assets/tiny_arith/chat_template.jinja",
    ):
        assert f"caopd_verl/{needed}" in packed


def test_the_wheel_is_small(wheel):
    assert sum(item.file_size for item in wheel.infolist()) < 4 * 2**20


def test_entry_points(wheel):
    found = info(wheel, "entry_points.txt").split()
    assert found == [
        *("[console_scripts]", "caopd", "=", "caopd_verl.cli:main"),
        *("[verl.plugins]", "caopd", "=", "caopd_verl.verl_ext.plugin"),
        *("[vllm.general_plugins]", "caopd", "=", "caopd_verl.verl_ext.vllm_plugin:register"),
    ]


def test_metadata(wheel):
    metadata = Parser().parsestr(info(wheel, "METADATA"))
    assert metadata["Name"] == "caopd-verl" and metadata["License-Expression"] == "Apache-2.0"
    assert set((metadata["Requires-Python"] or "").split(",")) == {">=3.10", "<3.13"}
    assert {"cpu", "gpu", "dev"} <= set(metadata.get_all("Provides-Extra"))
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    by_extra = {}
    for requirement in requirements:
        if requirement.name == "verl":
            by_extra[str(requirement.marker)] = requirement
    assert set(by_extra) == {'extra == "cpu"', 'extra == "gpu"'}
    assert {str(requirement.specifier) for requirement in by_extra.values()} == {"==0.9.1"}
    assert "vllm" in by_extra['extra == "gpu"'].extras
    # not verl's `fsdp` extra: its flash-attn cannot be installed in a clean environment
    assert "fsdp" not in by_extra['extra == "gpu"'].extras


def test_the_installed_entry_points_are_found_by_verl_and_vllm():
    from importlib.metadata import entry_points

    (verl,) = entry_points(group="verl.plugins", name="caopd")
    assert verl.load().__name__ == "caopd_verl.verl_ext.plugin"
    (vllm,) = entry_points(group="vllm.general_plugins", name="caopd")
    assert callable(vllm.load())
