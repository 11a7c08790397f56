"""Error classes. Every message says what was wrong, where, what was expected and what to do.

`CaopdError` is the root, so `except CaopdError` catches exactly what this package raises on bad input.
"""

from __future__ import annotations


class CaopdError(Exception):
    """Root of all errors raised on bad input.

    Args:
        what: one sentence, what is wrong.
        where: `file:line` or a config key such as `caopd.target.k`.
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
        self.what, self.where, self.expected, self.fix = what, where, expected, fix
        super().__init__(
            what, where, expected, fix
        )  # all four as args, so that the error survives pickling by Ray

    def __reduce__(self):
        return _rebuild, (type(self), self.what, self.where, self.expected, self.fix)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        parts = [head]
        if self.expected:
            parts.append(f"expected: {self.expected}")
        if self.fix:
            parts.append(f"what to do: {self.fix}")
        return "\n  ".join(parts)


def _rebuild(cls: type[CaopdError], what, where, expected, fix) -> CaopdError:
    return cls(what, where=where, expected=expected, fix=fix)


class ConfigError(CaopdError, ValueError):
    """A config value, or a combination of values, that cannot work."""


class DataError(CaopdError, ValueError):
    """A data row that cannot be used; `where` names file and line."""


class TokenizerError(CaopdError, ValueError):
    """A tokenizer without what the method needs (chat template, end-of-turn token, lossless text)."""


class RevisionError(CaopdError, ValueError):
    """A completion whose confidence segment cannot be revised under the limits given."""


class TeacherContextError(CaopdError, ValueError):
    """A teacher context that is impossible or does not fit its length limit."""


class IncompatibleVersionError(CaopdError, ImportError):
    """verl, vLLM or torch is not the version whose private names `verl_ext.leaned_on` lists."""
