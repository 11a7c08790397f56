"""`caopd`: measure the calibration of any model, and route by it. `caopd eval --help` and so on show the options.

    caopd eval --responses finished.jsonl --verifier multiple_choice --output outputs/mine
    caopd eval --endpoint http://127.0.0.1:8000/v1 --model m --task sciknoweval --data train.json --output outputs/x
    caopd eval --model path/to/checkpoint --task arithmetic --limit 200 --output outputs/y
    caopd compare outputs/x outputs/y
    caopd plot outputs/x outputs/y --output plots
    caopd report outputs/x outputs/y --output report.html
    caopd card outputs/x --output README.md
    caopd route --small outputs/x --large outputs/y --cost-small 1 --cost-large 10 --output route
    caopd proxy --small-url http://127.0.0.1:8001/v1 --small-model s --large-url ... --large-model l --threshold 0.7

Exit codes: 0 done; 2 bad arguments or data; 3 done, but some rows failed or could not be used; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from caopd_verl.cascade.cascade_cli import COMMANDS as CASCADE_COMMANDS
from caopd_verl.errors import CaopdError
from caopd_verl.evaluation import eval_cli as commands
from caopd_verl.evaluation.sources import BACKENDS
from caopd_verl.integrations.card_cli import COMMANDS as INTEGRATION_COMMANDS


def _vllm() -> Any:
    from caopd_verl.verl_ext.vllm_offline import VllmBackend

    return VllmBackend


BACKENDS["vllm"] = _vllm
OK, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="caopd", description="Measure the calibration of any model, and route by it."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (*commands.COMMANDS, *CASCADE_COMMANDS, *INTEGRATION_COMMANDS):
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
    except BrokenPipeError:  # the reader of the output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("caopd_verl"):
            raise
        print(
            f"{error}: pip install '.[eval]' in a checkout of caopd_verl (local checkpoints need "
            "torch and transformers too, `caopd card` the extra `card`, `caopd proxy` the extra "
            "`proxy`)",
            file=sys.stderr,
        )
        return BAD_INPUT
    return OK if complete else INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
