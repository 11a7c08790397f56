"""Train: `python -m caopd_verl.main +recipe=sdpo_caopd [+scale=cpu_tiny] [key=value ...]`.

Composes the config, checks it, runs it. `--cfg job` prints what would run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from caopd_verl.config import CaopdConfig
from caopd_verl.errors import CaopdError

CONFIGS = (
    Path(__file__).parent / "configs"
)  # absolute, so that `main` can be called by an importer too

ConfigStore.instance().store(group="caopd", name="schema", node=CaopdConfig)


@hydra.main(config_path=str(CONFIGS), config_name="caopd_trainer", version_base=None)
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
        print(
            f"{type(cause).__name__}: {cause}", file=sys.stderr
        )  # hydra.main would print a stack trace instead
        sys.exit(2)


def root_cause(error: BaseException) -> BaseException:
    """The error as it was raised, without the layers that Ray adds on its way through the actors."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def recipe_before_scale(argv: list[str]) -> list[str]:
    """A scale overrides its recipe, in whatever order the two were typed."""
    scales = [arg for arg in argv if arg.startswith("+scale=")]
    rest = [arg for arg in argv if arg not in scales]
    last = max((i for i, arg in enumerate(rest) if arg.startswith("+recipe=")), default=-1)
    return [*rest[: last + 1], *scales, *rest[last + 1 :]]


def main() -> None:
    """Command line entry point."""
    sys.argv = [sys.argv[0], *recipe_before_scale(sys.argv[1:])]
    _run()


if __name__ == "__main__":
    main()
