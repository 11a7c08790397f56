"""p-hat: group mean, leave-one-out, Beta shrinkage, and the estimate with a memory."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.core.targets import RunningEstimate, SuccessRate
from caopd_verl.errors import ConfigError, DataError

verdicts = st.lists(st.booleans(), min_size=1, max_size=20)


@given(verdicts)
def test_the_mean_includes_the_own_outcome_and_is_shared(correct):
    target = SuccessRate().target("q", correct)
    assert target.p_hat == float(Fraction(sum(correct), len(correct)))
    assert target.per_rollout == (target.p_hat,) * len(correct)
    assert (target.successes, target.k) == (sum(correct), len(correct))
    assert (target.solved, target.unanimous) == (any(correct), all(correct))


@given(st.lists(st.booleans(), min_size=2, max_size=20))
def test_leave_one_out_drops_the_own_outcome(correct):
    target = SuccessRate(leave_one_out=True).target("q", correct)
    for own, value in enumerate(target.per_rollout):
        others = correct[:own] + correct[own + 1 :]
        assert value == pytest.approx(sum(others) / len(others))
    assert target.p_hat == pytest.approx(sum(target.per_rollout) / len(correct))


@given(verdicts, st.floats(0.1, 10), st.floats(0.1, 10))
def test_shrinkage_is_the_beta_posterior_mean(correct, a, b):
    target = SuccessRate(shrinkage=(a, b)).target("q", correct)
    assert target.p_hat == pytest.approx((sum(correct) + a) / (len(correct) + a + b))
    assert 0 < target.p_hat < 1


def test_shrinkage_does_not_make_an_unanimous_group():
    """Whether all were right is a matter of the verdicts, not of the shrunk number."""
    target = SuccessRate(shrinkage=(1, 1)).target("q", [True, True])
    assert target.unanimous and target.p_hat == 0.75


def test_leave_one_out_and_shrinkage_together():
    target = SuccessRate(True, (1, 1)).target("q", [True, False, False])
    assert target.per_rollout == pytest.approx((1 / 4, 2 / 4, 2 / 4))
    assert target.p_hat == pytest.approx(2 / 5)


def test_bad_input_is_an_error():
    with pytest.raises(DataError, match="without rollouts"):
        SuccessRate().target("q", [])
    with pytest.raises(ConfigError, match="leave-one-out"):
        SuccessRate(leave_one_out=True).target("q", [True])
    for pair in [(-1, 1), (float("nan"), 1), (1, float("inf"))]:
        with pytest.raises(ConfigError, match="pseudo-counts"):
            SuccessRate(shrinkage=pair).target("q", [True])


def test_the_running_estimate_remembers_each_prompt_over_the_epochs():
    rule = RunningEstimate(SuccessRate(), momentum=0.75)
    assert rule.target("a", [True, True]).p_hat == 1.0  # the first epoch's own
    assert rule.target("b", [False, False]).p_hat == 0.0
    second = rule.target("a", [False, True])
    assert second.p_hat == pytest.approx(0.75 * 1.0 + 0.25 * 0.5)
    assert second.per_rollout == (second.p_hat,) * 2
    third = rule.target("a", [False, False])  # of the estimate, not of the last epoch alone
    assert third.p_hat == pytest.approx(0.75 * 0.875)
    assert second.successes == 1  # of this step


def test_a_restored_estimate_goes_on_as_if_it_had_not_stopped():
    uninterrupted = RunningEstimate(SuccessRate(), momentum=0.5)
    uninterrupted.target("a", [True, False])
    saved = json.loads(json.dumps(uninterrupted.state_dict()))
    resumed = RunningEstimate(SuccessRate(), momentum=0.5)
    resumed.load_state_dict(saved)
    for group in ([True, True], [False, False]):
        assert resumed.target("a", group) == uninterrupted.target("a", group)
