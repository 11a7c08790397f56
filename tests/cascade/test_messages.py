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
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(st.binary() | JSON.map(lambda v: json.dumps(v).encode()), st.booleans())
def test_any_response_is_read_or_refused(raw, stream):
    for body in (raw, b"data: " + raw + b"\n\ndata: [DONE]\n\n"):
        with contextlib.suppress(BadResponse):
            confidence_of(body, stream=stream)


@settings(deadline=None, max_examples=60)
@given(st.binary() | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_request_is_read_or_refused(raw):
    with contextlib.suppress(BadRequest):
        read_request(raw, model="m")


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(KEYS), JSON),
    st.lists(st.dictionaries(st.sampled_from(KEYS), JSON), min_size=1),
)
def test_any_messages_get_the_instruction_once_and_only_for_the_small_model(more, messages):
    body = {**more, "messages": messages}
    asked = json.loads(for_small(body, model="s", instruction=True))
    assert json.dumps(asked, ensure_ascii=False).count(CONFIDENCE_INSTRUCTION) == 1
    assert {**asked, "messages": None} == {**body, "model": "s", "messages": None}
    assert asked["messages"][-len(messages) + 1 :] == messages[1:] or len(messages) == 1
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
    whole = confidence_of(json.dumps(completion("m", text)).encode(), stream=False)
    streamed = "".join(events("m", text))
    assert whole == confidence_of(streamed.encode(), stream=True)
    assert whole == confidence_of(
        f": ping\n\n{streamed}".replace("\n", "\r\n").encode(), stream=True
    )
    assert whole.value == 0.62


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b'data: {"choices": [{"index": 0, "delta": {"content": "Confidence: 0.9"}}]}\n\n',  # no [DONE]
        b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n',
        b'data: {"choices": [{"index": 1, "delta": {"content": "Confidence: 0.9"}}]}\n\ndata: [DONE]\n\n',
        b"data: {\n\ndata: [DONE]\n\n",
    ],
)
def test_streams_that_are_cut_off_or_failed_are_refused(raw):
    with pytest.raises(BadResponse):
        confidence_of(raw, stream=True)
