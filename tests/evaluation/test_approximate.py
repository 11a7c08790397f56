"""The approximate readout on trees that can be added up by hand."""

import math

import pytest

from caopd_verl.evaluation.readouts.approximate import TokenStep, approximate_expected
from caopd_verl.evaluation.readouts.decoding import Decoding

AS_MODEL = Decoding(temperature=1.0, top_p=1.0)
LN = math.log


def steps(*tokens):
    """Each token: (text, {alternative: probability}), the sampled one among the alternatives."""
    found = []
    for text, top in tokens:
        log_probs = {other: LN(p) for other, p in top.items()}
        found.append(TokenStep(text, log_probs[text], log_probs))
    return found


def fixed(text):
    return (text, {text: 1.0})


def number(text, seq):
    return approximate_expected(text, steps(*seq), AS_MODEL)


def test_digits_one_by_one_by_hand():
    seq = [
        fixed("B\nConfidence:"),
        fixed(" "),
        ("0", {"0": 0.9, "1": 0.1}),
        fixed("."),
        ("6", {"6": 0.5, "8": 0.5}),
        ("2", {"2": 0.5, "4": 0.5}),
    ]
    result = number("B\nConfidence: 0.62", seq)
    # second decimal: 0.03 on average; first: 0.6 or 0.8; then 0.9 x 0.73 + 0.1 x 1.00
    assert result.value == pytest.approx(0.9 * (0.5 * 0.63 + 0.5 * 0.83) + 0.1 * 1.0)
    assert result.mass == pytest.approx(1.0) and result.kind == "approximate"


def test_merged_digits_and_a_blank_joined_to_the_number():
    seq = [
        fixed("Confidence:"),
        (" 0", {" 0": 0.75, " 1": 0.25}),
        fixed("."),
        ("62", {"62": 0.5, "90": 0.5}),
    ]
    result = number("Confidence: 0.62", seq)
    assert result.value == pytest.approx(0.75 * 0.76 + 0.25)


def test_one_decimal_may_go_on():
    seq = [
        fixed("Confidence: "),
        fixed("0"),
        fixed("."),
        ("9", {"9": 0.5, "7": 0.5}),
        ("\n", {"\n": 0.8, "5": 0.2}),
    ]
    result = number("Confidence: 0.9\n", seq)
    # 0.9 ends with 0.8 or goes on to 0.95; what follows 0.7 is taken to be worth the same 0.01
    assert result.value == pytest.approx(0.5 * 0.91 + 0.5 * 0.71)


def test_what_is_no_number_is_missing_mass():
    seq = [
        fixed("Confidence: "),
        ("0", {"0": 0.6, "high": 0.3}),
        fixed("."),
        fixed("6"),
        fixed("2"),
    ]
    result = number("Confidence: 0.62", seq)
    assert (result.value, result.mass) == pytest.approx((0.62, 0.6))


def test_a_sampled_one_hides_the_decimals_of_the_rest():
    seq = [fixed("Confidence: "), ("1", {"1": 0.7, "0": 0.3}), fixed("."), fixed("0"), fixed("0")]
    result = number("Confidence: 1.00", seq)
    assert (result.value, result.mass) == pytest.approx((1.0, 0.7))


@pytest.mark.parametrize(
    ("text", "seq", "reason"),
    [
        ("Confidence: 0.5", [], "without log-probabilities"),
        ("no line", [fixed("no line")], "confidence missing"),
        ("Confidence: 90%", [fixed("Confidence: 90%")], "percentage"),
        ("Confidence: 7", [fixed("Confidence: 7")], "out_of_range"),
        ("Confidence: 0.5", [fixed("something else")], "do not spell"),
    ],
)
def test_absent_with_a_reason(text, seq, reason):
    result = number(text, seq)
    assert result.value is None and reason in result.reason


def test_log_probs_without_alternatives_are_no_distribution():
    plain = [TokenStep("Confidence: 0.5", -0.1, {})]
    assert "without alternatives" in approximate_expected("Confidence: 0.5", plain, AS_MODEL).reason


def test_as_decoded_by_hand():
    seq = [
        fixed("B\nConfidence:"),
        fixed(" "),
        ("0", {"0": 0.9, "1": 0.1}),
        fixed("."),
        ("6", {"6": 0.5, "8": 0.5}),
        ("2", {"2": 0.6, "4": 0.3, "7": 0.1}),
    ]
    result = approximate_expected(
        "B\nConfidence: 0.62", steps(*seq), Decoding(temperature=0.5, top_p=0.95)
    )
    # squares, renormalised: 2 or 4 after 0.6 (36 : 9, the 7 is beyond 95 %); 6 or 8; the 1 falls
    # out (1/82 < 5 %)
    second = (36 * 0.02 + 9 * 0.04) / 45
    assert result.value == pytest.approx(0.5 * (0.6 + second) + 0.5 * (0.8 + second))
    plain = 0.6 * 0.02 + 0.3 * 0.04 + 0.1 * 0.07
    assert result.value_t1 == pytest.approx(0.9 * (0.7 + plain) + 0.1)


def test_as_decoded_does_not_depend_on_what_is_no_number():
    seq = [
        fixed("Confidence: "),
        ("0", {"0": 0.9, "high": 0.1}),
        fixed("."),
        ("6", {"6": 0.4, "9": 0.2}),
        fixed("2"),
    ]
    result = approximate_expected(
        "Confidence: 0.62", steps(*seq), Decoding(temperature=0.5, top_p=1.0)
    )
    assert result.value == pytest.approx((4 * 0.62 + 0.92) / 5)
    assert result.mass == pytest.approx(0.9 * 0.6)


def test_an_improbable_one_says_nothing_of_the_rest():
    seq = [fixed("Confidence: "), ("1", {"1": 0.1, "0": 0.9}), fixed("."), fixed("0"), fixed("0")]
    result = number("Confidence: 1.00", seq)
    assert result.value is None and result.mass == pytest.approx(0.1)
    assert "less than half" in result.reason
