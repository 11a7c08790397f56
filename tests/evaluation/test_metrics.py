"""The metrics without intervals: hand-worked cases, slow definitions, scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.bootstrap import cluster_index, mean_interval
from caopd_verl.evaluation.metrics.calibration import (
    METRIC_NAMES,
    calibration_metrics,
    reliability_bins,
)
from caopd_verl.evaluation.metrics.formulas import bin_index


def metrics(confidence, correct, n_bins=10, missing="drop"):
    return calibration_metrics(confidence, correct, n_bins=n_bins, missing=missing)


def test_a_case_worked_by_hand():
    # bins: 0.9 and 0.95 -> bin 9 (conf 1.85, correct 1); 0.5 -> bin 5 (correct 1);
    # 0.2 -> bin 2 (correct 0)
    # ECE = (|1.85 - 1| + |0.5 - 1| + |0.2 - 0|) / 4 = 1.55 / 4
    # Brier = (0.1^2 + 0.95^2 + 0.5^2 + 0.2^2) / 4 = (0.01 + 0.9025 + 0.25 + 0.04) / 4
    # pairs (correct x wrong): (0.9, 0.95) lost, (0.9, 0.2) won, (0.5, 0.95) lost, (0.5, 0.2) won
    result = metrics([0.9, 0.95, 0.5, 0.2], [True, False, True, False])
    assert list(result) == list(METRIC_NAMES)
    expected = {
        "n": 4,
        "n_parsed": 4,
        "acc": 0.5,
        "acc_scored": 0.5,
        "mean_conf": 0.6375,
        "ece": 0.3875,
        "brier": 1.2025 / 4,
        "ocg": 0.1375,
        "spr": 0.5,
        "auroc": 0.5,
        "tie_rate": 0.0,
        "format_adherence": 1.0,
    }
    assert result == pytest.approx(expected, abs=1e-12)


def test_unparsed_confidences_are_counted_and_never_averaged_in_unasked():
    confidence, correct = [0.9, None, 0.9, None], [True, False, True, True]
    drop = metrics(confidence, correct)
    assert (drop["n"], drop["n_parsed"], drop["format_adherence"]) == (4, 2, 0.5)
    assert (drop["acc"], drop["acc_scored"]) == (0.75, 1.0)
    assert drop["mean_conf"] == pytest.approx(0.9)
    assert drop["ocg"] == pytest.approx(-0.1)
    zero = metrics(confidence, correct, missing="zero")
    assert zero["mean_conf"] == pytest.approx(0.45)
    assert zero["brier"] == pytest.approx((0.01 + 0 + 0.01 + 1) / 4)
    worst = metrics(confidence, correct, missing="worst")
    assert worst["brier"] == pytest.approx((0.01 + 1 + 0.01 + 1) / 4)


def test_a_wrong_unparsed_answer_looks_perfect_as_zero_and_terrible_as_worst():
    assert metrics([None], [False], missing="zero")["brier"] == 0.0
    assert metrics([None], [False], missing="worst")["brier"] == 1.0


@pytest.mark.parametrize("correct", [[True, True], [False, False]])
def test_separation_is_undefined_where_all_rows_agree(correct):
    result = metrics([0.9, 0.1], correct)
    assert result["spr"] is None and result["auroc"] is None and result["tie_rate"] is None
    assert result["ece"] is not None


def test_ties_are_reported_beside_spr():
    result = metrics([0.9, 0.9, 0.9, 0.5], [True, True, False, False])
    assert (result["spr"], result["tie_rate"], result["auroc"]) == (0.5, 0.5, 0.75)
    saturated = metrics([1.0] * 6, [True, False] * 3)
    assert (saturated["spr"], saturated["tie_rate"], saturated["auroc"]) == (0.0, 1.0, 0.5)


@pytest.mark.parametrize("n_bins", [1, 2, 3, 5, 7, 10, 15, 20, 25, 50, 100])
def test_every_decimal_edge_opens_its_bin(n_bins):
    for i in range(101):
        exact = min(i * n_bins // 100, n_bins - 1)
        assert bin_index(np.array([i / 100]), n_bins)[0] == exact, (i, n_bins)
        assert bin_index(np.array([float(f"{i / 100:.2f}")]), n_bins)[0] == exact


def test_the_edges_at_which_floats_go_wrong():
    # numpy.linspace(0, 1, 11) has 0.30000000000000004, 0.6000000000000001 and 0.7000000000000001
    on_edges = np.array([0.3, 0.6, 0.7, 0.1 + 0.2, 1.0, 0.0])
    assert bin_index(on_edges, 10).tolist() == [3, 6, 7, 3, 9, 0]
    assert bin_index(np.array([0.2999, 0.5999, 0.6999]), 10).tolist() == [2, 5, 6]
    cells = reliability_bins([0.3, 0.6, 0.7], [True] * 3, n_bins=10)
    assert [i for i, cell in enumerate(cells) if cell.n] == [3, 6, 7]


def test_the_ece_of_a_perfectly_calibrated_model_is_not_zero_at_small_n():
    rng = np.random.default_rng(0)

    def mean_ece(n):
        runs = []
        for _ in range(300):
            c = rng.beta(1.2, 0.9, n)
            runs.append(metrics(c.tolist(), (rng.random(n) < c).tolist())["ece"])
        return np.mean(runs)

    assert mean_ece(68) == pytest.approx(0.120, abs=0.006)
    assert mean_ece(210) == pytest.approx(0.069, abs=0.004)


def test_no_rows_give_none_everywhere():
    result = metrics([], [])
    assert result.pop("n") == 0 and result.pop("n_parsed") == 0
    assert set(result.values()) == {None}
    unparsed = metrics([None, None], [True, False])
    assert (unparsed["acc"], unparsed["format_adherence"]) == (0.5, 0.0)
    assert (unparsed["ece"], unparsed["ocg"]) == (None, None)


@pytest.mark.parametrize("value", [-0.01, 1.01, 90.0, math.nan, math.inf])
def test_a_confidence_outside_the_unit_interval_names_its_row(value):
    with pytest.raises(DataError, match="confidence of row 1: "):
        metrics([0.5, value], [True, False])


def test_bad_arguments():
    with pytest.raises(DataError, match="1 confidences but 2 verdicts"):
        metrics([0.5], [True, False])
    with pytest.raises(DataError, match="neither true nor false"):
        metrics([0.5], [0.5])
    with pytest.raises(ConfigError, match="n_bins"):
        metrics([0.5], [True], n_bins=0)
    with pytest.raises(ConfigError, match="unknown policy 'ignore'"):
        metrics([0.5], [True], missing="ignore")


GRID = st.integers(0, 100).map(lambda i: i / 100)
ROWS = st.lists(st.tuples(st.one_of(GRID, st.floats(0, 1)), st.booleans()), min_size=1, max_size=60)


@settings(deadline=None)  # other work on the machine is no failure
@given(ROWS, st.sampled_from([1, 5, 10, 15]))
def test_agrees_with_slow_definitions(rows, n_bins):
    confidence, correct = [c for c, _ in rows], [y for _, y in rows]
    result = metrics(confidence, correct, n_bins=n_bins)
    assert abs(result["ocg"]) <= result["ece"] + 1e-12
    assert result["ece"] <= 1.0 and result["brier"] <= 1.0
    pairs = [(a, b) for a, y in rows if y for b, z in rows if not z]
    errors = [(c - y) ** 2 for c, y in rows]
    assert result["brier"] == pytest.approx(sum(errors) / len(rows), abs=1e-12)
    assert result["mean_conf"] == pytest.approx(sum(confidence) / len(rows), abs=1e-12)
    assert result["acc_scored"] == result["acc"] == pytest.approx(sum(correct) / len(rows))
    if pairs:
        wins = sum(a > b for a, b in pairs)
        ties = sum(a == b for a, b in pairs)
        assert result["spr"] == pytest.approx(wins / len(pairs), abs=1e-12)
        assert result["tie_rate"] == pytest.approx(ties / len(pairs), abs=1e-12)
        assert result["auroc"] == pytest.approx((wins + ties / 2) / len(pairs), abs=1e-12)
        assert result["spr"] + result["tie_rate"] <= 1.0 + 1e-12
    by_bin = [[] for _ in range(n_bins)]
    for c, y in rows:
        by_bin[min(math.floor(c * n_bins + 1e-9 * n_bins), n_bins - 1)].append((c, y))
    cells = reliability_bins(confidence, correct, n_bins=n_bins)
    ece = 0.0
    for cell, inside in zip(cells, by_bin, strict=True):
        assert cell.n == len(inside)
        if not inside:
            assert cell.mean_conf is None and cell.acc is None
            continue
        mean_conf = sum(c for c, _ in inside) / len(inside)
        acc = sum(y for _, y in inside) / len(inside)
        assert (cell.mean_conf, cell.acc) == pytest.approx((mean_conf, acc), abs=1e-12)
        assert cell.low - 1e-9 <= cell.mean_conf <= cell.high + 1e-9
        ece += len(inside) / len(rows) * abs(mean_conf - acc)
    assert result["ece"] == pytest.approx(ece, abs=1e-12)


@settings(deadline=None)  # other work on the machine is no failure
@given(ROWS, st.randoms())
def test_the_order_of_rows_does_not_matter_and_doubling_them_changes_nothing(rows, random):
    shuffled = rows * 2
    random.shuffle(shuffled)
    once = metrics([c for c, _ in rows], [y for _, y in rows])
    twice = metrics([c for c, _ in shuffled], [y for _, y in shuffled])
    for key in set(METRIC_NAMES) - {"n", "n_parsed"}:
        assert twice[key] == (None if once[key] is None else pytest.approx(once[key], abs=1e-9))


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_auroc_and_brier_agree_with_scikit_learn(decimals):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(decimals)
    for n in (2, 10, 500, 20_000):
        confidence = np.round(rng.random(n), decimals)
        correct = rng.random(n) < confidence
        correct[:2] = [True, False]
        result = metrics(confidence.tolist(), correct.tolist())
        assert result["auroc"] == pytest.approx(
            sklearn.roc_auc_score(correct, confidence), abs=1e-9
        )
        assert result["brier"] == pytest.approx(
            sklearn.brier_score_loss(correct, confidence), abs=1e-9
        )


def test_a_million_rows_need_no_pair_table():
    rng = np.random.default_rng(0)
    confidence = np.round(rng.random(1_000_000), 2)
    result = metrics(confidence, rng.random(1_000_000) < confidence)
    assert result["auroc"] == pytest.approx(5 / 6, abs=0.01)
    assert result["ece"] < 0.01


def test_bootstrap_interval_matches_the_binomial_one_and_widens_with_clusters():
    rng = np.random.default_rng(1)
    outcomes = rng.random(400) < 0.7
    kwargs = dict(n_resamples=4000, level=0.95, seed=0)
    low, high = mean_interval(outcomes, cluster_index(None, 400), **kwargs)
    half = 1.96 * math.sqrt(outcomes.mean() * (1 - outcomes.mean()) / 400)
    assert (low, high) == pytest.approx((outcomes.mean() - half, outcomes.mean() + half), abs=0.008)
    assert mean_interval(outcomes, cluster_index(None, 400), **kwargs) == (low, high)
    # eight equal samples of each question carry no more than one
    repeated = np.repeat(outcomes[:50], 8)
    groups = cluster_index([i // 8 for i in range(400)], 400)
    wide = mean_interval(repeated, groups, **kwargs)
    one_each = mean_interval(outcomes[:50], cluster_index(None, 50), **kwargs)
    assert wide == pytest.approx(one_each, abs=1e-9)


def test_bootstrap_interval_of_unanimous_outcomes_has_width():
    kwargs = dict(n_resamples=10, level=0.9, seed=0)
    bound = 0.05 ** (1 / 3)
    all_right = mean_interval(np.ones(3), np.arange(3), **kwargs)
    assert all_right == pytest.approx((bound, 1.0))
    all_wrong = mean_interval(np.zeros(3), np.arange(3), **kwargs)
    assert all_wrong == pytest.approx((0.0, 1 - bound))
    with pytest.raises(ConfigError):
        mean_interval(np.ones(0), np.arange(0), **kwargs)
    with pytest.raises(ConfigError, match="2 groups for 3 rows"):
        cluster_index(["a", "b"], 3)
