"""What the proxy does where an upstream fails or the client leaves, and where keys go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import replace

import httpx
import pytest

from tests.cascade.running import (
    ASKED,
    LARGE,
    SETTINGS,
    SURE,
    UNSURE,
    ask,
    chat_url,
    count,
    dead_url,
    proxy,
    route_of,
)
from tests.cascade.stub import Stub, events

CLIENTS_KEY = {"Authorization": "Bearer client-secret"}


@pytest.fixture
def large():
    """The large model's endpoint."""
    with Stub(LARGE) as stub:
        yield stub


def test_a_stream_of_the_large_models_that_breaks_off_breaks_off_for_the_client():
    with (
        Stub(UNSURE) as small,
        Stub(LARGE, "midclose") as large,
        proxy(small.url, large.url) as (url, metrics),
    ):
        got = b""
        with (
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream("POST", chat_url(url), json={**ASKED, "stream": True}) as response,
        ):
            for piece in response.iter_raw():
                got += piece
        assert got
        assert "".join(events("huge", LARGE)).startswith(got.decode())
        assert count(metrics, "broken_streams_total") == 1
        large.fault = None
        assert ask(url).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ("400", 400, '{"error": {"message": "this prompt is too long"}}'),
        ("401", 401, '{"error": {"message": "wrong key: none"}}'),
        ("429", 429, '{"error": {"message": "slow"}}'),
        ("500", 500, "oops"),
    ],
)
def test_the_large_models_errors_are_passed_on(fault, status, body, stream):
    with (
        Stub(UNSURE) as small,
        Stub("", fault) as large,
        proxy(small.url, large.url) as (url, metrics),
    ):
        response = ask(url, stream=stream)
        labels = {"route": "large", "reason": "below_threshold", "status": str(status)}
        counted = count(metrics, "requests_total", **labels)
    assert (response.status_code, response.text) == (status, body)
    assert route_of(response) == ("large", "below_threshold")
    assert counted == 1
    if status == 429:
        assert response.headers["retry-after"] == "7"
        assert response.headers["x-ratelimit-remaining"] == "0"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "http_429"),
        ("500", "http_500"),
        ("close", "connection"),
        ("midclose", "connection"),
        ("stall", "timeout"),
        ("html", "bad_response"),
        ("two", "bad_response"),
    ],
)
def test_where_the_small_model_fails_the_large_one_is_asked_and_it_is_counted(
    large, fault, kind, stream
):
    settings = replace(SETTINGS, small_timeout_s=0.5)
    with Stub(SURE, fault) as small, proxy(small.url, large.url, settings) as (url, metrics):
        response = ask(url, stream=stream)
        counted = count(metrics, "small_failures_total", kind=kind)
    assert response.status_code == 200
    assert route_of(response) == ("large", "small_failed")
    assert "x-caopd-confidence" not in response.headers
    assert counted == 1


def test_a_stream_of_the_small_models_without_its_end_is_not_served(large):
    with Stub(SURE, "unfinished") as small, proxy(small.url, large.url) as (url, _):
        assert route_of(ask(url, stream=True)) == ("large", "small_failed")


def test_where_both_fail_the_refusal_of_the_one_that_can_be_reached_is_passed_on():
    with Stub(SURE, "429") as small, proxy(small.url, dead_url()) as (url, _):
        response = ask(url)
    assert (response.status_code, response.headers["x-caopd-route"]) == (429, "small")
    assert response.json() == {"error": {"message": "slow"}}
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(("text", "fault"), [(UNSURE, None), (SURE, "html")])
def test_an_answer_that_may_not_be_served_is_not_served_without_a_large_model(text, fault):
    with Stub(text, fault) as small, proxy(small.url, dead_url()) as (url, _):
        response = ask(url)
    assert (response.status_code, response.headers["x-caopd-route"]) == (502, "proxy")
    assert response.json()["error"]["code"] == "large_unreachable"


@pytest.mark.parametrize(("fault", "status"), [("stall", 504), ("close", 502), ("midclose", 502)])
def test_a_large_model_that_never_finishes(fault, status):
    settings = replace(SETTINGS, large_timeout_s=0.5)
    with (
        Stub(UNSURE) as small,
        Stub(LARGE, fault) as large,
        proxy(small.url, large.url, settings) as (url, _),
    ):
        assert ask(url).status_code == status


@pytest.mark.parametrize("who", ["small", "large before headers", "large midway"])
def test_a_client_that_leaves_cancels_what_runs_for_it(who):
    small = Stub(UNSURE, "stall" if who == "small" else None)
    large = Stub(LARGE, "stall" if who == "large before headers" else None, gated=True)
    working = small if who == "small" else large
    settings = replace(SETTINGS, small_timeout_s=60.0, large_timeout_s=60.0)

    async def leave(url):
        async with httpx.AsyncClient() as client:
            request = client.post(chat_url(url), json={**ASKED, "stream": True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(request, 1.0)

    with small, large, proxy(small.url, large.url, settings) as (url, metrics):
        asyncio.run(leave(url))
        assert working.left.wait(5)
        deadline = time.monotonic() + 5
        while count(metrics, "in_flight") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert count(metrics, "in_flight") == 0
        assert count(metrics, "client_disconnects_total") == 1


def test_keys_come_from_the_environment_go_to_their_upstream_only_and_are_never_shown(
    monkeypatch, caplog
):
    monkeypatch.setenv("CAOPD_SMALL_API_KEY", "small-secret")
    monkeypatch.setenv("CAOPD_LARGE_API_KEY", "large-secret")
    with (
        caplog.at_level(logging.DEBUG),
        Stub("", "401") as small,
        Stub("", "401") as large,
        proxy(small.url, large.url) as (url, metrics),
    ):
        response = ask(url, headers=CLIENTS_KEY)
        exposed = httpx.get(f"{url}/metrics").text
        counted = count(metrics, "small_failures_total", kind="http_401")
    assert small.headers[0]["authorization"] == "Bearer small-secret"
    assert large.headers[0]["authorization"] == "Bearer large-secret"
    assert response.status_code == 401
    # The endpoint repeats the key in its error: the client doesn't get to see it.
    assert json.loads(response.text) == {"error": {"message": "wrong key: Bearer [key]"}}
    for shown in (caplog.text, exposed, response.text, str(response.headers)):
        assert "secret" not in shown
    assert counted == 1


def test_without_a_key_of_its_own_the_large_model_gets_the_clients_and_the_small_one_none(large):
    with Stub(UNSURE) as small, proxy(small.url, large.url) as (url, _):
        ask(url, headers=CLIENTS_KEY)
    assert large.headers[0]["authorization"] == "Bearer client-secret"
    assert "authorization" not in small.headers[0]
