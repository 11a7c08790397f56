"""Intervals, noise floor and paired comparison, against theory and simulations."""

import math

import numpy as np
import pytest

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.compare import COMPARED, Column, compare
from caopd_verl.evaluation.intervals.estimates import ALL_METRICS, estimate_readouts
from caopd_verl.evaluation.intervals.noise import noise_floor

OPTIONS = dict(n_bins=10, missing="drop", groups=None, n_resamples=300, level=0.95, seed=0)


def estimate(confidence, correct, **changes):
    readouts = {"stated": confidence}
    return estimate_readouts(readouts, correct, **{**OPTIONS, **changes})["stated"]


def sample(n, seed=0, power=1.5):
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.beta(1.2, 0.9, n), 2)
    return confidence.tolist(), (rng.random(n) < confidence**power).tolist()


def test_every_figure_has_value_n_and_interval():
    confidence, correct = sample(300)
    result = estimate(confidence, correct)
    assert set(result) == set(ALL_METRICS)
    for name, one in result.items():
        assert one.n == 300 and one.reason is None
        assert one.low <= one.value <= one.high or name == "ece_debiased", name


def test_undefined_is_none_with_a_reason_never_0():
    result = estimate([0.9, 0.8], [True, True])
    assert result["spr"].value is None and "all 2 rows are correct" in result["spr"].reason
    assert result["acc"].value == 1.0 and result["acc"].low < 0.5 and result["acc"].high == 1.0
    result = estimate([None, None], [True, False])
    assert (
        result["ece"].value is None
        and result["ece"].reason == "none of the 2 rows carries a confidence"
    )
    assert result["acc"].value == 0.5 and result["format_adherence"].value == 0.0
    result = estimate([], [])
    assert result["acc"].reason == "there are no rows"


def test_intervals_match_normal_theory_and_widen_with_clusters():
    confidence, correct = sample(400)
    alone = estimate(confidence, correct, n_resamples=2000)["acc"]
    half = 1.96 * math.sqrt(alone.value * (1 - alone.value) / 400)
    assert (alone.low, alone.high) == pytest.approx(
        (alone.value - half, alone.value + half), abs=0.01
    )
    eight = estimate(
        np.repeat(confidence[:50], 8).tolist(),
        np.repeat(correct[:50], 8).tolist(),
        groups=[i // 8 for i in range(400)],
    )
    once = estimate(confidence[:50], correct[:50])
    for name in ("acc", "brier", "spr"):  # eight equal samples of a question carry no more than one
        assert (eight[name].low, eight[name].high) == pytest.approx(
            (once[name].low, once[name].high), abs=1e-9
        )


@pytest.mark.parametrize(("power", "true_ece"), [(1.0, 0.0), (1.5, 0.0978)])
def test_the_interval_of_the_ece_covers_the_truth(power, true_ece):
    hits = 0
    for seed in range(40):
        confidence, correct = sample(150, seed, power)
        ece = estimate(confidence, correct, n_resamples=100)["ece"]
        hits += ece.low <= true_ece <= ece.high
    assert hits >= 35


def test_policies_for_missing_confidences():
    confidence, correct = [0.9, None, 0.9, None], [True, False, True, True]
    for missing, brier in {
        "drop": 0.01,
        "zero": (0.02 + 0 + 1) / 4,
        "worst": (0.02 + 1 + 1) / 4,
    }.items():
        result = estimate(confidence, correct, missing=missing)
        assert result["brier"].value == pytest.approx(brier)
        assert result["brier"].n == (2 if missing == "drop" else 4)


def test_bad_arguments():
    for change in ({"n_resamples": -1}, {"level": 1.0}, {"missing": "maybe"}, {"n_bins": 0}):
        with pytest.raises(ConfigError):
            estimate([0.5], [True], **change)
    with pytest.raises(DataError, match="row 0"):
        estimate([1.5], [True])


def test_the_noise_floor_of_68_spread_confidences():
    rng = np.random.default_rng(0)
    means = [
        noise_floor(
            rng.beta(1.2, 0.9, 68).tolist(), n_bins=10, groups=None, n_simulations=200, seed=i
        )
        for i in range(20)
    ]
    assert np.mean([floor.mean for floor in means]) == pytest.approx(0.120, abs=0.006)
    assert np.mean([floor.p95 for floor in means]) == pytest.approx(0.172, abs=0.012)
    assert means[0].clustered_mean is None
    assert noise_floor([None], n_bins=10, groups=None, n_simulations=10, seed=0) is None


def test_the_noise_floor_rises_where_samples_of_a_question_fail_together():
    confidence = np.repeat(np.random.default_rng(0).beta(1.2, 0.9, 50), 8).tolist()
    floor = noise_floor(
        confidence, n_bins=10, groups=[i // 8 for i in range(400)], n_simulations=300, seed=0
    )
    assert floor.clustered_mean > 2 * floor.mean


def test_paired_comparison_tells_better_worse_and_cant_tell():
    rng = np.random.default_rng(3)
    p = rng.beta(1.2, 0.9, 500)
    correct = (rng.random(500) < p).tolist()
    ids = [f"q{i}" for i in range(500)]
    good, bad = (
        Column(ids, np.round(p, 2).tolist(), correct),
        Column(ids, np.round(p**0.2, 2).tolist(), correct),
    )
    options = dict(n_bins=10, missing="drop", n_resamples=200, level=0.95, seed=0)
    result = compare(bad, good, **options)
    assert set(result.metrics) == set(COMPARED) and result.n_questions == 500
    for name in ("ece", "brier", "nll", "abs_ocg", "ece_smooth"):
        assert result.metrics[name].verdict == "better" and result.metrics[name].difference < 0, (
            name
        )
    assert result.metrics["acc"].verdict == "can't tell"
    assert compare(good, bad, **options).metrics["brier"].verdict == "worse"
    same = compare(good, good, **options)
    assert {d.verdict for d in same.metrics.values()} == {"can't tell"}


def test_comparison_is_paired_and_over_common_questions():
    rng = np.random.default_rng(4)
    hard = rng.random(300)
    correct = rng.random(300) < hard
    ids = list(range(300))
    base = np.clip(hard + 0.3 * rng.normal(size=300), 0, 1)
    old, new = (
        Column(ids, base.tolist(), correct.tolist()),
        Column(ids, (0.98 * base).tolist(), correct.tolist()),
    )
    result = compare(
        old, new, n_bins=10, missing="drop", n_resamples=300, level=0.95, seed=0
    ).metrics["brier"]
    unpaired = estimate(base.tolist(), correct.tolist())["brier"]
    assert result.high - result.low < 0.3 * (unpaired.high - unpaired.low)
    part = Column([5, 6, 999], [0.5, 0.5, 0.5], [True, False, True])
    limited = compare(old, part, n_bins=10, missing="drop", n_resamples=20, level=0.95, seed=0)
    assert (limited.n_questions, limited.only_old, limited.only_new) == (2, 298, 1)
    with pytest.raises(DataError, match="no question in common"):
        compare(
            old,
            Column(["x"], [0.5], [True]),
            n_bins=10,
            missing="drop",
            n_resamples=20,
            level=0.95,
            seed=0,
        )


def test_readouts_are_resampled_together():
    confidence, correct = sample(100)
    both = estimate_readouts({"a": confidence, "b": confidence}, correct, **OPTIONS)
    assert both["a"] == both["b"]
