"""Requests and responses as the proxy reads and rewrites them; no network, no framework."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caopd_verl.cascade.messages import (
    BadRequest,
    BadResponse,
    confidence_of,
    for_large,
    for_small,
    read_request,
)
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from tests.cascade.stub import completion, events

KEYS = (
    "choices",
    "message",
    "delta",
    "content",
    "index",
    "model",
    "messages",
    "n",
    "stream",
    "role",
)
ATOMS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


def lists_and_objects(inner):
    """JSON's containers; the objects have keys that the code looks for."""
    objects = st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    return st.lists(inner, max_size=3) | objects


JSON = st.recursive(ATOMS, lists_and_objects, max_leaves=12)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON)
BODIES = st.binary() | JSON.map(lambda value: json.dumps(value).encode())


@settings(deadline=None, max_examples=60)
@given(BODIES, st.booleans())
def test_any_response_is_read_or_refused(raw, stream):
    for body in (raw, b"data: " + raw + b"\n\ndata: [DONE]\n\n"):
        with contextlib.suppress(BadResponse):
            confidence_of(body, stream=stream)


@settings(deadline=None, max_examples=60)
@given(BODIES)
def test_any_request_is_read_or_refused(raw):
    with contextlib.suppress(BadRequest):
        read_request(raw, model="m")


@settings(deadline=None, max_examples=60)
@given(OBJECTS, st.lists(OBJECTS, min_size=1))
def test_any_messages_get_the_instruction_once_and_only_for_the_small_model(more, messages):
    body = {**more, "messages": messages}
    asked = json.loads(for_small(body, model="s", instruction=True))
    text = json.dumps(asked, ensure_ascii=False)
    assert text.count(CONFIDENCE_INSTRUCTION) == 1
    assert {**asked, "messages": None} == {**body, "model": "s", "messages": None}
    n_others = len(messages) - 1
    last = asked["messages"][len(asked["messages"]) - n_others :]
    assert last == messages[1:]
    assert json.loads(for_large(body, model="l")) == {**body, "model": "l"}
    assert json.loads(for_small(body, model="s", instruction=False)) == {**body, "model": "s"}


@pytest.mark.parametrize(
    ("first", "role", "n"),
    [
        ({"role": "system", "content": "be brief"}, "system", 2),
        ({"role": "developer", "content": [{"type": "text", "text": "be brief"}]}, "developer", 2),
        ({"role": "system", "content": None}, "system", 3),
        ({"role": "user", "content": "hello"}, "system", 3),
    ],
)
def test_where_the_instruction_goes(first, role, n):
    body = {"messages": [first, {"role": "user", "content": "which?"}]}
    messages = json.loads(for_small(body, model="s", instruction=True))["messages"]
    assert (messages[0]["role"], len(messages)) == (role, n)
    assert CONFIDENCE_INSTRUCTION in json.dumps(messages[0])
    assert body["messages"][0] == first  # the client's own stays as it is


def test_an_instruction_that_is_there_is_not_repeated():
    body = {"messages": [{"role": "user", "content": f"which?\n{CONFIDENCE_INSTRUCTION}"}]}
    assert json.loads(for_small(body, model="s", instruction=True))["messages"] == body["messages"]


def test_streams_and_whole_responses_say_the_same():
    text = "<answer>B</answer>\nConfidence: 0.62"
    body = json.dumps(completion("m", text))
    whole = confidence_of(body.encode(), stream=False)
    assert whole.value == 0.62
    streamed = "".join(events("m", text))
    assert whole == confidence_of(streamed.encode(), stream=True)
    # With a comment, and with the other end of line that the format allows.
    other_form = f": ping\n\n{streamed}".replace("\n", "\r\n")
    assert whole == confidence_of(other_form.encode(), stream=True)


DONE = b"data: [DONE]\n\n"
FIRST_CHOICE = b'data: {"choices": [{"index": 0, "delta": {"content": "Confidence: 0.9"}}]}\n\n'
SECOND_CHOICE = FIRST_CHOICE.replace(b'"index": 0', b'"index": 1')


def test_the_shortest_stream_that_is_read():
    assert confidence_of(FIRST_CHOICE + DONE, stream=True).value == 0.9


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "before"),
        (FIRST_CHOICE, "before"),
        (b'data: {"error": {"message": "out of memory"}}\n\n' + DONE, "no choices"),
        (SECOND_CHOICE + DONE, "several choices"),
        (b"data: {\n\n" + DONE, "no JSON"),
    ],
)
def test_streams_that_are_cut_off_or_failed_are_refused(raw, said):
    with pytest.raises(BadResponse, match=said):
        confidence_of(raw, stream=True)
