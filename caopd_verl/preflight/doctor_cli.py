"""`caopd doctor`: what is installed and what is checked; or every check on one config.

    caopd doctor
    caopd doctor +recipe=sdpo_caopd +scale=cpu_tiny caopd.loss.alpha=0.5

The second form takes what `python -m caopd_verl.main` takes. It goes on behind a failure, so that
all of them are seen at once, and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from caopd_verl.errors import ConfigError, IncompatibleVersionError
from caopd_verl.preflight.table import CHECKS, Check, Cost

if TYPE_CHECKING:
    from caopd_verl.preflight.examine import Outcome
    from caopd_verl.preflight.run_context import Context

WHERE = "caopd doctor"
INSTALL = "run `make setup` in a checkout (on CPUs), or install the extra `gpu`"
NEEDED_TO_COMPOSE = ("verl", "hydra")
# widths of the columns but the last, by the longest word of each
CHECK_COLUMNS = (17, 11)
OUTCOME_COLUMNS = (9, 17)
FACT_COLUMNS = (17,)
PART_COLUMNS = (9, 29, 12)


class DoctorCommand:
    """`caopd doctor`.

    Args:
        check_verl: what a run checks once verl is imported, on its config; with None, what needs
            no config. The caller brings it: nothing in `preflight` imports verl.
    """

    def __init__(self, check_verl: Callable[[Any], None]):
        self.check_verl = check_verl

    def add_parser(self, subparsers: Any) -> None:
        """Add the command to those of `caopd`."""
        parser: argparse.ArgumentParser = subparsers.add_parser(
            "doctor",
            help="what training checks and whether it can run here; or all checks on one config",
            description="Without arguments: the checks that training makes before Ray starts, and "
            "what is installed here. With the arguments of a training run: all checks on its "
            "config, with every failure. Writes nothing.",
            epilog="for example: caopd doctor +recipe=sdpo_caopd +scale=cpu_tiny data.seed=7",
        )
        parser.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="+recipe=NAME +scale=NAME key=value, as for `python -m caopd_verl.main`",
        )
        parser.set_defaults(run=self.run)

    def run(self, args: argparse.Namespace) -> bool:
        """True where nothing is wrong.

        Raises:
            IncompatibleVersionError: training cannot run with what is installed.
            ConfigError: the config cannot be composed, or failed a check.
        """
        if args.overrides:
            self._examine(args.overrides)
        else:
            self._describe()
        return True

    def _describe(self) -> None:
        from caopd_verl.preflight.installation import installed_parts, machine_facts

        # the list comes first: it is printed even where the packages of what follows are missing
        print("What training checks, in this order, before Ray starts")
        print("(cheap: reads the config; loads: reads the data; downloads: reads the tokenizer and")
        print("the model's config, from the hub unless they are local)")
        for check in self._checks():
            _print_row(CHECK_COLUMNS, check.name, check.cost.label, check.promise)
        print("\nThis machine")
        for name, fact in machine_facts():
            _print_row(FACT_COLUMNS, name, fact)
        print("\nInstalled")
        parts = installed_parts()
        for part in parts:
            supported = f"supported: {part.expected}" if part.expected else ""
            _print_row(PART_COLUMNS, part.verdict, part.name, part.found or "-", supported)
        unfit = [part.name for part in parts if not part.fits]
        if unfit:
            raise IncompatibleVersionError(
                f"training cannot run with what is installed: see {', '.join(unfit)}",
                where=WHERE,
                fix=f"{INSTALL}; `caopd eval` on files and endpoints needs none of this",
            )
        with _silence():  # verl and vLLM tell of everything else that is not installed
            self.check_verl(None)
        _print_row(PART_COLUMNS, "ok", "verl has every name that this package extends")

    def _examine(self, overrides: Sequence[str]) -> None:
        # asked for without being imported: a missing one would be an error in Hydra's words
        missing = [name for name in NEEDED_TO_COMPOSE if importlib.util.find_spec(name) is None]
        if missing:
            raise IncompatibleVersionError(
                f"{' and '.join(missing)} can't be imported, and configs are composed with it",
                where=WHERE,
                fix=INSTALL,
            )
        from caopd_verl.preflight.compose import compose
        from caopd_verl.preflight.examine import examine
        from caopd_verl.preflight.run_context import Context

        with _silence():
            config = compose(overrides)
        outcomes = []
        for outcome in examine(self._checks(), Context(config)):
            _print_outcome(outcome)
            outcomes.append(outcome)
        _raise_on_failures(outcomes)
        print(f"all {len(outcomes)} checks passed; nothing was written")

    def _checks(self) -> tuple[Check, ...]:
        """The table, and what a run checks with verl imported, which it does behind the table."""

        def check_verl(context: Context) -> None:
            with _silence():
                self.check_verl(context.config)

        promise = "verl has every name that this package extends, and accepts the config"
        return (*CHECKS, Check("verl", promise, check_verl, Cost.LOADS))


def _raise_on_failures(outcomes: Sequence[Outcome]) -> None:
    n_failed = sum(outcome.status == "failed" for outcome in outcomes)
    n_not_run = sum(outcome.status == "not run" for outcome in outcomes)
    if n_failed:
        raise ConfigError(
            f"{n_failed} of {len(outcomes)} checks failed, {n_not_run} could not be made",
            where=WHERE,
        )


def _print_outcome(outcome: Outcome) -> None:
    name, promise = outcome.check.name, outcome.check.promise
    said = outcome.text if outcome.status == "not run" else promise
    _print_row(OUTCOME_COLUMNS, outcome.status, name, said)
    if outcome.status == "failed":
        print(textwrap.indent(outcome.text, " " * 11), flush=True)


def _print_row(widths: Sequence[int], *cells: str) -> None:
    """One line of a table, at once: the next line may take a while."""
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    rest = cells[len(widths) :]
    line = "".join([*padded, *rest])
    print(f"  {line.rstrip()}", flush=True)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what is printed meanwhile: verl and vLLM tell of every engine that they lack."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
