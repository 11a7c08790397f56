import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caopd_verl.errors import DataError
from caopd_verl.verifiers import get_verifier
from caopd_verl.verifiers.tool_call import render_calls

verify = get_verifier("tool_call")
verify_first = get_verifier("tool_call_first")


def gold(*calls):
    return json.dumps(
        [{"Action": name, "Action_Input": json.dumps(value)} for name, value in calls]
    )


NESTED = gold(
    ("update", {"id": 7, "data": {"url": "http://x/{a}", "tags": ["}", "{"], "quote": '\\"}'}})
)
TWO = gold(("f", {"a": 1}), ("g", {"b": "x"}))


def test_t22_nested_json_is_read_whole():
    assert verify(render_calls(NESTED), NESTED).correct
    assert not verify(render_calls(NESTED).replace('"id":7', '"id":8'), NESTED).correct


def test_t22_a_call_whose_name_starts_with_optional_may_be_there_or_not():
    answer = gold(("f", {"a": 1}), ("[Optional]g", {"b": {"c": 2}}))
    assert verify(render_calls(answer), answer).correct
    assert verify('Action: f\nAction Input: {"a": 1}', answer).correct
    assert verify(
        'Action: g\nAction Input: {"b": {"c": 2}}\nAction: f\nAction Input: {"a": 1}', answer
    ).correct
    assert not verify('Action: g\nAction Input: {"b": {"c": 2}}', answer).correct
    assert not verify(
        'Action: f\nAction Input: {"a": 1}\nAction: g\nAction Input: {"b": 3}', answer
    ).correct


def test_calls_are_compared_as_a_multiset_in_any_order():
    f, g = 'Action: f\nAction Input: {"a": 1}\n', 'Action: g\nAction Input: {"b": "x"}\n'
    assert verify(f + g, TWO).correct and verify(g + f, TWO).correct
    assert verify(f, TWO).reason == "wrong" and verify(f + g + g, TWO).reason == "wrong"
    twice = gold(("f", {"a": 1}), ("f", {"a": 1}))
    assert verify(f + f, twice).correct and not verify(f, twice).correct


def test_first_call_mode_ignores_the_rest():
    f, g = 'Action: f\nAction Input: {"a": 1}\n', 'Action: g\nAction Input: {"b": "x"}\n'
    assert (
        verify_first(f, TWO).correct
        and verify_first(f + "Action: h\nAction Input: {broken", TWO).correct
    )
    assert not verify_first(g + f, TWO).correct


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


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.text("abcXYZ_09", min_size=1, max_size=8)
CALLS = st.lists(
    st.tuples(NAMES, st.dictionaries(st.text(max_size=5), JSON, max_size=4)), min_size=1, max_size=4
)


@given(CALLS, st.randoms())
def test_any_gold_verifies_itself_in_any_order_with_a_confidence_line(calls, random):
    answer = gold(*calls)
    verify.check_gold(answer, "here")
    random.shuffle(calls)
    assert verify(render_calls(gold(*calls)) + "\nConfidence: 0.50", answer).correct
    assert not verify(render_calls(gold(*calls, ("extra", {}))), answer).correct


def test_half_an_escaped_emoji_in_an_input_fits_into_a_file():
    response = 'Action: f\nAction Input: {"y": "hi \\ud83d"}'
    gold = json.dumps([{"Action": "f", "Action_Input": '{"y": "hi"}'}])
    verdict = get_verifier("tool_call")(response, gold)
    assert not verdict.correct and verdict.answer.encode("utf-8")
