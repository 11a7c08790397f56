"""p-hat: group mean, leave-one-out, Beta shrinkage."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.core.target import compute_target
from caopd_verl.errors import ConfigError, DataError

verdicts = st.lists(st.booleans(), min_size=1, max_size=20)


@given(verdicts)
def test_t10_mean_includes_the_own_outcome_and_is_shared(correct):
    target = compute_target(correct, leave_one_out=False, shrinkage=None)
    assert target.p_hat == float(Fraction(sum(correct), len(correct)))
    assert target.per_rollout == (target.p_hat,) * len(correct)
    assert (target.successes, target.k, target.solved) == (sum(correct), len(correct), any(correct))


@given(st.lists(st.booleans(), min_size=2, max_size=20))
def test_leave_one_out_drops_the_own_outcome(correct):
    target = compute_target(correct, leave_one_out=True, shrinkage=None)
    for own, value in enumerate(target.per_rollout):
        others = correct[:own] + correct[own + 1 :]
        assert value == pytest.approx(sum(others) / len(others))
    assert target.p_hat == pytest.approx(sum(target.per_rollout) / len(correct))


@given(verdicts, st.floats(0.1, 10), st.floats(0.1, 10))
def test_shrinkage_is_the_beta_posterior_mean(correct, a, b):
    target = compute_target(correct, leave_one_out=False, shrinkage=(a, b))
    assert target.p_hat == pytest.approx((sum(correct) + a) / (len(correct) + a + b))
    assert 0 < target.p_hat < 1


def test_leave_one_out_and_shrinkage_together():
    target = compute_target([True, False, False], leave_one_out=True, shrinkage=(1, 1))
    assert target.per_rollout == pytest.approx((1 / 4, 2 / 4, 2 / 4))
    assert target.p_hat == pytest.approx(2 / 5)


def test_bad_input_is_an_error():
    with pytest.raises(DataError, match="without rollouts"):
        compute_target([], leave_one_out=False, shrinkage=None)
    with pytest.raises(ConfigError, match="leave-one-out"):
        compute_target([True], leave_one_out=True, shrinkage=None)
    for pair in [(-1, 1), (float("nan"), 1), (1, float("inf"))]:
        with pytest.raises(ConfigError, match="pseudo-counts"):
            compute_target([True], leave_one_out=False, shrinkage=pair)
