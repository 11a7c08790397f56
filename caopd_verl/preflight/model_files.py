"""Where a run's model is, its tokenizer and the size of its vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from caopd_verl.errors import ConfigError

EMBEDDED = "embedded:"
ASSETS = Path(__file__).parents[1] / "assets"
KEY = "actor_rollout_ref.model.path"


def resolve_model_path(path: str) -> str:
    """The folder of a model, absolute; a hub id stays a hub id.

    Args:
        path: a folder with a transformers checkpoint, `embedded:NAME` for a model inside this
            package, or a hub id `owner/name`. A hub id is not looked up.

    Raises:
        ConfigError: the folder or the embedded model does not exist, or holds no checkpoint.
    """
    if path.startswith(EMBEDDED):
        return _embedded_folder(path)
    local = Path(path).expanduser()
    if local.exists():
        if not (local / "config.json").exists():
            raise ConfigError(
                f"{local} holds no config.json", where=KEY, expected="a transformers checkpoint"
            )
        return str(local.absolute())
    # a hub id has exactly one slash; anything else was meant as a folder
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise ConfigError(
            f"{path!r} does not exist",
            where=KEY,
            expected="a folder with a transformers checkpoint, a hub id (owner/name) or "
            "embedded:tiny_arith",
        )
    return path


def load_tokenizer(path: str, *, trust_remote_code: bool) -> Any:
    """The model's tokenizer.

    Args:
        path: a folder or a hub id, from `resolve_model_path`.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ConfigError: it cannot be read, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer.from_pretrained, "tokenizer", path, trust_remote_code)


def load_vocabulary_size(path: str, *, trust_remote_code: bool) -> int:
    """How many tokens the model has logits for. Arguments and errors as `load_tokenizer`."""
    from transformers import AutoConfig

    model = _from_pretrained(AutoConfig.from_pretrained, "config", path, trust_remote_code)
    return model.get_text_config().vocab_size  # a multimodal model has a config for its text part


def _embedded_folder(path: str) -> str:
    folder = ASSETS / path.removeprefix(EMBEDDED)
    if not (folder / "config.json").exists():
        folders = sorted(config.parent.name for config in ASSETS.glob("*/config.json"))
        known = ", ".join(EMBEDDED + name for name in folders)
        raise ConfigError(
            f"there is no embedded model {path!r}", where=KEY, expected=f"one of {known}"
        )
    return str(folder)


def _from_pretrained(
    load: Callable[..., Any], what: str, path: str, trust_remote_code: bool
) -> Any:
    try:
        return load(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        # the first line says it; transformers goes on with advice about other cases
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"the {what} of {path!r} cannot be loaded: {reason}",
            where=KEY,
            expected="a folder with a transformers checkpoint, or a hub id that can be reached",
            fix="download the model first, or set +scale=cpu_tiny to try the embedded one",
        ) from error
