"""The `caopd` block: its keys, its values, and what its method makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_type_hints

from caopd_verl.config import CaopdConfig, validate
from caopd_verl.errors import ConfigError

if TYPE_CHECKING:
    from caopd_verl.preflight.run_context import Context


def check_keys(context: Context) -> None:
    """Raises `ConfigError` for a key that is not in the schema.

    Hydra refuses `caopd.topk=5` by itself, but `+caopd.topk=5` adds the key, which nothing reads.
    """
    _refuse_unknown(context.config.caopd, CaopdConfig, "caopd")


def check_values(context: Context) -> None:
    """Raises `ConfigError` for a value, or a combination, that cannot work with the method."""
    from caopd_verl.methods import check_method  # methods import torch, which a list needs not

    validate(context.caopd)
    check_method(context.caopd, context.rollouts_per_prompt)


def _refuse_unknown(block: Mapping[Any, Any], schema: type, where: str) -> None:
    types = get_type_hints(schema)  # the schema's annotations are text until they are evaluated
    for name, value in block.items():
        key = f"{where}.{name}"
        if name not in types:
            raise ConfigError(
                "there is no such key",
                where=key,
                expected="one of " + ", ".join(sorted(types)),
                fix=_nearest(name, list(types), where),
            )
        if is_dataclass(types[name]):
            _refuse_unknown(value, types[name], key)


def _nearest(name: str, known: list[str], where: str) -> str | None:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {where}.{near[0]}?" if near else None
