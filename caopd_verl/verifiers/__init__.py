"""Verifiers: one rule per answer form, used by reward, p_hat and evaluation alike (trap T22).

`get_verifier(name)` is the only way in; a new verifier is one file and one row in `VERIFIERS`.
"""

from __future__ import annotations

from caopd_verl.errors import ConfigError
from caopd_verl.types import Verdict
from caopd_verl.verifiers.arithmetic import ArithmeticVerifier
from caopd_verl.verifiers.multiple_choice import MultipleChoiceVerifier
from caopd_verl.verifiers.tool_call import ToolCallVerifier
from caopd_verl.verifiers.verifier import REASONS, Verifier

VERIFIERS: dict[str, Verifier] = {
    "multiple_choice": MultipleChoiceVerifier(),
    "tool_call": ToolCallVerifier(name="tool_call", first_call_only=False),
    "tool_call_first": ToolCallVerifier(name="tool_call_first", first_call_only=True),
    "arithmetic": ArithmeticVerifier(),
}


def get_verifier(name: str, *, where: str | None = None) -> Verifier:
    """The verifier called `name`.

    Args:
        name: a key of `VERIFIERS`.
        where: the config key or `file:line` that named it, for the error message.

    Raises:
        ConfigError: there is no such verifier; the message lists those that exist.
    """
    try:
        return VERIFIERS[name]
    except (KeyError, TypeError):
        raise ConfigError(
            f"unknown verifier {name!r}",
            where=where,
            expected="one of " + ", ".join(sorted(VERIFIERS)),
            fix="correct the name, or add the verifier to caopd_verl.verifiers.VERIFIERS",
        ) from None


__all__ = ["REASONS", "VERIFIERS", "Verdict", "Verifier", "get_verifier"]
