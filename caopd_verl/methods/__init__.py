"""Named methods: one row a method, one small file behind a family."""

from __future__ import annotations

from caopd_verl.config import CaopdConfig, require
from caopd_verl.methods.distillation import Distillation
from caopd_verl.methods.method import Method
from caopd_verl.methods.rewards import PolicyGradientMethod, correctness

METHODS: dict[str, Method] = {
    "sdpo": Distillation(context="sibling", revise=False),
    "sdpo_caopd": Distillation(context="sibling", revise=True),
    "sdft": Distillation(context="gold", revise=False),
    "sdft_caopd": Distillation(context="gold", revise=True),
    "grpo": PolicyGradientMethod(reward=correctness),
}


def check_method(config: CaopdConfig, rollouts: int) -> Method:
    """The method that the config names, after its own checks.

    Args:
        config: the `caopd` block.
        rollouts: K, verl's `actor_rollout_ref.rollout.n`.

    Raises:
        ConfigError: naming the key of a setting that cannot work.
    """
    known = "one of " + ", ".join(METHODS)
    require(config.method in METHODS, "caopd.method", config.method, known)
    require(rollouts >= 1, "actor_rollout_ref.rollout.n", rollouts, "at least 1 rollout a prompt")
    method = METHODS[config.method]
    # A method may judge other rollouts than it trains, so its plan says what K is here.
    plan = method.plan(config, rollouts)
    n_judged = plan.n - plan.judged_from
    require(
        not config.target.leave_one_out or n_judged >= 2,
        "caopd.target.leave_one_out",
        True,
        f"K of at least 2: leave-one-out takes p-hat from the K-1 siblings, and K is {n_judged}",
        "raise actor_rollout_ref.rollout.n, or set caopd.target.leave_one_out=false",
    )
    method.check(config, rollouts)
    return method
