"""Settings classes as command-line options, so that a default stands in its class alone.

The option of a field follows from its annotation: `bool` is a switch, a `Literal` or an `Enum` has
choices, a `dict` is a JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from caopd_verl.errors import ConfigError

Settings = TypeVar("Settings")
Names = Mapping[str, str]


def add_settings(
    group: Any,
    defaults: Any,
    *,
    names: Names | None = None,
    help: str | None = None,
) -> None:
    """An option for each field of a settings class, with its default.

    Args:
        group: a parser or one of its groups.
        defaults: an instance of the class.
        names: field -> option, where the two differ.
        help: for every option whose field has none in its metadata; a blank makes
            `ArgumentDefaultsHelpFormatter` show the default, None does not.
    """
    kinds = _kinds(defaults)
    for item in fields(defaults):
        keywords = _keywords(kinds[item.name], getattr(defaults, item.name))
        own_help = item.metadata.get("help", help)
        group.add_argument(_flag(item.name, names), help=own_help, **keywords)


def read_settings(
    args: argparse.Namespace, defaults: Settings, *, names: Names | None = None
) -> Settings:
    """The settings as they were given; arguments as for `add_settings`.

    Raises:
        ConfigError: the text of a JSON option is no JSON object.
    """
    values: dict[str, Any] = {}
    for name, kind in _kinds(defaults).items():
        value = getattr(args, _option(name, names))
        if kind is dict:
            value = json_object(value, where=_flag(name, names))
        elif isinstance(kind, type) and issubclass(kind, Enum):
            value = kind(value)
        values[name] = value
    return replace(defaults, **values)  # type: ignore[type-var]  # a dataclass, as `fields` saw


def json_object(text: str, *, where: str) -> dict[str, Any]:
    """The JSON object that an option holds; `where` names the option.

    Raises:
        ConfigError: it is no JSON, or no object.
    """
    expected = """a JSON object, such as '{"enable_thinking": false}'"""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no JSON ({error})",
            where=where,
            expected=expected,
            fix="put it into single quotes, so that the shell leaves the double ones alone",
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{text!r} is no JSON object", where=where, expected=expected)
    return value


def _kinds(defaults: Any) -> dict[str, Any]:
    """Field -> its type, without `| None` and without what a container holds."""
    # annotations are text under `from __future__ import annotations`
    hints = get_type_hints(type(defaults))
    kinds: dict[str, Any] = {}
    for item in fields(defaults):
        hint = hints[item.name]
        if get_origin(hint) is not Literal:
            present = [part for part in get_args(hint) if part is not NoneType]
            optional = NoneType in get_args(hint)
            hint = present[0] if optional else get_origin(hint) or hint
        kinds[item.name] = hint
    return kinds


def _keywords(kind: Any, default: Any) -> dict[str, Any]:
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": default}
    # JSON is read later: argparse catches ValueError, and would put its own message for ours
    if kind is dict:
        return {"metavar": "JSON", "default": json.dumps(default)}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "default": default}
    if issubclass(kind, Enum):
        values = [choice.value for choice in kind]
        return {"choices": values, "default": default.value}
    return {"type": kind, "default": default}


def _option(name: str, names: Names | None) -> str:
    return names[name] if names and name in names else name


def _flag(name: str, names: Names | None) -> str:
    return "--" + _option(name, names).replace("_", "-")
