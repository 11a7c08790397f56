"""The grammar of the confidence segment."""

from __future__ import annotations

import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.core import confidence
from caopd_verl.core.confidence import parse, render
from caopd_verl.errors import RevisionError


def test_the_worked_example_of_the_module_holds():
    result = doctest.testmod(confidence)
    assert result.attempted > 0 and result.failed == 0


def test_render_uses_two_decimals_by_python_rounding():
    numbers = [render(n / 8).removeprefix("Confidence: ") for n in range(9)]
    assert numbers == ["0.00", "0.12", "0.25", "0.38", "0.50", "0.62", "0.75", "0.88", "1.00"]


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_render_refuses_what_is_no_probability(value):
    with pytest.raises(RevisionError, match=r"\[0, 1\]"):
        render(value)


TEXTS_ABOVE = ["", "x\n", "<answer>A</answer>\n\n", "a confidence: b\n", "Confidence: high\n"]


@given(st.floats(0, 1), st.sampled_from(TEXTS_ABOVE))
def test_parse_reads_back_what_render_wrote(value, before):
    text = before + render(value)
    parsed = parse(text)
    assert parsed.status == "ok"
    assert parsed.value == float(f"{value:.2f}")
    assert text[parsed.start : parsed.end] == render(value)
    assert text[parsed.value_start : parsed.value_end] == f"{value:.2f}"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("Confidence: 90%", 0.9),
        ("Confidence: 100 %", 1.0),
        ("**Confidence:** 0.9", 0.9),
        ("**Confidence**: 0.9", 0.9),
        ("__Confidence__: 0.9", 0.9),
        ("**Confidence: 0.9**", 0.9),
        ("Confidence: 0.9.", 0.9),
        ("confidence: .85", 0.85),
        ("CONFIDENCE:1", 1.0),
        ("Confidence: 1.", 1.0),
        ("  Confidence level: 0.7", 0.7),
        ("- Confidence: 0.7", 0.7),
        ("Confidence : 0 . 62", 0.62),
        ("Confidence\uff1a0.5", 0.5),
        ("Confidence: 0.9  \n\n", 0.9),
        ("Confidence: -0", 0.0),
    ],
)
def test_tolerated_forms_keep_their_value(line, value):
    text = "<answer>B</answer>\n" + line
    parsed = parse(text)
    assert (parsed.status, parsed.value) == ("ok", pytest.approx(value))
    assert text[: parsed.start] == "<answer>B</answer>\n"
    assert parsed.end == len(text)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Confidence: high", "malformed"),
        ("Confidence:", "malformed"),
        ("Confidence 0.9", "malformed"),
        ("Confidence = 0.9", "malformed"),
        ("Confidence: 0,9", "malformed"),
        ("Confidence: 0.9/1.0", "malformed"),
        ("Confidence: 0.9 because I am sure", "malformed"),
        ("Confidence: 1e-3", "malformed"),
        ("Confidence: 0.9\nI hope this helps you!", "malformed"),
        ("<confidence>0.9</confidence>", "malformed"),
        ("<confidence>0.9", "malformed"),
        ("Confidence: 85", "out_of_range"),
        ("Confidence: 1.01", "out_of_range"),
        ("Confidence: -0.5", "out_of_range"),
        ("Confidence: 120%", "out_of_range"),
    ],
)
def test_other_forms_have_no_value_but_are_replaced(line, status):
    """Left in the text, they would make a second confidence beside the revised one."""
    text = "<answer>B</answer>\n" + line
    parsed = parse(text)
    assert (parsed.status, parsed.value) == (status, None)
    assert text[parsed.start : parsed.end] == line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "<answer>B</answer>",
        "My confidence: high. So <answer>A</answer>",
        "Confidence: high, I would say\nSo <answer>A</answer>",
        "Confidence in this step is low.\n<answer>A</answer>",
        "Confidence in this step is low.",
        "Overconfidence: 0.9",
    ],
)
def test_prose_that_speaks_of_confidence_is_no_segment(text):
    """Cutting at the first "confidence:" would cut the answer away."""
    parsed = parse(text)
    assert (parsed.status, parsed.value) == ("missing", None)
    assert parsed.start == parsed.end == len(text.rstrip())


@pytest.mark.parametrize(
    "tail",
    [
        "<answer>A</answer>",
        "B",
        "So the result is this one here",
        "12",
        'Action: add\nAction Input: {"a": 1}',
    ],
)
def test_an_answer_below_the_confidence_line_is_never_cut(tail):
    text = "reasoning\nConfidence: 0.9\n" + tail
    parsed = parse(text)
    assert parsed.status == "malformed"
    assert not parsed.found
    assert parsed.start == len(text)


@pytest.mark.parametrize(
    "line", ["Confidence: 0.9 <answer>A</answer>", "Confidence: high \\boxed{A}"]
)
def test_an_answer_behind_the_confidence_on_its_line_is_never_cut(line):
    parsed = parse("reasoning\n" + line)
    assert parsed.value is None
    assert not parsed.found


def test_a_negative_zero_is_zero():
    """Written out, -0.0 would be `-0.00`, which no prompt asks for."""
    assert str(parse("Confidence: -0").value) == "0.0"
    assert render(-0.0) == "Confidence: 0.00"


def test_the_last_of_several_lines_counts():
    text = "First guess.\nConfidence: 0.3\nNo, again.\n<answer>C</answer>\nConfidence: 0.8"
    parsed = parse(text)
    assert parsed.value == 0.8
    assert text[: parsed.start].endswith("</answer>\n")


def test_repeated_confidence_lines_are_one_segment():
    text = (
        "<answer>C</answer>\n<confidence>0.7</confidence>\nConfidence: 0.9\n\n"
        + "Confidence: 0.8\n" * 100
    )
    parsed = parse(text)
    assert parsed.value == 0.8
    assert text[: parsed.start] == "<answer>C</answer>\n"


def test_a_label_behind_the_answer_tag_on_its_line_counts():
    text = "<answer>C</answer> Confidence: 0.8"
    assert parse(text).value == 0.8
    assert text[: parse(text).start] == "<answer>C</answer>"


@given(
    st.text(alphabet="Confidence: 0.9%*_<>/\n\tanswer-+\u00e9\u4e2d", max_size=200)
    | st.text(max_size=100)
)
def test_parse_never_raises_and_its_spans_hold(text):
    parsed = parse(text)
    assert 0 <= parsed.start <= parsed.end <= len(text)
    assert (parsed.value is not None) == (parsed.status == "ok")
    if parsed.value is not None:
        assert 0.0 <= parsed.value <= 1.0
    if parsed.value_start is not None:
        assert any(c.isdigit() for c in text[parsed.value_start : parsed.value_end])


@pytest.mark.parametrize(
    "text",
    [
        "Confidence: 0.9\n" * 600_000,
        "confidence " * 900_000,
        "Confidence: 0.9" + "\n" * 9_000_000,
        "Confidence: 0.9" + "*" * 9_000_000,
        "Confidence:" + "0" * 9_000_000,
    ],
)
def test_parse_is_linear_on_ten_megabytes(text):
    begin = time.perf_counter()
    parse(text)
    assert time.perf_counter() - begin < 20  # an exponential or quadratic pattern would take hours
