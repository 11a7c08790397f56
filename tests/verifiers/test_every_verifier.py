"""What holds for every verifier of the package, whatever its form of answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.core.confidence import parse
from caopd_verl.errors import DataError
from caopd_verl.verifiers import get_verifier, verifier_names
from caopd_verl.verifiers.verifier import CORRECT, MALFORMED, NO_ANSWER, WRONG

ONE_CALL = '[{"Action": "f", "Action_Input": "{}"}]'
# By verifier: a gold answer, and responses without a confidence line.
BODIES = {
    "multiple_choice": ("B", ["<answer>B</answer>", "<answer>C</answer>", "<answer>1</answer>"]),
    "arithmetic": ("46", ["46", "47", "<answer>46</answer>", "Answer: 46"]),
    "tool_call": (ONE_CALL, ["Action: f\nAction Input: {}", "Action: f", "Action: g"]),
    "tool_call_first": (ONE_CALL, ["Action: f\nAction Input: {}", "Action: g"]),
}
CONFIDENCE_LINES = (
    "\nConfidence: 0.62",
    "\n\nConfidence: .85",
    "\n**Confidence:** 90%",
    "\nconfidence: high",
    "\nConfidence:",
    "\nConfidence: 1.7\n",
    "\nConfidence: 0.9.",
    "\n<confidence>0.9</confidence>",
    "\nConfidence: 0.1\nConfidence: 0.9",
)


def test_every_verifier_is_tested_here():
    assert sorted(BODIES) == list(verifier_names())


@pytest.mark.parametrize("line", CONFIDENCE_LINES)
@pytest.mark.parametrize("name", BODIES)
def test_a_trailing_confidence_line_never_changes_the_verdict(name, line):
    verify = get_verifier(name)
    gold, bodies = BODIES[name]
    for body in bodies:
        assert verify(body + line, gold) == verify(body, gold), (body, line)


@pytest.mark.parametrize("name", BODIES)
def test_the_demonstration_of_a_gold_answer_is_correct_and_states_no_confidence(name):
    verify = get_verifier(name)
    gold, _ = BODIES[name]
    shown = verify.demonstration(gold)
    assert verify(shown, gold).reason == CORRECT
    assert parse(shown).start == len(shown)


@pytest.mark.parametrize("name", BODIES)
def test_an_unusable_gold_answer_is_an_error_wherever_it_is_used(name):
    verify = get_verifier(name)
    with pytest.raises(DataError, match=r"rows\.json:7: "):
        verify.check_gold("", "rows.json:7")
    with pytest.raises(DataError):
        verify.demonstration("")
    with pytest.raises(DataError):
        verify("46", "")


TAGS_AND_LABELS = ["<answer>", "</answer>", "Action: f", "Action Input: ", "Confidence: "]
VALUES = ["B", "0.5", "46", "1e9"]
PUNCTUATION = ["{", "}", '"', "\\", "\n", "["]
PIECES = st.sampled_from(TAGS_AND_LABELS + VALUES + PUNCTUATION)
ALMOST_ANSWERS = st.lists(PIECES, max_size=40).map("".join)


@given(st.one_of(st.text(max_size=200), ALMOST_ANSWERS))
def test_no_response_makes_a_verifier_raise(response):
    for name, (gold, _) in BODIES.items():
        verdict = get_verifier(name)(response, gold)
        assert verdict.reason in {CORRECT, WRONG, NO_ANSWER, MALFORMED}
        assert verdict.correct == (verdict.reason == CORRECT)


REPEATED = [
    "<answer>",
    "<answer>B",
    " ",
    "\n",
    "Action:",
    "Action: f\n",
    "Action: f\nAction Input: ",
    "{",
    '{"a":',
    "*",
    "9",
    "Action *",
    "confidence: ",
]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("unit", REPEATED)
def test_time_is_linear_in_the_response(name, unit):
    # A quadratic rule would take hours for 2 MB; the suite's time limit is what fails then.
    gold, _ = BODIES[name]
    response = unit * (2_000_000 // len(unit)) + "\nAction: f\nAction Input: {broken"
    verdict = get_verifier(name)(response, gold)
    # The rule of the first call alone does not read as far as the broken end.
    assert not verdict.correct or name == "tool_call_first"
