"""GRPO on hand-made groups, and the framework's own functions behind it."""

from __future__ import annotations

import math

import pytest
import torch

from caopd_verl.config import CaopdConfig, ConfidenceLoss, TrainedRollouts, Truncated, Unsolved
from caopd_verl.errors import ConfigError
from caopd_verl.methods import METHODS, check_method
from caopd_verl.methods.method import needs_teacher

from .conftest import RIGHT, WRONG, trained


def test_grpo_trains_what_was_sampled_on_the_groups_advantages(run, group):
    own = group(RIGHT, WRONG, WRONG, WRONG)
    trajectories, target = run("grpo", own)
    assert target.p_hat == 0.25  # logged only
    spread = 0.5  # sample standard deviation of 1, 0, 0, 0
    for trajectory, rollout in zip(trajectories, own.rollouts, strict=True):
        assert trajectory.token_ids == rollout.token_ids and all(trained(trajectory))
        assert trajectory.teacher_prompt is None
        centred = 0.75 if rollout.verdict.correct else -0.25
        expected = [centred / spread] * len(trajectory.token_ids)
        assert list(trajectory.advantages) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("texts", [[RIGHT, RIGHT], [WRONG, WRONG]])
def test_an_unanimous_group_has_no_advantage_but_counts(run, group, texts):
    trajectories, _ = run("grpo", group(*texts))
    assert all(set(t.advantages) == {0.0} and all(trained(t)) for t in trajectories)


def test_truncated_responses_follow_the_rule_of_every_method(run, group, rollout):
    cut = rollout("1" * 20, truncated=True)
    own = group(RIGHT, WRONG, cut)
    masked, _ = run("grpo", own)
    assert [t.status for t in masked] == ["as_sampled", "as_sampled", "truncated"]
    assert masked[2].n_trained == 0
    assert masked[0].advantages[0] > 0  # its reward still counts in the group's mean
    kept, _ = run("grpo", own, truncated=Truncated.train)
    assert all(trained(kept[2]))


def test_grpo_needs_no_teacher_and_two_rollouts():
    config = CaopdConfig(method="grpo")
    assert not needs_teacher(METHODS["grpo"], config)
    assert check_method(config, 2) is METHODS["grpo"]


@pytest.mark.parametrize(
    ("k", "config", "key"),
    [
        (1, {}, "actor_rollout_ref.rollout.n"),
        (8, {"unsolved": Unsolved.confidence_only}, "caopd.unsolved"),
        (8, {"confidence_loss": ConfidenceLoss.cross_entropy}, "caopd.confidence_loss"),
        (8, {"trained_rollouts": TrainedRollouts.one}, "caopd.trained_rollouts"),
    ],
)
def test_settings_without_effect_are_refused_by_key(k, config, key):
    with pytest.raises(ConfigError) as caught:
        check_method(CaopdConfig(method="grpo", **config), k)
    assert caught.value.where == key


# ---------------------------------------------------------------------- verl's own functions


@pytest.fixture
def services(verl_on_cpu, compose, tiny_tokenizer):
    from caopd_verl.verl_ext.services import VerlServices

    config = compose("+recipe=grpo", "+scale=cpu_tiny")
    return VerlServices(
        config=CaopdConfig(method="grpo"),
        algorithm=config.algorithm,
        tokenizer=tiny_tokenizer,
        eot_id=2,
        stop_ids=frozenset({2}),
        max_response_tokens=24,
    )


@pytest.mark.parametrize("rewards", [[1, 0, 0, 1], [1, 1, 1], [0.0, 0.5, -1.0, 2.0]])
def test_the_advantage_is_the_reward_against_its_group(services, rewards):
    found = services.group_advantages(rewards)
    mean = sum(rewards) / len(rewards)
    variance = sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)
    expected = [(r - mean) / (math.sqrt(variance) + 1e-6) for r in rewards]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_an_estimator_that_needs_more_than_rewards_is_refused(services):
    services.algorithm.adv_estimator = "gae"
    with pytest.raises(ConfigError) as caught:
        services.group_advantages([1.0, 0.0])
    assert caught.value.where == "algorithm.adv_estimator"


def test_verls_policy_loss_with_our_weights_is_its_own_average(verl_on_cpu, compose):
    """Equal weights that sum to 1 over the tokens are verl's token-mean, clipping included."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    from caopd_verl.verl_ext.worker import policy_loss

    config = compose("+recipe=grpo", "+scale=cpu_tiny")
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    generator = torch.Generator().manual_seed(0)
    old, new = -torch.rand(2, 3, 5, generator=generator)
    new = new.requires_grad_()
    advantages = torch.randn(3, 5, generator=generator)
    mask = (torch.rand(3, 5, generator=generator) < 0.7).float()
    vanilla = get_policy_loss_fn("vanilla")
    ours = policy_loss(vanilla, actor, old, new, advantages, mask, mask / mask.sum())
    theirs, _ = vanilla(old, new, advantages, mask, loss_agg_mode="token-mean", config=actor)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, new)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_grpos_loss_is_the_hand_computed_one(verl_on_cpu):
    """On policy, two tokens each: minus the mean advantage over all tokens, whatever the ratio."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    from caopd_verl.verl_ext.worker import policy_loss

    class Actor:  # the four numbers of verl's config that its function reads
        clip_ratio = clip_ratio_low = clip_ratio_high = 0.2
        global_batch_info: dict = {}  # noqa: RUF012

        def get(self, name, default):
            return default

    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -0.1]])
    advantages = torch.tensor([[1.0, 1.0], [-3.0, -3.0]])
    weights = torch.full((2, 2), 0.25)
    ones = torch.ones(2, 2)
    vanilla = get_policy_loss_fn("vanilla")
    loss = policy_loss(vanilla, Actor(), log_probs, log_probs, advantages, ones, weights)
    assert float(loss) == pytest.approx(-(1 + 1 - 3 - 3) / 4)
    # a good token twice as likely as before is clipped at 1.2, a bad one is not
    doubled = log_probs + math.log(2)
    loss = policy_loss(vanilla, Actor(), log_probs, doubled, advantages, ones, weights)
    assert float(loss) == pytest.approx(-(1.2 + 1.2) / 4 + 2 * (3 + 3) / 4)
