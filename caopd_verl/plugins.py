"""Classes and functions named by a string, `package.module:Name`, loaded where they are needed.

A table of such strings is complete wherever it is imported, whatever was imported before it, and
costs nothing: what a row needs (torch, vLLM) is imported by the run that asks for that row.
"""

from __future__ import annotations

import importlib
from typing import Any

from caopd_verl.errors import ConfigError

EXPECTED = "package.module:Name"


def load_object(reference: str, *, where: str) -> Any:
    """The object that a reference names.

    Args:
        reference: `package.module:Name`.
        where: the option, config key or table that holds it, for the error message.

    Raises:
        ConfigError: the reference has another form, there is no such module, or no such name in it.
        ModuleNotFoundError: the module is there and imports something that is not installed.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{reference!r} names no object", where=where, expected=EXPECTED)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        # a dependency of the module is the reader's to install, and another error
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise
        raise ConfigError(
            f"there is no module {missing!r}", where=where, expected=f"{EXPECTED}, importable"
        ) from error
    if not hasattr(module, name):
        raise ConfigError(
            f"{name!r} does not exist in {module_name}", where=where, expected=EXPECTED
        )
    return getattr(module, name)
