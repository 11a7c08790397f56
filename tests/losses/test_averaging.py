"""Weights of tokens in the step's loss: few tokens never outweigh whole responses."""

from __future__ import annotations

import pytest
import torch

from caopd_verl.errors import TeacherContextError
from caopd_verl.losses.averaging import step_weights

AVERAGES = ("sequence", "token")


def made_up_step(seed: int = 0, rows: int = 8, width: int = 20):
    """Losses, method weights and which rows count by their tokens; row 1 is masked."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(rows, width, generator=generator)
    lengths = torch.randint(9, width + 1, (rows, 1), generator=generator)
    whole = torch.arange(width) < lengths
    confidence = whole & (torch.arange(width) >= lengths - 8)
    by_tokens = torch.arange(rows) % 3 == 2
    weights = torch.where(by_tokens[:, None], confidence, whole).float()
    weights[1] = 0.0
    return losses, weights, by_tokens


def loss_of(losses, weights, by_tokens, average, *, include=False):
    found = step_weights(weights, by_tokens, average=average, include_masked_rows=include)
    return (found * losses).sum()


@pytest.mark.parametrize("average", AVERAGES)
def test_weights_sum_to_one_and_are_zero_where_nothing_is_trained(average):
    _, weights, by_tokens = made_up_step()
    found = step_weights(weights, by_tokens, average=average, include_masked_rows=False)
    assert float(found.double().sum()) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(found != 0, weights != 0)


def test_token_average_is_the_mean_over_trained_tokens():
    losses, weights, by_tokens = made_up_step()
    expected = losses[weights != 0].mean()
    torch.testing.assert_close(loss_of(losses, weights, by_tokens, "token"), expected)


def test_sequence_average_is_the_mean_of_row_means():
    losses, weights, by_tokens = made_up_step()
    nobody = torch.zeros_like(by_tokens)
    means = [row[own != 0].mean() for row, own in zip(losses, weights, strict=True) if own.any()]
    expected = torch.stack(means).mean()
    torch.testing.assert_close(loss_of(losses, weights, nobody, "sequence"), expected)


@pytest.mark.parametrize("average", AVERAGES)
def test_few_confidence_tokens_do_not_outweigh_whole_responses(average):
    """Seven unsolved rollouts of eight trained tokens each, and one whole response of 1,000."""
    weights = torch.ones(8, 1000)
    by_tokens = torch.arange(8) < 7
    weights[:7, :-8] = 0.0
    found = step_weights(weights, by_tokens, average=average, include_masked_rows=False)
    assert float(found[by_tokens].sum()) == pytest.approx(56 / 1056, rel=1e-5)
    torch.testing.assert_close(found[0, -1], found[7, 0])


@pytest.mark.parametrize("average", AVERAGES)
def test_masked_rows_dilute_only_when_asked(average):
    losses, weights, by_tokens = made_up_step()
    nobody = torch.zeros_like(by_tokens)
    weights[4:] = 0.0
    plain = loss_of(losses[:4], weights[:4], nobody[:4], average)
    torch.testing.assert_close(loss_of(losses, weights, nobody, average), plain)
    diluted = loss_of(losses, weights, nobody, average, include=True)
    torch.testing.assert_close(diluted, plain * 3 / 8)  # of eight rows three are trained


@pytest.mark.parametrize("average", AVERAGES)
def test_masked_rows_dilute_a_step_of_rows_that_count_by_tokens(average):
    losses, weights, by_tokens = made_up_step()
    everybody = torch.ones_like(by_tokens)
    plain = loss_of(losses, weights, everybody, average)
    torch.testing.assert_close(plain, losses[weights != 0].mean())
    diluted = loss_of(losses, weights, everybody, average, include=True)
    torch.testing.assert_close(diluted, plain * 7 / 8)


def test_fractional_weights_count_as_fractions_of_a_token():
    """Half the weight on every token of a row leaves the row's share of a sequence mean alone."""
    _, weights, by_tokens = made_up_step()
    nobody = torch.zeros_like(by_tokens)
    halved = weights.clone()
    halved[0] /= 2
    whole = step_weights(weights, nobody, average="sequence", include_masked_rows=False)
    found = step_weights(halved, nobody, average="sequence", include_masked_rows=False)
    torch.testing.assert_close(found, whole)
    by_token = step_weights(halved, nobody, average="token", include_masked_rows=False)
    assert float(by_token[0, 0] / by_token[3, 0]) == pytest.approx(0.5)


def test_a_step_without_any_trained_token_is_an_error():
    _, weights, by_tokens = made_up_step()
    with pytest.raises(TeacherContextError, match="no token to train on"):
        step_weights(weights * 0, by_tokens, average="token", include_masked_rows=False)
