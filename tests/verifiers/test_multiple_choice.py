import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.errors import DataError
from caopd_verl.verifiers import get_verifier

verify = get_verifier("multiple_choice")


@pytest.mark.parametrize(
    ("response", "correct", "reason", "answer"),
    [
        ("<reasoning>x</reasoning>\n<answer>\nB\n</answer>", True, "correct", "B"),
        ("<answer>b</answer>", True, "correct", "B"),
        ("<ANSWER> B </Answer>", True, "correct", "B"),
        ("<answer>A</answer> no, wait: <answer>B</answer>", True, "correct", "B"),
        ("<answer>B</answer> no, wait: <answer>A</answer>", False, "wrong", "A"),
        ("<answer>B</answer> and then <answer>A", True, "correct", "B"),
        ("<answer><answer>B</answer>", True, "correct", "B"),
        ("<answer>B: 12 g/mol</answer>", False, "malformed", "B: 12 g/mol"),
        ("<answer>(B)</answer>", False, "malformed", "(B)"),
        ("<answer>AB</answer>", False, "malformed", "AB"),
        ("<answer>\u0412</answer>", False, "malformed", "\u0412"),  # Cyrillic
        ("<answer>\nB\n", False, "malformed", None),
        ("<answer></answer>", False, "no_answer", None),
        ("The answer is B.", False, "no_answer", None),
        ("", False, "no_answer", None),
    ],
)
def test_the_last_closed_pair_counts(response, correct, reason, answer):
    verdict = verify(response, "B")
    assert (verdict.correct, verdict.reason, verdict.answer) == (correct, reason, answer)


@pytest.mark.parametrize("gold", ["", "b", "AB", "1", " B", None, "\u00c4"])
def test_an_unknown_gold_label_is_an_error_never_a_wrong_answer(gold):
    with pytest.raises(DataError, match=r"data\.json:7: gold answer"):
        verify.check_gold(gold, "data.json:7")
    with pytest.raises(DataError):
        verify("<answer>B</answer>", gold)
    with pytest.raises(DataError):
        verify.demonstration(gold)


@given(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
def test_every_letter_is_demonstrated_by_its_tag(letter):
    assert verify.demonstration(letter) == f"<answer>{letter}</answer>"
    assert verify(verify.demonstration(letter), letter).correct


@given(st.sampled_from("ABCDEFGH"), st.sampled_from("ABCDEFGH"))
def test_no_other_letter_is_correct(answer, gold):
    assert verify(f"<answer>{answer}</answer>", gold).correct is (answer == gold)
