"""Verifiers by name: the package's own from a table, a user's by `package.module:object`.

Nothing is imported before it is asked for, and nothing registers itself: what the table holds does
not depend on what was imported before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from caopd_verl.errors import ConfigError
from caopd_verl.plugins import load_object
from caopd_verl.verifiers.verifier import Verifier

_TOOL_CALL = "caopd_verl.verifiers.tool_call:ToolCallVerifier"
_METHODS = ("check_gold", "demonstration", "__call__")


@dataclass(frozen=True)
class Constructor:
    """How a verifier of this package is made: `package.module:Class`, and its arguments."""

    reference: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


TABLE: dict[str, Constructor] = {
    "arithmetic": Constructor("caopd_verl.verifiers.arithmetic:ArithmeticVerifier"),
    "multiple_choice": Constructor("caopd_verl.verifiers.multiple_choice:MultipleChoiceVerifier"),
    "tool_call": Constructor(_TOOL_CALL, {"first_call_only": False}),
    "tool_call_first": Constructor(_TOOL_CALL, {"first_call_only": True}),
}
# One object each: what a user's verifier loads (a model, a client) must not be loaded for each row.
_loaded: dict[str, Verifier] = {}


def verifier_names() -> tuple[str, ...]:
    """The names of the verifiers of this package, sorted."""
    return tuple(sorted(TABLE))


def get_verifier(name: str, *, where: str | None = None) -> Verifier:
    """The verifier called `name`, loaded on first use; the same object at every later call.

    Args:
        name: one of `verifier_names()`, or `package.module:object` for an importable object that
            has the methods of `Verifier`; a class is called without arguments.
        where: the option, config key or `file:line` that named it, for the error message.

    Raises:
        ConfigError: there is no such verifier, no such module or object, or the object lacks a
            method of `Verifier`.
        ModuleNotFoundError: a user's module imports something that is not installed.
    """
    if not isinstance(name, str):
        raise _unknown(name, where)
    if name not in _loaded:
        _loaded[name] = _load(name, where)
    return _loaded[name]


def _load(name: str, where: str | None) -> Verifier:
    if name not in TABLE:
        return _users(name, where)
    constructor = TABLE[name]
    verifier_class = load_object(constructor.reference, where="verifiers.registry.TABLE")
    return verifier_class(**constructor.arguments)


def _users(name: str, where: str | None) -> Verifier:
    # A leading dot would be a relative import, and there is nothing for it to be relative to.
    if ":" not in name or name.startswith("."):
        raise _unknown(name, where)
    found = load_object(name, where=where or "verifier")
    # A class has the methods too, but not bound to an object: it would pass the check below.
    verifier = _instance(found, name, where) if isinstance(found, type) else found
    missing = [method for method in _METHODS if not hasattr(verifier, method)]
    if missing:
        raise ConfigError(
            f"{name!r} is no verifier: it has no " + ", ".join(missing),
            where=where,
            expected="an object with the methods " + ", ".join(_METHODS),
            fix="see caopd_verl.verifiers.verifier.Verifier for what each of them does",
        )
    return cast(Verifier, verifier)


def _instance(found: type, name: str, where: str | None) -> Any:
    try:
        return found()
    except TypeError as error:
        raise ConfigError(
            f"{name!r} can't be made without arguments ({error})",
            where=where,
            expected="a class that takes no arguments, or an object",
            fix="name an object that the module makes with the arguments",
        ) from error


def _unknown(name: object, where: str | None) -> ConfigError:
    names = ", ".join(verifier_names())
    return ConfigError(
        f"unknown verifier {name!r}",
        where=where,
        expected=f"one of {names}, or package.module:object",
        fix="correct the name",
    )
