"""Importance weights of single tokens."""

from __future__ import annotations

import math

import pytest
import torch

from caopd_verl.errors import ConfigError
from caopd_verl.losses.importance import importance_weights, tis_weights


def test_importance_weights_are_clipped_detached_and_one_on_policy():
    new = torch.tensor([-1.0, -1.0, -1.0, 0.0], requires_grad=True)
    old = torch.tensor([-1.0, -1.5, -5.0, -1e9])
    weights = importance_weights(new, old, clip=2.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, math.exp(0.5), 2.0, 2.0]))
    assert weights[0] == 1.0 and not weights.requires_grad
    assert torch.equal(importance_weights(new, new - 3, clip=None), torch.ones(4))
    with pytest.raises(ConfigError):
        importance_weights(new, new, clip=0.0)


def test_replaced_tokens_have_weight_one_whatever_the_sampler_says():
    """The sampler gave the tokens of a revised confidence no probability, so no ratio exists."""
    old = torch.tensor([-1.0, -2.0, -0.5, -0.5])
    sampler = torch.tensor([-1.2, -1.0, float("nan"), -9.0])
    sampled = torch.tensor([True, True, False, False])
    weights = tis_weights(old, sampler, sampled, clip=2.0)
    expected = torch.tensor([math.exp(0.2), math.exp(-1.0), 1.0, 1.0])
    torch.testing.assert_close(weights, expected)
    assert torch.equal(tis_weights(old, sampler, sampled, clip=None), torch.ones(4))
