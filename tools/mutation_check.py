"""Break one line at a time and see whether the fast tests notice.

Each fault of `mutations.py` is put into a copy of the package, and the fast tests of the folders
concerned are run on it. What survives is printed: a line that nobody tests.

    python tools/mutation_check.py [part of a file name]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("caopd_verl", "tests", "examples", "benchmarks", "pyproject.toml", "README.md")


def main() -> int:
    """Exit code 1 where a fault survives."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutation for mutation in MUTATIONS if wanted in mutation[0]]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        for file, line, fault, tests in chosen:
            start = time.monotonic()
            noticed = is_noticed(copy, file, line, fault, tests)
            word = "noticed" if noticed else "SURVIVED"
            print(f"{word:9} {time.monotonic() - start:5.0f} s  {file}: {fault!r}", flush=True)
            if not noticed:
                survivors.append(f"{file}: {line!r} -> {fault!r}")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed")
    return 1 if survivors else 0


def is_noticed(copy: Path, file: str, line: str, fault: str, tests: tuple[str, ...]) -> bool:
    """Run the tests on the copy with the fault in it, and put the line back."""
    path = copy / "caopd_verl" / file
    text = path.read_text(encoding="utf-8")
    if text.count(line) < 1:
        raise SystemExit(f"{file} holds no {line!r}: bring tools/mutations.py up to date")
    path.write_text(text.replace(line, fault, 1), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    path.write_text(text, encoding="utf-8")
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
