"""Log-probs of given tokens, chunk by chunk, against one log-softmax over all of them."""

from __future__ import annotations

import pytest
import torch

from caopd_verl.losses.log_probs import token_log_probs


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_values_entropies_and_gradient_are_those_of_the_whole(chunk_tokens):
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.arange(7)
    found, entropies = token_log_probs(logits, ids, temperature=1.0, chunk_tokens=chunk_tokens)
    plain = logits.double().log_softmax(-1)
    expected = plain.gather(-1, ids[:, None]).squeeze(-1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(entropies.double(), -(plain.exp() * plain).sum(-1).detach())
    weights = torch.linspace(-1, 1, 7)
    gradient = torch.autograd.grad((weights * found).sum(), logits, retain_graph=True)[0]
    wanted = torch.autograd.grad((weights.double() * expected).sum(), logits)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_a_token_of_probability_zero_gives_no_nan_in_the_entropy():
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    _, entropies = token_log_probs(logits, torch.tensor([0]), temperature=1.0, chunk_tokens=1)
    assert float(entropies[0]) == pytest.approx(0.6931, abs=1e-4)


def test_bf16_logits_are_upcast_before_the_softmax():
    logits = torch.tensor([[30.0, 29.0, 1.0]]).bfloat16()
    found, _ = token_log_probs(logits, torch.tensor([1]), temperature=1.0, chunk_tokens=1)
    assert found.dtype == torch.float32
    assert float(found[0]) == pytest.approx(-1.3133, abs=1e-4)


def test_the_temperature_divides_in_fp32():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    ids = torch.tensor([0, 1, 2])
    found, _ = token_log_probs(logits, ids, temperature=0.7, chunk_tokens=2)
    expected = (logits.double() / 0.7).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
