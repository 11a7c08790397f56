"""Train: `python -m caopd_verl.main +recipe=sdpo_caopd [+scale=cpu_tiny] [key=value ...]`.

Composes the config, checks it, runs it. `--cfg job` prints what would run, and `caopd doctor` with
the same arguments makes every check without running.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from caopd_verl.errors import CaopdError
from caopd_verl.preflight.compose import (
    CONFIG_NAME,
    CONFIGS,
    recipe_before_scale,
    register_schema,
)


@hydra.main(config_path=str(CONFIGS), config_name=CONFIG_NAME, version_base=None)
def _run(config: DictConfig) -> None:
    from caopd_verl.preflight.prepare import prepare
    from caopd_verl.verl_ext.runner import run

    try:
        prepare(config)
        run(config)
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, CaopdError):
            raise
        # bad input is said in one sentence; hydra.main would print a stack trace
        print(f"{type(cause).__name__}: {cause}", file=sys.stderr)
        sys.exit(2)


def root_cause(error: BaseException) -> BaseException:
    """The error as it was raised.

    Ray wraps it in a `RayTaskError` for each actor that it passes on its way to the driver, with
    the wrapped error as `cause`.
    """
    inner = getattr(error, "cause", None)
    while isinstance(inner, BaseException):
        error = inner
        inner = getattr(error, "cause", None)
    return error


def main() -> None:
    """Command line entry point. Exits with 2 on bad input."""
    register_schema()
    program, *arguments = sys.argv
    sys.argv = [program, *recipe_before_scale(arguments)]
    _run()


if __name__ == "__main__":
    main()
