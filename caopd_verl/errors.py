"""Error classes. Every message says what was wrong, where, what was expected and what to do.

`CaopdError` is the root, so `except CaopdError` catches exactly what this package raises on bad
input.
"""

from __future__ import annotations

from typing import Any


class CaopdError(Exception):
    """Root of all errors raised on bad input.

    Args:
        what: one sentence, what is wrong.
        where: `file:line`, an option such as `--data`, or a config key such as `caopd.loss.top_k`.
        expected: what would have been accepted.
        fix: what the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ):
        self.what = what
        self.where = where
        self.expected = expected
        self.fix = fix
        super().__init__(what, where, expected, fix)

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles an error on its way from an actor to the driver, and pickle would call the
        # class with `args` by position, which the keywords do not take
        fields = (self.what, self.where, self.expected, self.fix)
        return _rebuild, (type(self), *fields)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        parts = [head]
        if self.expected:
            parts.append(f"expected: {self.expected}")
        if self.fix:
            parts.append(f"what to do: {self.fix}")
        return "\n  ".join(parts)


def _rebuild(
    cls: type[CaopdError], what: str, where: str | None, expected: str | None, fix: str | None
) -> CaopdError:
    return cls(what, where=where, expected=expected, fix=fix)


class ConfigError(CaopdError, ValueError):
    """A config value, or a combination of values, that cannot work."""


class DataError(CaopdError, ValueError):
    """A data row that cannot be used; `where` names file and line."""


class TokenizerError(CaopdError, ValueError):
    """A tokenizer lacks what a method needs: chat template, end-of-turn token, lossless text."""


class RevisionError(CaopdError, ValueError):
    """A completion whose confidence segment cannot be revised under the limits given."""


class TeacherContextError(CaopdError, ValueError):
    """A teacher context that is impossible or does not fit its length limit."""


class IncompatibleVersionError(CaopdError, ImportError):
    """A package is missing, or is not a version whose names this package can extend."""
