"""Where responses come from: a file of finished ones, an OpenAI-compatible endpoint, a checkpoint.

A backend answers questions with a checkpoint. It is built from a model's name with `sampling` and
`local` settings, and is a `checkpoint.CheckpointBackend`.
"""

from __future__ import annotations

from typing import Any

from caopd_verl.plugins import load_object

# `--backend` -> its class. Strings, because endpoints and files must work without torch and vLLM,
# and because this layer may not import the one that holds vLLM's.
BACKENDS: dict[str, str] = {
    "transformers": "caopd_verl.evaluation.sources.local:TransformersBackend",
    "vllm": "caopd_verl.verl_ext.vllm_offline:VllmBackend",
}


def load_backend(name: str) -> Any:
    """The class of a backend; `name` is a key of `BACKENDS`."""
    return load_object(BACKENDS[name], where="--backend")
