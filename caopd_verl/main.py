"""Train: `python -m caopd_verl.main +recipe=sdpo_caopd [+scale=cpu_tiny] [key=value ...]`.

Composes the config, checks it, runs it. `--cfg job` prints what would run.
"""

from __future__ import annotations

import sys

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from caopd_verl.config import CaopdConfig
from caopd_verl.errors import CaopdError

ConfigStore.instance().store(group="caopd", name="schema", node=CaopdConfig)


@hydra.main(config_path="configs", config_name="caopd_trainer", version_base=None)
def _run(config: DictConfig) -> None:
    from caopd_verl.preflight import prepare
    from caopd_verl.verl_ext.runner import run

    prepare(config)
    run(config)


def recipe_before_scale(argv: list[str]) -> list[str]:
    """A scale overrides its recipe, in whatever order the two were typed."""
    scales = [arg for arg in argv if arg.startswith("+scale=")]
    rest = [arg for arg in argv if arg not in scales]
    last = max((i for i, arg in enumerate(rest) if arg.startswith("+recipe=")), default=-1)
    return [*rest[: last + 1], *scales, *rest[last + 1 :]]


def main() -> None:
    sys.argv = [sys.argv[0], *recipe_before_scale(sys.argv[1:])]
    try:
        _run()
    except CaopdError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
