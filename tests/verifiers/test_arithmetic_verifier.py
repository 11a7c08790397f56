import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.errors import DataError
from caopd_verl.verifiers import get_verifier

verify = get_verifier("arithmetic")


@pytest.mark.parametrize(
    ("response", "reason", "answer"),
    [
        ("46\nConfidence: 0.88", "correct", "46"),
        ("46", "correct", "46"),
        ("12+34:\n2+4=6\n046\n\nConfidence: 0.88\n", "correct", "46"),
        ("+46", "correct", "46"),
        ("Answer: 46\nConfidence: 1.00", "correct", "46"),
        ("<answer>46</answer> is it", "correct", "46"),
        ("<answer>46</answer><answer>47</answer>", "wrong", "47"),
        ("-46\nConfidence: 0.88", "wrong", "-46"),
        ("47\nConfidence: 0.88", "wrong", "47"),
        ("4 6\nConfidence: 0.88", "malformed", "4 6"),
        ("46.0", "malformed", "46.0"),
        ("\u0664\u0666", "malformed", "\u0664\u0666"),  # Arabic digits
        ("it is 46", "malformed", "it is 46"),
        ("Confidence: 0.88", "no_answer", None),
        ("\n\n", "no_answer", None),
        ("", "no_answer", None),
    ],
)
def test_the_last_line_before_the_confidence_counts(response, reason, answer):
    verdict = verify(response, "46")
    assert (verdict.reason, verdict.answer) == (reason, answer)


@pytest.mark.parametrize("gold", ["", "46.0", "x", "4 6", None, "\u0664"])
def test_a_gold_that_is_no_integer_is_an_error(gold):
    with pytest.raises(DataError, match="here: gold answer"):
        verify.check_gold(gold, "here")


@given(st.integers(-(10**40), 10**40))
def test_every_integer_verifies_itself(number):
    gold = str(number)
    assert verify(f"{number}\nConfidence: 0.12", gold).correct
    assert not verify(f"{number + 1}\nConfidence: 0.12", gold).correct
    assert verify.demonstration(gold) == gold


@pytest.mark.parametrize(("gold", "shown"), [("+46", "46"), ("046", "46"), ("-0", "0")])
def test_a_gold_answer_is_shown_as_the_plain_integer(gold, shown):
    assert verify.demonstration(gold) == shown
    assert verify(shown, gold).correct


def test_thousands_of_digits_are_no_problem():
    assert verify("9" * 10_000, "9" * 10_000).correct
