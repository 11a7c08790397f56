import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.errors import DataError
from caopd_verl.verifiers import get_verifier

verify = get_verifier("tool_call")
verify_first = get_verifier("tool_call_first")


def gold(*calls):
    rows = []
    for name, value in calls:
        rows.append({"Action": name, "Action_Input": json.dumps(value)})
    return json.dumps(rows)


QUOTED = {"url": "http://x/{a}", "tags": ["}", "{"], "quote": '\\"}'}
NESTED = gold(("update", {"id": 7, "data": QUOTED}))
TWO = gold(("f", {"a": 1}), ("g", {"b": "x"}))
F = 'Action: f\nAction Input: {"a": 1}\n'
G = 'Action: g\nAction Input: {"b": "x"}\n'


def test_nested_json_is_read_whole():
    shown = verify.demonstration(NESTED)
    assert verify(shown, NESTED).correct
    assert not verify(shown.replace('"id":7', '"id":8'), NESTED).correct


def test_a_call_whose_name_starts_with_optional_may_be_there_or_not():
    answer = gold(("f", {"a": 1}), ("[Optional]g", {"b": "x"}))
    assert verify(F, answer).correct
    assert verify(F + G, answer).correct
    assert verify(G + F, answer).correct
    assert not verify(G, answer).correct
    assert not verify(F + G.replace("x", "y"), answer).correct


def test_calls_are_compared_as_a_multiset_in_any_order():
    assert verify(F + G, TWO).correct
    assert verify(G + F, TWO).correct
    assert verify(F, TWO).reason == "wrong"
    assert verify(F + G + G, TWO).reason == "wrong"
    twice = gold(("f", {"a": 1}), ("f", {"a": 1}))
    assert verify(F + F, twice).correct
    assert not verify(F, twice).correct


def test_first_call_mode_ignores_the_rest():
    assert verify_first(F, TWO).correct
    assert verify_first(F + "Action: h\nAction Input: {broken", TWO).correct
    assert not verify_first(G + F, TWO).correct


def test_a_demonstration_shows_optional_calls_without_their_marker():
    answer = gold(("[Optional]list", {}), ("f", {"b": 2, "a": 1.0}), ("[Optional] g", {}))
    f_and_g = 'Action: f\nAction Input: {"a":1,"b":2}\nAction: g\nAction Input: {}'
    assert verify.demonstration(answer) == f"Action: list\nAction Input: {{}}\n{f_and_g}"
    # An optional call in front would be the one that this rule judges.
    assert verify_first.demonstration(answer) == f_and_g


@pytest.mark.parametrize("name", ["f\nAction: g", "'f'", "f*"])
def test_a_name_that_no_response_can_write_is_an_error_not_a_wrong_demonstration(name):
    answer = gold((name, {}))
    verify.check_gold(answer, "here")
    with pytest.raises(DataError, match="can't be written in a line 'Action: name'"):
        verify.demonstration(answer)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ('Thought: easy.\nAction: f\nAction Input: {"a": 1, "b": [1, 2]}', "correct"),
        ('Action: f\nAction Input: {"b": [1, 2], "a": 1}', "correct"),
        ('Action: f\nAction Input: {"b": [1.0, 2], "a": 1e0}', "correct"),
        ('Action: f\nAction_Input: {"a": 1, "b": [1, 2]}\nObservation: {"x": 1}', "correct"),
        ('action: f  \naction input:\n```json\n{"a": 1,\n "b": [1,\n 2]}\n```', "correct"),
        ('**Action:** `f`\n**Action Input:** {"a": 1, "b": [1, 2]}', "correct"),
        ('Action: f\r\nAction Input: {"a": 1, "b": [1, 2]}\r\n', "correct"),
        ('Action: f\nAction Input: {"a": 1, "b": [1, 2]} Confidence: 0.9', "correct"),
        ('Action: f\nAction Input: {"a": 1, "b": [2, 1]}', "wrong"),
        ('Action: f\nAction Input: {"a": "1", "b": [1, 2]}', "wrong"),
        ('Action: f\nAction Input: {"a": true, "b": [1, 2]}', "wrong"),
        ('Action: F\nAction Input: {"a": 1, "b": [1, 2]}', "wrong"),
        ("Action: f", "wrong"),
        ('Action: f\nAction Input: {"a": 1, "b": [1, 2]', "malformed"),
        ("Action: f\nAction Input: {'a': 1}", "malformed"),
        ('Action: f\nAction Input: {"a": NaN}', "malformed"),
        ("Action: f\nAction Input: [1]", "malformed"),
        ("Action: f\nAction Input: none", "malformed"),
        ('Action: f\nAction Input: {"a": 1' + "0" * 5000 + "}", "malformed"),
        ('Action: f\nAction Input: {"a": ' + "[" * 100_000 + "}", "malformed"),
        ('Action:\nAction Input: {"a": 1}', "malformed"),
        ('I would use Action: f with {"a": 1}', "no_answer"),
        ("", "no_answer"),
    ],
)
def test_how_a_response_is_read(response, reason):
    assert verify(response, gold(("f", {"a": 1, "b": [1, 2]}))).reason == reason


def test_no_action_input_counts_as_an_empty_object():
    assert verify("Action: f", gold(("f", {}))).correct
    assert verify(
        'Action: f\nAction: g\nAction Input: {"b": 1}', gold(("f", {}), ("g", {"b": 1}))
    ).correct


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("", "not JSON"),
        ("[", "not JSON"),
        ("[]", "no calls"),
        ('{"Action": "f", "Action_Input": "{}"}', "no calls"),
        ('["f"]', "lacks 'Action'"),
        ('[{"Action": "f"}]', "lacks 'Action'"),
        ('[{"Action": " ", "Action_Input": "{}"}]', "no name"),
        ('[{"Action": "[Optional]", "Action_Input": "{}"}]', "no name"),
        ('[{"Action": "[Optional]f", "Action_Input": "{}"}]', "optional"),
        ('[{"Action": "f", "Action_Input": "{\\"a\\": ${a from g}}"}]', "not a JSON object"),
        ('[{"Action": "f", "Action_Input": "[1]"}]', "not a JSON object"),
        ('[{"Action": "f", "Action_Input": "{\\"a\\": NaN}"}]', "not a JSON object"),
        (None, "not JSON"),
    ],
)
def test_a_bad_gold_answer_is_one_error_with_its_place(answer, what):
    with pytest.raises(DataError) as error:
        verify.check_gold(answer, "rows.json:12")
    assert str(error.value).startswith("rows.json:12: ") and what in str(error.value)
    with pytest.raises(DataError):
        verify("Action: f", answer)
    with pytest.raises(DataError):
        verify.demonstration(answer)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
KEYS = st.text(max_size=5)


def lists_and_objects(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)


JSON = st.recursive(LEAVES, lists_and_objects, max_leaves=8)
NAMES = st.text("abcXYZ_09", min_size=1, max_size=8)
OPTIONAL_NAMES = NAMES.map("[Optional]{}".format)
INPUTS = st.dictionaries(KEYS, JSON, max_size=4)
CALLS = st.lists(st.tuples(NAMES, INPUTS), min_size=1, max_size=4)
OPTIONAL_CALLS = st.lists(st.tuples(OPTIONAL_NAMES, INPUTS), max_size=2)


@given(CALLS, st.randoms())
def test_any_gold_verifies_itself_in_any_order_with_a_confidence_line(calls, random):
    answer = gold(*calls)
    verify.check_gold(answer, "here")
    random.shuffle(calls)
    shown = verify.demonstration(gold(*calls))
    assert verify(f"{shown}\nConfidence: 0.50", answer).correct
    with_one_more = verify.demonstration(gold(*calls, ("extra", {})))
    assert not verify(with_one_more, answer).correct


@given(CALLS, OPTIONAL_CALLS, st.randoms())
def test_both_rules_judge_their_own_demonstration_correct(required, optional, random):
    calls = required + optional
    random.shuffle(calls)
    answer = gold(*calls)
    for verifier in (verify, verify_first):
        shown = verifier.demonstration(answer)
        assert verifier(shown, answer).correct
        assert shown.encode("utf-8").decode("utf-8") == shown


def test_half_an_escaped_emoji_in_an_input_fits_into_a_file():
    half = 'Action: f\nAction Input: {"y": "hi \\ud83d"}'
    verdict = verify(half, gold(("f", {"y": "hi"})))
    assert not verdict.correct
    assert verdict.answer.encode("utf-8")
    assert verify.demonstration(gold(("f", {"y": "hi \ud83d"}))) == half.replace(': "', ':"')
