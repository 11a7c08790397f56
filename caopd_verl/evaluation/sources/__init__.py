"""Where responses come from: a file of finished ones, an OpenAI-compatible endpoint, a local checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _transformers() -> Any:
    from caopd_verl.evaluation.sources.local import TransformersBackend

    return TransformersBackend


def _vllm() -> Any:
    from caopd_verl.evaluation.sources.vllm_offline import VllmBackend

    return VllmBackend


# Imported on use, so that endpoints and files need neither torch nor vLLM.
BACKENDS: dict[str, Callable[[], Any]] = {"transformers": _transformers, "vllm": _vllm}
