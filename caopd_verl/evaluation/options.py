"""Settings classes as command-line options, so that a default stands in its class alone."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any


def add_settings(
    group: Any,
    defaults: Any,
    *,
    choices: Mapping[str, Sequence[str]] | None = None,
    help: str | None = None,
) -> None:
    """An option for each field of a settings class, with its default.

    Args:
        group: a parser or one of its groups.
        defaults: an instance of the class.
        choices: field name -> the values it may have.
        help: for every option; a blank makes `ArgumentDefaultsHelpFormatter` show the default, None does not.
    """
    for item in fields(defaults):
        default, flag = getattr(defaults, item.name), "--" + item.name.replace("_", "-")
        if isinstance(default, bool):
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=help
            )
        else:
            own = (choices or {}).get(item.name)
            group.add_argument(
                flag, type=field_type(item.type), default=default, choices=own, help=help
            )


def field_type(annotation: Any) -> Any:
    """float, int or str from a field's annotation (text, as annotations are not evaluated)."""
    name = str(annotation).split("|")[0].strip()
    return {"float": float, "int": int, "str": str}[name]
