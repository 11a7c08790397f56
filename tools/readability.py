"""How hard the code is to read, in seven figures; exits with 1 where a figure breaks its limit.

    python tools/readability.py                    # the package
    python tools/readability.py tests --list       # another folder, with the place of each offender

Style checkers count long lines and long functions, but not density: how many syntax nodes one
statement holds. `share = round(len(kept) / max(1, len(rows)), 3)` has 23 of them; what lies much
above that is read twice. The limit is the upper end of four training libraries that read well:
nanochat, prime-rl, tinker-cookbook and torchtitan hold more than 25 nodes in 0.4 to 4 % of their
statements. It is a limit on the share, not on each statement: where the figure and the reader
disagree, the reader wins.

Standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 300
MAX_NODES = 25
MAX_DENSE_SHARE = 0.04
MIN_COMMENT_SHARE = 0.04
MIN_DOCUMENTED_SHARE = 0.80

# Entries of lists that are not in the repository (a capital T and a number, an issue's number): a
# reader of a clone cannot look them up. `expected_t1` and `mask_T1` do not match, since the word
# boundary `\b` takes "_" for a letter.
PRIVATE_CODE = re.compile(r"\bT\d+[bc]?\b|\b[Ii]ssue \d+\b|\b[Rr]eference facts\b")
# Comments that speak to a tool give a reader no reason, so they do not count as comments.
DIRECTIVE = re.compile(r"#\s*(fmt:|type:|noqa|pragma|ruff:|mypy:|!)")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass
class Findings:
    """What was counted over all files; each offender is a text `file:line: what is wrong`."""

    long_lines: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    long_files: list[str] = field(default_factory=list)
    private_codes: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    undocumented: list[str] = field(default_factory=list)
    statements: int = 0
    public: int = 0
    code_lines: int = 0
    comment_lines: int = 0


@dataclass(frozen=True)
class Measure:
    """One line of the table, and the places to blame as `file:line: what is wrong`."""

    name: str
    found: str
    limit: str
    within: bool
    offenders: Sequence[str] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 where a limit is broken, 2 where nothing can be measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("caopd_verl")], help="folders or files"
    )
    parser.add_argument("--list", action="store_true", help="show each offender as file:line")
    args = parser.parse_args(argv)
    try:
        measures = measures_of(read(args.paths))
    except SyntaxError as error:
        # The error's own text names the file without its folder.
        place = f"{error.filename}:{error.lineno}"
        print(f"readability: {place}: no Python: {error.msg}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"readability: {error}", file=sys.stderr)
        return 2
    if args.list:
        for measure in measures:
            print_offenders(measure)
    print_table(measures)
    return 0 if all(measure.within for measure in measures) else 1


def read(paths: Sequence[Path]) -> Findings:
    """Everything that is counted, over the Python and YAML files under `paths`.

    Raises:
        OSError: a path that can't be read.
        SyntaxError: a `.py` file that is no Python.
        ValueError: no Python file, or none with a statement.
    """
    findings = Findings()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.suffix in (".py", ".yaml"):
                text = file.read_text(encoding="utf-8")
                read_text(file, text, findings)
                if file.suffix == ".py":
                    read_python(file, text, findings)
    if not findings.statements:
        places = ", ".join(map(str, paths))
        raise ValueError(f"no Python statement found under {places}")
    return findings


def read_text(file: Path, text: str, findings: Findings) -> None:
    """Count what takes no knowledge of Python: columns, lines and private codes."""
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_COLUMNS:
            findings.long_lines.append(f"{file}:{number}: {len(line)} columns")
        for code in PRIVATE_CODE.findall(line):
            findings.private_codes.append(f"{file}:{number}: {code}")
    if len(lines) > MAX_FILE_LINES:
        findings.long_files.append(f"{file}:1: {len(lines)} lines")


def read_python(file: Path, text: str, findings: Findings) -> None:
    """Count what the syntax tree and the tokens of a Python file tell."""
    tree = ast.parse(text, filename=str(file))
    for node in ast.walk(tree):
        if isinstance(node, Function):
            count_lines(file, node, findings)
        if is_simple_statement(node):
            count_nodes(file, node, findings)
    for name, definition in public_definitions(tree):
        findings.public += 1
        if ast.get_docstring(definition) is None:
            findings.undocumented.append(f"{file}:{definition.lineno}: {name}")
    count_comments(tree, text, findings)


def count_lines(file: Path, function: Function, findings: Findings) -> None:
    """A function's lines from `def` to its end; decorators are not its own."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if lines > MAX_FUNCTION_LINES:
        place = f"{file}:{function.lineno}: {function.name}"
        findings.long_functions.append(f"{place} has {lines} lines")


def count_nodes(file: Path, statement: ast.stmt, findings: Findings) -> None:
    """A statement's syntax nodes, itself and the contexts of names (load, store) included."""
    findings.statements += 1
    nodes = sum(1 for _ in ast.walk(statement))
    if nodes > MAX_NODES:
        begin = ast.unparse(statement).splitlines()[0][:60]
        place = f"{file}:{statement.lineno}"
        findings.dense.append(f"{place}: {nodes} nodes: {begin}")


def is_simple_statement(node: ast.AST) -> TypeGuard[ast.stmt]:
    """Whether this is a statement without a body, and no docstring or other bare text."""
    if not isinstance(node, ast.stmt) or hasattr(node, "body") or hasattr(node, "cases"):
        return False
    return not is_text(node)


def is_text(node: ast.AST) -> TypeGuard[ast.Expr]:
    """Whether this is a statement that holds nothing but a string."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


def public_definitions(
    tree: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, Definition]]:
    """Name and node of each public class, function and method; not what functions define inside."""
    for node in tree.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node, prefix=f"{prefix}{node.name}.")


def count_comments(tree: ast.Module, text: str, findings: Findings) -> None:
    """Lines that hold code, and lines that hold a comment (alone or behind code)."""
    text_lines: set[int] = set()
    for node in ast.walk(tree):
        if is_text(node):
            assert node.end_lineno is not None
            text_lines.update(range(node.lineno, node.end_lineno + 1))
    # These tokens stand on lines without code too, and ENDMARKER on a line that does not exist.
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not DIRECTIVE.match(token.string):
                comments.add(token.start[0])
        elif token.type not in layout:
            first, last = token.start[0], token.end[0]
            code.update(range(first, last + 1))
    findings.code_lines += len(code - text_lines)
    findings.comment_lines += len(comments)


def measures_of(findings: Findings) -> list[Measure]:
    """The table: counts that must be 0, then shares."""
    dense = len(findings.dense) / findings.statements
    commented = findings.comment_lines / findings.code_lines
    # A folder of scripts may define nothing public: then nothing is undocumented.
    undocumented = len(findings.undocumented) / max(1, findings.public)
    density = f"statements over {MAX_NODES} nodes"
    return [
        none_of(f"lines over {MAX_COLUMNS} columns", findings.long_lines),
        none_of(f"functions over {MAX_FUNCTION_LINES} lines", findings.long_functions),
        none_of(f"files over {MAX_FILE_LINES} lines", findings.long_files),
        none_of("private codes", findings.private_codes),
        at_most(density, dense, MAX_DENSE_SHARE, findings.dense),
        # Without places: no one line is to blame for a reason that is missing somewhere.
        at_least("comment lines per code line", commented, MIN_COMMENT_SHARE, ()),
        at_least(
            "public docstrings", 1.0 - undocumented, MIN_DOCUMENTED_SHARE, findings.undocumented
        ),
    ]


def none_of(name: str, offenders: Sequence[str]) -> Measure:
    """A measure of which every occurrence breaks the limit."""
    return Measure(name, str(len(offenders)), "0", not offenders, offenders)


def at_most(name: str, share: float, limit: float, offenders: Sequence[str]) -> Measure:
    """A share with an upper limit."""
    return Measure(name, f"{share:.1%}", f"<= {limit:.0%}", share <= limit, offenders)


def at_least(name: str, share: float, limit: float, offenders: Sequence[str]) -> Measure:
    """A share with a lower limit."""
    return Measure(name, f"{share:.1%}", f">= {limit:.0%}", share >= limit, offenders)


def print_offenders(measure: Measure) -> None:
    """The places behind one figure, under its name."""
    if measure.offenders:
        print(f"{measure.name}:")
        for offender in measure.offenders:
            print(f"  {offender}")
        print()


def print_table(measures: Sequence[Measure]) -> None:
    """One line a measure."""
    print(f"{'measure':30}{'found':>8}{'limit':>8}")
    for measure in measures:
        verdict = "ok" if measure.within else "BROKEN"
        print(f"{measure.name:30}{measure.found:>8}{measure.limit:>8}  {verdict}")


if __name__ == "__main__":
    sys.exit(main())
