"""Every check on one config, with its outcome: a failure does not hide the next one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from caopd_verl.errors import CaopdError
from caopd_verl.preflight.run_context import Context
from caopd_verl.preflight.table import Check


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    Attributes:
        check: its row.
        status: a check that needs a failed one is not run.
        text: the error, or which failed checks this one needs; empty for `ok`.
    """

    check: Check
    status: Literal["ok", "failed", "not run"]
    text: str = ""


def examine(checks: Sequence[Check], context: Context) -> Iterator[Outcome]:
    """The outcomes in order, each as soon as it is known."""
    unmet: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name in unmet]
        if missing:
            outcome = Outcome(check, "not run", "needs " + ", ".join(missing))
        else:
            outcome = _outcome(check, context)
        if outcome.status != "ok":
            unmet.add(check.name)
        yield outcome


def _outcome(check: Check, context: Context) -> Outcome:
    try:
        check.function(context)
    except Exception as error:  # a library's too: the checks behind it still count
        return Outcome(check, "failed", _described(error))
    return Outcome(check, "ok")


def _described(error: Exception) -> str:
    said = f"{type(error).__name__}: {error}"
    return said if isinstance(error, CaopdError) else f"unexpected {said}"
