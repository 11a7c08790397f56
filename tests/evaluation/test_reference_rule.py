"""The numbers of the paper's own code, on cases worked by hand from its behaviour."""

import pytest

from caopd_verl.evaluation.metrics.reference_rule import (
    compat_summary,
    reference_confidence,
    reference_metrics,
)


@pytest.mark.parametrize(
    ("text", "value", "how"),
    [
        ("<answer>B</answer>\nConfidence: 0.75", 0.75, "read"),
        ("confidence: 0.2\nCONFIDENCE:0.4", 0.4, "read"),
        ("Confidence: 90%", 1.0, "read"),  # clamped, not 0.9
        ("Confidence: 85", 1.0, "read"),
        ("Confidence: .85", 0.85, "read"),
        ("Confidence: 0.9.", 0.0, "crash"),
        ("**Confidence:** 0.9", 0.0, "unread"),
        ("Confidence: -0.5", 0.0, "unread"),
        ("Confidence: high", 0.0, "unread"),
        ("<confidence>85</confidence>", 0.85, "read"),
        ("<confidence>85%</confidence>", 0.85, "read"),
        ("<confidence>8</confidence>", 0.8, "read"),
        ("<confidence>about 0.3</confidence>", 0.3, "read"),
        ("<confidence></confidence>", 0.0, "unread"),
        ("<confidence>0.4", 0.4, "read"),
        ("", 0.0, "unread"),
    ],
)
def test_reading(text, value, how):
    assert reference_confidence(text) == (pytest.approx(value), how)


def test_float_edges_put_three_values_one_bin_lower():
    def ece(confidence):
        return reference_metrics(confidence, [False, True], n_bins=10)["ece"]

    # 0.3 with the right 0.25: together in bin 2 (gap |0.55 - 1|), apart 0.3 and 0.75 off.
    assert ece([0.3, 0.25]) == pytest.approx(0.45 / 2)
    assert ece([0.4, 0.35]) == pytest.approx((0.4 + 0.65) / 2)
    for edge, below in ((0.6, 0.55), (0.7, 0.65)):
        assert ece([edge, below]) == pytest.approx(abs(edge + below - 1) / 2)
    assert ece([1.0, 0.95]) == pytest.approx(0.95 / 2)


def test_unread_counts_as_0_and_undefined_spr_is_0():
    assert reference_metrics([None, 0.9], [False, True], n_bins=10) == {
        "n": 2,
        "acc": 0.5,
        "mean_conf": 0.45,
        "ece": pytest.approx(0.05),
        "brier": pytest.approx(0.005),
        "ocg": pytest.approx(-0.05),
        "spr": 1.0,
    }
    assert reference_metrics([0.9, 0.8], [True, True], n_bins=10)["spr"] == 0.0
    assert reference_metrics([1.0] * 4, [True, False] * 2, n_bins=10)["spr"] == 0.0  # all tied


def test_summary_counts_crashes_and_what_was_read():
    read = [reference_confidence(t) for t in ("Confidence: 0.5", "Confidence: 0.9.", "no idea")]
    summary = compat_summary(read, [True, False, True], n_bins=10)
    assert (summary["n"], summary["n_read"], summary["n_reference_crashes"]) == (3, 1, 1)
    assert (
        summary["mean_conf"] == pytest.approx(0.5 / 3) and summary["read_only"]["mean_conf"] == 0.5
    )


def test_the_reference_reads_long_texts_in_linear_time():
    assert reference_confidence("<confidence>" * 200_000) == (0.0, "unread")
    assert reference_confidence("Confidence: " * 200_000 + "0.3") == (0.3, "read")
