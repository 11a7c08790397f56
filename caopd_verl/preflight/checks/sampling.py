"""Several samples of one prompt are drawn, not taken greedily."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caopd_verl.errors import ConfigError

if TYPE_CHECKING:
    from caopd_verl.preflight.run_context import Context

ROLLOUT = "actor_rollout_ref.rollout"


def check_sampling(context: Context) -> None:
    """Raises `ConfigError` for several greedy samples of a prompt, in training or validation.

    They would all be the same response: p-hat would be 0 or 1 whatever the model believes.
    """
    rollout = context.config.actor_rollout_ref.rollout
    validation = rollout.val_kwargs
    validation_is_greedy = not validation.do_sample or validation.temperature == 0
    _refuse_greedy(rollout.temperature == 0, rollout.n, f"{ROLLOUT}.n")
    _refuse_greedy(validation_is_greedy, validation.n, f"{ROLLOUT}.val_kwargs.n")


def _refuse_greedy(is_greedy: bool, n: int, key: str) -> None:
    if is_greedy and n > 1:
        raise ConfigError(
            f"{n} samples a prompt under greedy decoding are {n} times the same",
            where=key,
            expected="1, or a temperature above 0 (and val_kwargs.do_sample=true)",
        )
