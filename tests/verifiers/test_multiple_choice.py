import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.verifiers import REASONS, VERIFIERS, Verifier, get_verifier

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
BODIES = {
    "multiple_choice": ("B", ["<answer>B</answer>", "<answer>C</answer>", "<answer>1</answer>"]),
    "arithmetic": ("46", ["46", "47", "<answer>46</answer>", "Answer: 46"]),
    "tool_call": (
        '[{"Action": "f", "Action_Input": "{}"}]',
        ["Action: f\nAction Input: {}", "Action: f", "Action: g"],
    ),
    "tool_call_first": (
        '[{"Action": "f", "Action_Input": "{}"}]',
        ["Action: f\nAction Input: {}", "Action: g"],
    ),
}


@pytest.mark.parametrize("line", CONFIDENCE_LINES)
@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_t22_a_trailing_confidence_line_never_changes_the_verdict(name, line):
    gold, bodies = BODIES[name]
    for body in bodies:
        assert VERIFIERS[name](body + line, gold) == VERIFIERS[name](body, gold), (body, line)


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_t22_one_rule_per_name_and_names_agree(name):
    assert isinstance(VERIFIERS[name], Verifier)
    assert get_verifier(name) is VERIFIERS[name]
    assert VERIFIERS[name].name == name


def test_an_unknown_verifier_lists_those_that_exist():
    with pytest.raises(
        ConfigError,
        match=r"jsonl:3: unknown verifier 'mcq'\n  expected: one of arithmetic, multiple",
    ):
        get_verifier("mcq", where="jsonl:3")
    with pytest.raises(ConfigError):
        get_verifier(["x"])  # type: ignore[arg-type]


PIECES = st.sampled_from(
    [
        "<answer>",
        "</answer>",
        "B",
        "Action: f",
        "Action Input: ",
        "{",
        "}",
        '"',
        "\\",
        "\n",
        "Confidence: ",
        "0.5",
        "[",
        "46",
        "1e9",
    ]
)


@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join)))
def test_no_response_makes_a_verifier_raise(response):
    for name, (gold, _) in BODIES.items():
        verdict = VERIFIERS[name](response, gold)
        assert verdict.reason in REASONS
        assert verdict.correct == (verdict.reason == "correct")


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.parametrize(
    "unit",
    [
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
    ],
)
def test_time_is_linear_in_the_response(name, unit):
    # A quadratic rule would take hours for 2 MB; the suite's time limit is what fails then.
    gold, _ = BODIES[name]
    assert not VERIFIERS[name](
        unit * (2_000_000 // len(unit)) + "\nAction: f\nAction Input: {broken", gold
    ).correct or (name == "tool_call_first")
