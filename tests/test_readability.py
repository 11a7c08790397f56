"""`tools/readability.py` on made-up files: a good one passes, and each limit is broken once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "readability.py"
# Within every limit: three statements, four lines of code with one comment.
GOOD = '''"""A module."""


def double(value):
    """Twice the value."""
    # Addition, as it is exact for every float.
    total = value + value
    return total


result = double(2)
'''
FIGURES_OF_GOOD = {
    "lines over 100 columns": "0",
    "functions over 60 lines": "0",
    "files over 300 lines": "0",
    "private codes": "0",
    "statements over 25 nodes": "0.0%",
    "comment lines per code line": "25.0%",
    "public docstrings": "100.0%",
}
# Put together here, so that this file holds no such code itself.
CODE, ISSUE = "T" + "15", "issue" + " 2"
ASSIGNMENTS = "value = 0\n" * 30
# The longest function within the limit, and one that is a line longer.
LINE = "    pass  # a line\n"
FUNCTIONS = f"def _f():\n{LINE * 59}\n\ndef _g():\n{LINE * 60}"
# 25 syntax nodes (the assignment, its target and that one's context; name and context of each of
# the 6 terms; operation and operator of each of the 5 sums), and 29.
SUMS = "total = a + b + c + d + e + f\ntotal = a + b + c + d + e + f + g\n"
PUBLIC = """
def _private(): ...
def documented():
    "What it is."
    def inside(): ...
class Documented:
    "What it is."
    def method(self): ...
"""


def run(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def table(printed: str) -> dict[str, tuple[str, bool]]:
    """Name of each measure -> its figure, and whether it is within the limit."""
    figures = {}
    for line in printed.splitlines():
        name = line[:30].strip()
        if name in FIGURES_OF_GOOD and not line.endswith(":"):
            figures[name] = (line[30:38].strip(), line.endswith("  ok"))
    return figures


def written(folder: Path, text: str, name: str = "other.py") -> Path:
    """`folder` with a good file and another one of this text."""
    (folder / "good.py").write_text(GOOD)
    (folder / name).write_text(text)
    return folder


def test_a_good_file_passes_and_its_figures_are_those_counted_by_hand(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    done = run(tmp_path)
    assert done.returncode == 0
    expected = {name: (found, True) for name, found in FIGURES_OF_GOOD.items()}
    assert table(done.stdout) == expected


@pytest.mark.parametrize(
    ("text", "broken", "found", "place"),
    [
        (f"# {'x' * 98}\n#{'x' * 100}\n", "lines over 100 columns", "1", "2: 101 columns"),
        (FUNCTIONS, "functions over 60 lines", "1", "63: _g has 61 lines"),
        ("# \n" * 301, "files over 300 lines", "1", "1: 301 lines"),
        (f'"""Since {CODE}b."""\n', "private codes", "1", f"1: {CODE}b"),
        (f"# See {ISSUE}.\n", "private codes", "1", f"1: {ISSUE}"),
        (SUMS, "statements over 25 nodes", "20.0%", "2: 29 nodes: total = a"),
        (PUBLIC, "public docstrings", "75.0%", "8: Documented.method\n"),
    ],
)
def test_each_limit_can_be_broken_and_the_place_is_shown(tmp_path, text, broken, found, place):
    done = run(written(tmp_path, text), "--list")
    assert done.returncode == 1
    figures = table(done.stdout)
    assert figures[broken] == (found, False)
    others = [name for name, (_, within) in figures.items() if not within and name != broken]
    assert others == []
    assert f"{broken}:\n  {tmp_path}/other.py:{place}" in done.stdout


def test_too_few_comments_are_noticed_and_directives_are_none(tmp_path):
    done = run(written(tmp_path, ASSIGNMENTS + "import os  # noqa\nimport sys  # type: ignore\n"))
    assert done.returncode == 1
    assert table(done.stdout)["comment lines per code line"] == ("2.8%", False)


def test_yaml_files_are_text_too(tmp_path):
    done = run(written(tmp_path, f"# {CODE}\n", name="settings.yaml"))
    assert table(done.stdout)["private codes"] == ("1", False)


def test_without_list_only_the_table_is_shown(tmp_path):
    done = run(written(tmp_path, f"# {CODE}\n"))
    assert "other.py" not in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("broken.py", "def f(:\n", "broken.py:1: no Python"),
        ("notes.txt", "words", "no Python statement found"),
    ],
)
def test_what_cannot_be_measured_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    done = run(tmp_path)
    assert done.returncode == 2
    assert said in done.stderr and str(tmp_path) in done.stderr


def test_a_path_that_is_not_there_is_named(tmp_path):
    done = run(tmp_path / "nowhere")
    assert done.returncode == 2
    assert "nowhere does not exist" in done.stderr


def test_the_script_keeps_its_own_limits():
    assert run(SCRIPT).returncode == 0
