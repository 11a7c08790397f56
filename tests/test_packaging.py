"""The wheel holds what a non-editable install needs: configs, the tiny model, type marker, entry points."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

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
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
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
    required = metadata.get_all("Requires-Dist")
    assert 'verl==0.9.1; extra == "cpu"' in required
    # not verl's `fsdp` extra: its flash-attn cannot be installed in a clean environment
    assert 'verl[vllm]==0.9.1; extra == "gpu"' in required


def test_the_installed_entry_points_are_found_by_verl_and_vllm():
    from importlib.metadata import entry_points

    (verl,) = (e for e in entry_points(group="verl.plugins") if e.name == "caopd")
    assert verl.load().__name__ == "caopd_verl.verl_ext.plugin"
    (vllm,) = (e for e in entry_points(group="vllm.general_plugins") if e.name == "caopd")
    assert callable(vllm.load())
