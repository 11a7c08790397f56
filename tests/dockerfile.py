"""Reads a Dockerfile and runs its steps without an engine, in a folder instead of an image."""

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
# What only an image does: packages of its distribution, its user. The other steps run anywhere.
IMAGE_ONLY = ("apt-get", "useradd", "chmod")
# Folders of an image that a step writes to; here they lie below the test's own folder.
IMAGE_FOLDERS = ("/opt/venv", "/models", "/home/caopd")
# What a step takes from the environment, as set here: this Python instead of the image's, and no
# base image's packages to build on.
OVERRIDES = {"PYTHON": sys.executable, "GPU_VENV_FLAGS": ""}


@dataclass
class Image:
    """What a Dockerfile of one stage says, as far as it is needed here."""

    base: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)  # RUN and COPY, in order
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    workdir: str = "/"
    command: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[str]:
        return [value for name, value in self.steps if name == "RUN"]


def read(path: Path) -> Image:
    """Parse a Dockerfile; an instruction that is not known here fails the test."""
    parser = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed")
    content = io.BytesIO(path.read_bytes())
    image = Image()
    arguments: dict[str, str] = {}
    for entry in parser.DockerfileParser(fileobj=content).structure:
        name, value = entry["instruction"], entry["value"]
        if name == "ARG":
            key, _, default = value.partition("=")
            arguments[key] = default
        elif name == "FROM":
            image.base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], value)
        elif name == "ENV":
            pairs = [pair.split("=", 1) for pair in value.split()]
            image.environment.update(dict(pairs))
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


def ignore_patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def ignored(relative: str, patterns: list[str]) -> bool:
    """Whether `.dockerignore` keeps a file out; of the patterns that match, the last decides.

    Of Docker's rules those that the file uses: `NAME` and `*` for what lies at the top and all that
    is in it, `**/NAME` at any depth, `!` to let in again.
    """
    parts = relative.split("/")
    out = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        anywhere = wanted.startswith("**/")
        wanted = wanted.removeprefix("**/")
        assert "/" not in wanted, f".dockerignore: {pattern} is not understood here"
        names = parts if anywhere else parts[:1]
        if any(fnmatch.fnmatchcase(name, wanted) for name in names):
            out = not pattern.startswith("!")
    return out


def context() -> list[Path]:
    """The files that `docker build .` would send to an engine, relative to the checkout."""
    patterns = ignore_patterns()
    files = []
    for top in sorted(ROOT.iterdir()):
        if ignored(top.name, patterns):
            continue
        # configs is a symbolic link, and goes into the image as one
        below = top.rglob("*") if top.is_dir() and not top.is_symlink() else [top]
        found = [path.relative_to(ROOT) for path in below if path.is_symlink() or path.is_file()]
        files += [path for path in found if not ignored(path.as_posix(), patterns)]
    return files


def build(path: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Run the COPY and RUN steps below `folder`.

    Returns:
        the working directory of the image's commands, and their environment.
    """
    image = read(path)
    work = folder / image.workdir.strip("/")
    work.mkdir(parents=True)
    environment = _environment(image, folder)
    for name, value in image.steps:
        if name == "COPY":
            _copy(value, work)
        elif not any(word in value for word in IMAGE_ONLY):
            run(["sh", "-ec", value], work, environment)
    (work / "outputs").mkdir()
    return work, environment


def run(command: list[str], work: Path, environment: dict[str, str]) -> str:
    """Run a command in the image's stead; returns what it printed, fails the test if it fails."""
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}\n{printed[-4000:]}"
    return done.stdout


def _environment(image: Image, folder: Path) -> dict[str, str]:
    environment = dict(os.environ)
    settings = image.environment | OVERRIDES
    for key, value in settings.items():
        for place in IMAGE_FOLDERS:
            value = value.replace(place, f"{folder}{place}")
        environment[key] = value.replace("$PATH", os.environ["PATH"])
    # pip's cache lies in the home folder of who runs the tests; no value of this variable allows it
    del environment["PIP_NO_CACHE_DIR"]
    environment["PIP_CACHE_DIR"] = os.path.expanduser("~/.cache/pip")
    Path(environment["HOME"]).mkdir(parents=True)
    return environment


def _copy(value: str, work: Path) -> None:
    """One COPY from the context: of a file, of a folder, or of everything."""
    source, target = value.split()
    for path in context():
        if source == ".":
            inside = path
        elif path.parts[0] == source:
            inside = path.relative_to(source)
        else:
            continue
        place = work / target / inside if inside.parts else work / target / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.copy2(ROOT / path, place, follow_symlinks=False)
