"""What the samplers are told, followed from the config."""

from __future__ import annotations

import pytest

from caopd_verl.verl_ext.sampling import step_seed, training_sampling, validation_sampling


@pytest.fixture
def config(compose):
    return compose(
        "+recipe=sdpo_caopd",
        "+scale=cpu_tiny",
        "actor_rollout_ref.rollout.temperature=0.9",
        "actor_rollout_ref.rollout.top_p=0.8",
        "actor_rollout_ref.rollout.top_k=7",
        "actor_rollout_ref.rollout.val_kwargs.temperature=0.5",
        "actor_rollout_ref.rollout.val_kwargs.top_p=0.7",
        "actor_rollout_ref.rollout.val_kwargs.top_k=3",
        "data.max_response_length=20",
    )


def test_training_samples_as_the_rollout_block_says_with_log_probs(config):
    assert training_sampling(config) == {
        "temperature": 0.9,
        "top_p": 0.8,
        "top_k": 7,
        "max_tokens": 20,
        "logprobs": 0,
    }


def test_validation_samples_as_its_own_block_says(config):
    expected = {"temperature": 0.5, "top_p": 0.7, "top_k": 3, "max_tokens": 20}
    assert validation_sampling(config) == expected


def test_validation_is_greedy_where_it_may_not_sample(config):
    config.actor_rollout_ref.rollout.val_kwargs.do_sample = False
    assert validation_sampling(config)["temperature"] == 0.0


def test_every_step_and_purpose_has_a_seed_of_its_own():
    seeds = [
        step_seed(base, purpose, step)
        for base in (0, 1)
        for purpose in ("train", "val")
        for step in range(20)
    ]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    assert step_seed(3, "val", 5) == step_seed(3, "val", 5)
