"""`caopd`: measure the calibration of any model, and route by it. `caopd eval --help` has options.

    caopd eval --responses finished.jsonl --verifier multiple_choice --output outputs/mine
    caopd eval --endpoint http://127.0.0.1:8000/v1 --model m --task sciknoweval --data train.json \\
               --output outputs/x
    caopd eval --model path/to/checkpoint --task arithmetic --limit 200 --output outputs/y
    caopd compare outputs/x outputs/y
    caopd plot outputs/x outputs/y --output plots
    caopd report outputs/x outputs/y --output report.html
    caopd card outputs/x --output README.md
    caopd route --small outputs/x --large outputs/y --cost-small 1 --cost-large 10 --output route
    caopd doctor
    caopd doctor +recipe=sdpo_caopd +scale=cpu_tiny key=value
    caopd proxy --small-url http://127.0.0.1:8001/v1 --small-model s --large-url ... \\
                --large-model l --threshold 0.7

`compare`, `plot`, `report`, `card` and `route` take folders of training runs too. Exit codes: 0
done; 2 bad arguments or data; 3 done, but some rows failed or could not be used; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from caopd_verl.cascade.cascade_cli import COMMANDS as CASCADE_COMMANDS
from caopd_verl.errors import CaopdError
from caopd_verl.evaluation.eval_cli import COMMANDS as EVAL_COMMANDS
from caopd_verl.evaluation.results_cli import COMMANDS as RESULTS_COMMANDS
from caopd_verl.integrations.card_cli import COMMANDS as INTEGRATION_COMMANDS
from caopd_verl.preflight.doctor_cli import DoctorCommand


def _check_verl(config: Any) -> None:
    """What a run checks with verl imported; without a config, the names that it extends."""
    if config is None:
        from caopd_verl.verl_ext import compat

        compat.ensure_vllm_metadata()
        compat.check(cpu=compat.has_cpu_build())
    else:
        from caopd_verl.verl_ext import runner

        runner.check(config)


# Each of them imports what it needs when it runs: files and endpoints work without torch, and
# `caopd --help` answers at once.
COMMANDS = (
    *EVAL_COMMANDS,
    *RESULTS_COMMANDS,
    *CASCADE_COMMANDS,
    *INTEGRATION_COMMANDS,
    DoctorCommand(_check_verl),
)
OK, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130
INSTALL = (
    "pip install '.[eval]' in a checkout (local checkpoints need torch and transformers too, "
    "`caopd card` the extra `card`, `caopd proxy` the extra `proxy`)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="caopd", description="Measure the calibration of any model, and route by it."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        complete = args.run(args)
    except CaopdError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(
            "interrupted: finished rows are on disk, the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has gone, as with `| head`. Python would complain once more
        # when it flushes the output on exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        return OK
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("caopd_verl"):
            raise  # a bug of ours, not something that the user can install
        print(f"{error}: {INSTALL}", file=sys.stderr)
        return BAD_INPUT
    return OK if complete else INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
