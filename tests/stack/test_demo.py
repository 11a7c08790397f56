"""The demo's claims, three seeds: what SDPO does to confidence, what both CaOPD presets mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from caopd_verl.demo import BASE, KEYS, run_all

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=[0, 1, 2], ids="seed{}".format)
def summary(request, tmp_path_factory) -> dict[str, dict]:
    output: Path = tmp_path_factory.mktemp(f"demo{request.param}")
    found = run_all(output, request.param, [])
    for name in found:
        assert (output / name / "metrics.json").exists()
        assert list((output / name).glob("reliability_*.png"))
    return found


def test_summary_is_complete(summary):
    assert list(summary) == [BASE, "sdpo", "sdpo_caopd", "sdpo_caopd_proper"]
    for metrics in summary.values():
        assert all(metrics[key] is not None for key in KEYS)
        assert metrics["n"] >= 500


def test_base_is_overconfident(summary):
    assert 0.40 <= summary[BASE]["acc"] <= 0.75
    assert summary[BASE]["ocg"] >= 0.20


def test_sdpo_saturates(summary):
    assert summary["sdpo"]["spr"] <= 0.20
    assert summary["sdpo"]["ocg"] >= 0.20


def test_sdpo_caopd_mends_calibration(summary):
    for key in ("ece", "ocg", "brier"):
        assert summary["sdpo_caopd"][key] <= 0.8 * summary["sdpo"][key], key


def test_sdpo_caopd_proper_mends_more(summary):
    proper, sdpo = summary["sdpo_caopd_proper"], summary["sdpo"]
    assert abs(proper["ocg"]) <= 0.08
    assert proper["ece"] <= 0.6 * sdpo["ece"]
    assert proper["brier"] <= 0.75 * sdpo["brier"]
    assert proper["spr"] >= 0.50


@pytest.mark.parametrize("preset", ["sdpo_caopd", "sdpo_caopd_proper"])
def test_accuracy_is_kept(summary, preset):
    assert summary[preset]["acc"] >= summary["sdpo"]["acc"] - 0.03


@pytest.mark.parametrize("preset", ["sdpo_caopd", "sdpo_caopd_proper"])
def test_the_expected_readout_ranks_and_scores_better_than_the_stated_one(summary, preset):
    stated, expected = summary[preset], summary[preset]["expected"]
    assert expected["brier"] < stated["brier"]
    assert expected["spr"] > stated["spr"]
