import numpy as np
import pytest

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.evaluation.metrics.posthoc import METHODS, fit, self_consistency, split_groups


def overconfident(n, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.beta(1.5, 1.5, n)
    logit = np.log(p / (1 - p))
    return 1 / (1 + np.exp(-3 * logit)), rng.random(n) < p


@pytest.mark.parametrize("method", METHODS)
def test_scaling_mends_an_overconfident_model_and_keeps_the_order(method):
    pytest.importorskip("sklearn")
    apply = fit(method, *overconfident(4000))
    confidence, correct = overconfident(4000, seed=1)
    scaled = apply(confidence)
    before = calibration_metrics(confidence.tolist(), correct.tolist(), n_bins=10, missing="drop")
    after = calibration_metrics(scaled.tolist(), correct.tolist(), n_bins=10, missing="drop")
    assert before["ece"] > 0.12 and after["ece"] < 0.035
    assert after["brier"] < before["brier"]
    assert (np.diff(scaled[np.argsort(confidence)]) >= -1e-12).all()


def test_temperature_is_the_one_that_was_put_in():
    pytest.importorskip("sklearn")
    apply = fit("temperature", *overconfident(20_000))
    assert apply(np.array([0.5]))[0] == pytest.approx(0.5)
    logit = np.log(0.9 / 0.1)
    assert apply(np.array([0.9]))[0] == pytest.approx(1 / (1 + np.exp(-logit / 3)), abs=0.02)


def test_temperature_of_a_model_that_is_wrong_way_round_says_one_half():
    pytest.importorskip("sklearn")
    confidence, correct = overconfident(2000)
    assert fit("temperature", 1 - confidence, correct)(np.array([0.1, 0.9])) == pytest.approx(
        [0.5, 0.5]
    )


def test_what_cannot_be_fitted_is_an_error():
    with pytest.raises(ConfigError, match="correct and wrong rows"):
        fit("platt", np.array([0.5, 0.6]), np.array([True, True]))
    with pytest.raises(ConfigError, match="temperature, platt, isotonic"):
        fit("magic", np.array([0.5]), np.array([True]))


def test_the_split_keeps_questions_together_and_is_deterministic():
    groups = [f"q{i // 4}" for i in range(4000)]
    chosen = split_groups(groups, fraction=0.3, seed=0)
    assert chosen.reshape(-1, 4).std(axis=1).max() == 0
    assert chosen.mean() == pytest.approx(0.3, abs=0.05)
    assert (split_groups(groups[::-1], fraction=0.3, seed=0)[::-1] == chosen).all()
    with pytest.raises(ConfigError):
        split_groups(groups, fraction=1.0, seed=0)


def test_self_consistency_is_the_share_of_agreeing_samples():
    groups = ["a", "a", "a", "a", "b", "b", "c"]
    answers = ["X", "X", "Y", None, "Z", "Z", "W"]
    assert self_consistency(groups, answers) == [0.5, 0.5, 0.25, None, 1.0, 1.0, None]
