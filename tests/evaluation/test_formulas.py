"""All figures: against hand-worked cases, slow definitions and independent libraries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caopd_verl.evaluation.metrics.formulas import COVERAGES
from caopd_verl.evaluation.metrics.layout import TABLE_METRICS, evaluate, layout
from caopd_verl.evaluation.metrics.smooth import CosineSmoother


def figures(confidence, correct, n_bins=10, weights=None):
    rows = layout(confidence, correct, n_bins=n_bins)
    inner = None if weights is None else np.asarray(weights, dtype=float)[rows.order]
    return dict(zip(TABLE_METRICS, evaluate(rows, inner), strict=True))


def sample(n, seed=0, decimals=2, power=1.5):
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.beta(2, 1, n), decimals)
    return confidence, rng.random(n) < confidence**power


def test_a_case_worked_by_hand():
    # bins: 0.9, 0.95 (conf 0.925, acc 0.5, gap 0.425), 0.5 (acc 1, gap 0.5),
    # 0.2 (acc 0, gap 0.2); accuracy 0.5
    result = figures([0.9, 0.95, 0.5, 0.2], [True, False, True, False])
    assert result["mce"] == pytest.approx(0.5)
    assert result["brier_reliability"] == pytest.approx((2 * 0.425**2 + 0.5**2 + 0.2**2) / 4)
    assert result["brier_resolution"] == pytest.approx((0 + 0.25 + 0.25) / 4)
    assert result["brier_uncertainty"] == pytest.approx(0.25)
    assert result["nll"] == pytest.approx(
        -(math.log(0.9) + math.log(0.05) + math.log(0.5) + math.log(0.8)) / 4
    )
    # by falling confidence: wrong, right, right, wrong -> risks 1, 1/2, 1/3, 1/2
    assert result["aurc"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert result["acc_at_50"] == pytest.approx(0.5)
    # 0.8 x 4 rows = 3.2 rows: 2 right of the first three, then 0.2 of a wrong one
    assert result["acc_at_80"] == pytest.approx(2 / 3.2)
    # two bins of two rows: (0.5 + 0.2 - 1) and (0.9 + 0.95 - 1)
    halves = figures([0.9, 0.95, 0.5, 0.2], [True, False, True, False], n_bins=2)
    assert halves["ece_mass"] == pytest.approx(1.15 / 4)


def test_ties_count_in_expectation_over_their_order():
    # one confidence, one right and one wrong row: both orders are equally likely
    result = figures([0.7, 0.7], [True, False])
    assert result["aurc"] == pytest.approx(((0 + 0.5) / 2 + (1 + 0.5) / 2) / 2)
    assert result["acc_at_50"] == pytest.approx(0.5)


ROWS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 100).map(lambda i: i / 100), st.floats(0, 1)), st.booleans()
    ),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)  # other work on the machine is no failure
@given(ROWS, st.sampled_from([1, 5, 10]))
def test_agrees_with_slow_definitions(rows, n_bins):
    n, acc = len(rows), sum(y for _, y in rows) / len(rows)
    mean_conf = sum(c for c, _ in rows) / n
    by_bin = {}
    for c, y in rows:
        place = min(math.floor(c * n_bins + 1e-9 * n_bins), n_bins - 1)
        by_bin.setdefault(place, []).append((c, y))
    ece, largest, reliability, resolution = 0.0, 0.0, 0.0, 0.0
    for inside in by_bin.values():
        share = len(inside) / n
        bin_acc = sum(y for _, y in inside) / len(inside)
        gap = abs(sum(c for c, _ in inside) / len(inside) - bin_acc)
        ece += share * gap
        largest = max(largest, gap)
        reliability += share * gap**2
        resolution += share * (bin_acc - acc) ** 2
    brier, uncertainty = sum((c - y) ** 2 for c, y in rows) / n, acc * (1 - acc)
    expected = {
        "acc_scored": acc,
        "mean_conf": mean_conf,
        "ocg": mean_conf - acc,
        "ece": ece,
        "mce": largest,
        "brier": brier,
        "brier_reliability": reliability,
        "brier_resolution": resolution,
        "brier_uncertainty": uncertainty,
        "brier_within": brier - (reliability - resolution + uncertainty),
        "spr": math.nan,
        "tie_rate": math.nan,
        "auroc": math.nan,
    }
    pairs = [(a, b) for a, y in rows if y for b, z in rows if not z]
    if pairs:
        expected["spr"] = sum(a > b for a, b in pairs) / len(pairs)
        expected["tie_rate"] = sum(a == b for a, b in pairs) / len(pairs)
        expected["auroc"] = expected["spr"] + expected["tie_rate"] / 2
    result = figures([c for c, _ in rows], [y for _, y in rows], n_bins)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert abs(result["ocg"]) <= result["ece_mass"] + 1e-12
    assert result["ece_debiased"] <= result["ece"] + 1e-12


@settings(deadline=None)  # other work on the machine is no failure
@given(ROWS, st.randoms())
def test_weights_are_repetitions(rows, random):
    weights = [random.randint(0, 3) for _ in rows]
    repeated = [row for row, w in zip(rows, weights, strict=True) for _ in range(w)]
    weighted = figures([c for c, _ in rows], [y for _, y in rows], weights=weights)
    if not repeated:
        assert all(math.isnan(v) for v in weighted.values())
        return
    plain = figures([c for c, _ in repeated], [y for _, y in repeated])
    for key in set(TABLE_METRICS) - {"ece_smooth"}:  # whose width comes from the full sample
        assert weighted[key] == pytest.approx(plain[key], abs=1e-9, nan_ok=True), key


def test_aurc_and_coverage_against_all_orders_of_ties():
    rng = np.random.default_rng(5)
    confidence = rng.choice([0.2, 0.5, 0.8], 40)
    correct = rng.random(40) < confidence
    runs = []
    for _ in range(4000):
        order = np.lexsort((rng.random(40), -confidence))
        right = correct[order]
        risks = np.cumsum(~right) / np.arange(1, 41)
        runs.append([risks.mean(), *(right[: int(c * 40)].mean() for c in COVERAGES.values())])
    result = figures(confidence, correct)
    assert [result[k] for k in ("aurc", *COVERAGES)] == pytest.approx(
        np.mean(runs, axis=0), abs=0.004
    )


def test_equal_mass_agrees_with_array_split_where_nothing_is_tied():
    confidence, correct = sample(1000, decimals=9)
    order = np.argsort(confidence)
    gaps = [abs(part.sum()) for part in np.split((confidence - correct)[order], 10)]
    assert figures(confidence, correct)["ece_mass"] == pytest.approx(sum(gaps) / 1000, abs=1e-12)


def test_the_debiased_ece_is_near_the_truth_where_the_plain_one_is_not():
    rng = np.random.default_rng(0)
    many = rng.beta(1.2, 0.9, 1_000_000)
    truth = np.minimum(many, 0.1).mean()  # the gap is 0.1, or the whole confidence below that
    plain, debiased = [], []
    for _ in range(300):
        confidence = np.round(rng.beta(1.2, 0.9, 210), 2)
        result = figures(confidence, rng.random(210) < np.clip(confidence - 0.1, 0, 1))
        plain.append(result["ece"])
        debiased.append(result["ece_debiased"])
    assert np.mean(plain) - truth > 0.01
    assert abs(np.mean(debiased) - truth) < np.mean(plain) - truth


def test_the_debiased_ece_of_a_calibrated_model_is_much_nearer_0():
    runs = [figures(*sample(210, seed, power=1.0)) for seed in range(200)]
    assert np.mean([r["ece_debiased"] for r in runs]) < 0.65 * np.mean([r["ece"] for r in runs])


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_nll_and_auroc_agree_with_scikit_learn(decimals):
    sklearn = pytest.importorskip("sklearn.metrics")
    confidence, correct = sample(3000, decimals=decimals)
    result = figures(confidence, correct)
    clipped = np.clip(confidence, 0.005, 0.995)
    assert result["nll"] == pytest.approx(sklearn.log_loss(correct, clipped), abs=1e-9)
    assert result["auroc"] == pytest.approx(sklearn.roc_auc_score(correct, confidence), abs=1e-9)


def test_ece_and_mce_agree_with_torchmetrics():
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.functional.classification")
    # off the bins' edges, which torchmetrics closes on the right
    confidence, correct = sample(4000, decimals=9)
    inside = [torch.tensor(confidence), torch.tensor(correct).int()]
    result = figures(confidence, correct)
    # torchmetrics' binary form takes the probability of class 1 as the confidence, as here
    for norm, name in (("l1", "ece"), ("max", "mce")):
        value = classification.binary_calibration_error(*inside, n_bins=10, norm=norm).item()
        assert result[name] == pytest.approx(value, abs=1e-6)  # torchmetrics adds up in float32


@pytest.mark.parametrize("n", [68, 1000, 20_000])
@pytest.mark.parametrize("power", [1.0, 1.5, 4.0])
def test_smooth_ece_agrees_with_relplot(n, power):
    relplot = pytest.importorskip("relplot")
    confidence, correct = sample(n, decimals=9, power=power)
    theirs = relplot.smECE(confidence, correct.astype(float))
    # Its grid has 200 points and its kernel is cut at one half: agreement to 2e-3, not to rounding.
    assert figures(confidence, correct)["ece_smooth"] == pytest.approx(theirs, abs=2e-3)


def test_smooth_ece_against_direct_integration():
    confidence, correct = sample(300, decimals=2)
    rows = layout(confidence, correct, n_bins=10)
    width = rows.smoother.width
    t = np.linspace(0, 1, 4001)
    smooth = np.zeros_like(t)
    for k in range(-4, 5):  # reflections at both ends
        for centre in (confidence + 2 * k, -confidence + 2 * k):
            kernel = np.exp(-((t[:, None] - centre) ** 2) / (2 * width**2)) / (
                width * math.sqrt(2 * math.pi)
            )
            smooth += kernel @ (confidence - correct)
    direct = np.trapezoid(np.abs(smooth), t) / 300
    table = rows.table()
    residual = table.total * table.values - table.right
    assert rows.smoother.error(residual, 300) == pytest.approx(direct, abs=1e-5)
    assert direct == pytest.approx(width, abs=1e-3)  # the fixed point
    assert isinstance(rows.smoother, CosineSmoother)


def test_no_rows_give_nan():
    assert all(math.isnan(v) for v in figures([], []).values())
