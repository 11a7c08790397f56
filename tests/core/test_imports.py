"""core/ is usable alone: torch, the standard library, and the package's errors and types."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import caopd_verl.core

CORE = Path(next(iter(caopd_verl.core.__path__)))
ALLOWED = {"torch", *sys.stdlib_module_names}
OURS = ("caopd_verl.core", "caopd_verl.errors", "caopd_verl.types")


def test_core_imports_torch_and_the_standard_library_only():
    for file in sorted(CORE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in ALLOWED or name.startswith(OURS), f"{file.name} imports {name}"
