"""Where responses come from: a file of finished ones, an OpenAI-compatible endpoint, a local checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _transformers() -> Any:
    from caopd_verl.evaluation.sources.local import TransformersBackend

    return TransformersBackend


# Name -> a function that imports and returns the class, so that endpoints and files need no torch. Backends from other
# layers (vLLM's, in `verl_ext`) are entered by the entry point.
BACKENDS: dict[str, Callable[[], Any]] = {"transformers": _transformers}
