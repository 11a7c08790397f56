"""Plots can be drawn of any rows, always look the same, and say what they can't draw."""

import json

import numpy as np
import pytest

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.plots.curves import training_curves
from caopd_verl.evaluation.plots.histogram import confidence_histogram
from caopd_verl.evaluation.plots.reliability import compare_reliability, reliability_diagram


def rows(seed=0, n=300):
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    confidence = [None if rng.random() < 0.05 else float(c) for c in np.round(p, 2)]
    return confidence, (rng.random(n) < p).tolist()


def size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def draw(path, kind, confidence, correct):
    if kind == "reliability":
        return reliability_diagram(confidence, correct, path, title="t", n_bins=10, readout="r")
    if kind == "histogram":
        return confidence_histogram(confidence, correct, path, title="t", readout="r")
    series = {"a": (confidence, correct), "b": rows(1), "c": rows(2)}
    return compare_reliability(series, path, n_bins=10, readout="r", title="t")


@pytest.mark.parametrize("kind", ["reliability", "histogram", "compare"])
def test_plots_are_one_column_wide_and_reproducible(tmp_path, kind):
    path = draw(tmp_path / "new" / "plot.png", kind, *rows())
    width, height = size(path)
    assert width == 1020 and 500 < height < 2000  # 3.4 inches at 300 dpi
    assert draw(tmp_path / "again.png", kind, *rows()).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["reliability", "histogram", "compare"])
@pytest.mark.parametrize(
    ("confidence", "correct"),
    [([0.5], [True]), ([1.0] * 9, [False] * 9), ([0.0, 1.0], [True, False])],
)
def test_degenerate_rows_can_be_drawn(tmp_path, kind, confidence, correct):
    size(draw(tmp_path / "plot.png", kind, confidence, correct))


@pytest.mark.parametrize("kind", ["reliability", "histogram", "compare"])
def test_nothing_to_draw_is_an_error(tmp_path, kind):
    with pytest.raises(DataError, match="none of the 2 rows carries a confidence"):
        draw(tmp_path / "plot.png", kind, [None, None], [True, False])
    assert not (tmp_path / "plot.png").exists()


def test_compare_without_rows_and_groups_of_the_wrong_length(tmp_path):
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare_reliability({}, tmp_path / "x.png", n_bins=10, readout="r")
    options = {"title": "t", "n_bins": 10, "readout": "r", "groups": ["a", "b"]}
    with pytest.raises(ConfigError, match="groups"):
        reliability_diagram([0.5], [True], tmp_path / "x.png", **options)


@pytest.mark.parametrize("nested", [False, True])
def test_training_curves_read_flat_and_nested_rows(tmp_path, nested):
    log = tmp_path / "metrics.jsonl"
    flat = [
        {"loss/total": 1 / (i + 1), "note": "x", **({"val/ece": 0.1} if i % 5 == 0 else {})}
        for i in range(20)
    ]
    lines = [{"step": i, "data": r} if nested else {"step": i, **r} for i, r in enumerate(flat)]
    log.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    path = training_curves(
        log, tmp_path / "t.png", panels={"Loss": ["loss/total"], "ECE": ["val/ece"]}, title="run"
    )
    assert size(path)[0] == 1020


@pytest.mark.parametrize(
    ("text", "panels", "error", "what"),
    [
        ('{"step": 1, "a": 1}\n{"a": 2}', {"A": ["a"]}, DataError, "metrics.jsonl:2: "),
        ('{"step": 1, "a": 1}\n{"step"', {"A": ["a"]}, DataError, "metrics.jsonl:2: "),
        ('[1]\n{"step": 1, "a": 1}', {"A": ["a"]}, DataError, "metrics.jsonl:1: "),
        ('{"step": 1.5, "a": 1}', {"A": ["a"]}, DataError, "metrics.jsonl:1: "),
        ('{"step": 1, "a": 1}', {"A": ["b"]}, DataError, "no row holds the metric 'b'"),
        ('{"step": 1, "a": 1}', {}, ConfigError, "nothing to draw"),
        ('{"step": 1, "a": 1}', {"A": []}, ConfigError, "nothing to draw"),
        (None, {"A": ["a"]}, DataError, "can't be read"),
    ],
)
def test_bad_metrics_files(tmp_path, text, panels, error, what):
    log = tmp_path / "metrics.jsonl"
    if text is not None:
        log.write_text(text)
    with pytest.raises(error) as caught:
        training_curves(log, tmp_path / "t.png", panels=panels)
    assert what in str(caught.value)
