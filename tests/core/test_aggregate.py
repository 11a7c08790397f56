"""Denominators: identical losses however the batch is split, and few tokens never outweigh whole responses."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caopd_verl.errors import ConfigError, TeacherContextError
from caopd_verl.losses.averaging import (
    MODES,
    LossCounts,
    aggregate_loss,
    count_loss_tokens,
    token_weights,
)


def batch(seed=0, rows=8, width=20):
    generator = torch.Generator().manual_seed(seed)
    loss = torch.rand(rows, width, generator=generator)
    lengths = torch.randint(9, width + 1, (rows, 1), generator=generator)
    mask = torch.arange(width) < lengths
    confidence = mask & (torch.arange(width) >= lengths - 8)
    only = torch.arange(rows) % 3 == 2
    mask = torch.where(only[:, None], confidence, mask)
    mask[1] = False
    return loss, mask, confidence, only


def total(loss, mask, confidence, only, mode, include=False, counts=None):
    counts = counts or count_loss_tokens(mask, only)
    kwargs = {"mode": mode, "counts": counts, "include_masked_rows": include}
    return aggregate_loss(loss, mask, confidence, only, **kwargs)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(MODES),
    st.booleans(),
    st.lists(st.integers(1, 7), max_size=3),
)
def test_any_split_into_micro_batches_and_ranks_gives_the_same_loss(seed, mode, include, cuts):
    parts = batch(seed)
    whole, sums = total(*parts, mode, include)
    edges = sorted({0, 8, *cuts})
    pieces = [[p[a:b] for p in parts] for a, b in itertools.pairwise(edges)]
    counts = [count_loss_tokens(piece[1], piece[3]) for piece in pieces]
    summed = LossCounts.from_list([0] * 5)
    for c in counts:
        summed = summed + c
    assert summed == count_loss_tokens(parts[1], parts[3])
    shares = [total(*piece, mode, include, summed) for piece in pieces]
    torch.testing.assert_close(sum(s[0] for s in shares), whole)
    for name, value in sums.items():
        torch.testing.assert_close(sum(s[1][name] for s in shares), value)
    torch.testing.assert_close(sums["reasoning_share"] + sums["confidence_share"], whole)


def test_token_mode_is_the_mean_over_trained_tokens():
    loss, mask, confidence, only = batch()
    torch.testing.assert_close(total(loss, mask, confidence, only, "token")[0], loss[mask].mean())


def test_sequence_mode_is_the_mean_of_row_means():
    loss, mask, confidence, _ = batch()
    mask[2] = True
    only = torch.zeros(8, dtype=torch.bool)
    means = [row[m].mean() for row, m in zip(loss, mask, strict=True) if m.any()]
    torch.testing.assert_close(
        total(loss, mask, confidence, only, "sequence")[0], torch.stack(means).mean()
    )


@pytest.mark.parametrize("mode", MODES)
def test_t16_few_confidence_tokens_do_not_outweigh_whole_responses(mode):
    mask = torch.ones(8, 1000, dtype=torch.bool)
    confidence = torch.zeros_like(mask)
    confidence[:, -8:] = True
    only = torch.arange(8) < 7  # seven unsolved rollouts, one whole response
    mask = torch.where(only[:, None], confidence, mask)
    kwargs = {"mode": mode, "counts": count_loss_tokens(mask, only), "include_masked_rows": False}
    weights = token_weights(mask, only, **kwargs)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert weights[only].sum() == pytest.approx(56 / 1056, rel=1e-5)
    torch.testing.assert_close(weights[0, -1], weights[7, 0])
    assert torch.equal(weights[~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.parametrize("mode", MODES)
def test_t23_masked_rows_dilute_only_when_asked(mode):
    loss, mask, confidence, only = batch()
    only = torch.zeros_like(only)
    mask[4:] = False
    plain = total(loss[:4], mask[:4], confidence[:4], only[:4], mode)[0]
    torch.testing.assert_close(total(loss, mask, confidence, only, mode)[0], plain)
    diluted = total(loss, mask, confidence, only, mode, True)[0]
    torch.testing.assert_close(diluted, plain * 3 / 8)  # row 1 is masked in both


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_exactly_zero_where_masked_even_with_nan(mode):
    loss, mask, confidence, only = batch()
    loss[~mask] = float("nan")
    loss.requires_grad_()
    share, _ = total(loss, mask, confidence, only, mode)
    share.backward()
    assert torch.isfinite(share)
    assert torch.equal(loss.grad[~mask], torch.zeros(int((~mask).sum())))
    assert (loss.grad[mask] > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_micro_batch_without_trained_tokens_gives_zero_with_a_graph(mode):
    loss = torch.rand(2, 5, requires_grad=True)
    empty = torch.zeros(2, 5, dtype=torch.bool)
    counts = LossCounts(
        rows=4, full_rows=2, full_tokens=10, confidence_only_rows=0, confidence_only_tokens=0
    )
    share, sums = total(loss, empty, empty, empty[:, 0], mode, counts=counts)
    share.backward()
    assert share == 0 and torch.equal(loss.grad, torch.zeros(2, 5))
    assert all(value == 0 for value in sums.values())


@pytest.mark.parametrize("mode", MODES)
def test_only_confidence_rows_weigh_by_token(mode):
    loss, mask, confidence, only = batch()
    only = torch.ones_like(only)
    torch.testing.assert_close(total(loss, mask, confidence, only, mode)[0], loss[mask].mean())


def test_a_batch_without_any_trained_token_and_unknown_modes_are_errors():
    loss, mask, confidence, only = batch()
    with pytest.raises(TeacherContextError, match="no token to train on"):
        total(loss, mask & False, confidence, only, "token")
    with pytest.raises(ConfigError, match="sequence or token"):
        total(loss, mask, confidence, only, "mean")
