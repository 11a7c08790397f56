"""The proxy between two stub endpoints, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest
import uvicorn

from caopd_verl.cascade.routing_settings import DEFAULTS
from caopd_verl.cascade.serve import build
from caopd_verl.cli import BAD_INPUT, main
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.errors import ConfigError
from tests.cascade.stub import Stub, completion, events

SURE, UNSURE, SILENT = "B\nConfidence: 0.90", "B\nConfidence: 0.20", "B"
LARGE = "the large model's answer"
USER = {"role": "user", "content": "which?"}
SETTINGS = replace(DEFAULTS.proxy, connect_timeout_s=2.0, small_timeout_s=5.0, large_timeout_s=5.0)


@contextlib.contextmanager
def proxy(small: str, large: str, settings=SETTINGS, threshold=0.7):
    """The proxy's address (without /v1) and metrics, listening on a free port in a thread."""
    app = build(
        small=(small, "tiny"), large=(large, "huge"), threshold=threshold, settings=settings
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app.state.metrics
    finally:
        server.should_exit = True
        thread.join(10)


def ask(url, *, headers=None, **more):
    body = {"model": "caopd-cascade", "messages": [USER], **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=20)


def count(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"caopd_proxy_{name}", labels) or 0.0


def dead_url() -> str:
    """An address that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/v1"


def route_of(response):
    return response.headers.get("x-caopd-route"), response.headers.get("x-caopd-reason")


@pytest.fixture
def large():
    with Stub(LARGE) as stub:
        yield stub


@pytest.mark.parametrize(
    ("text", "route", "reason", "confidence"),
    [
        (SURE, "small", "confident", "0.9"),
        ("B\nConfidence: 0.70", "small", "confident", "0.7"),  # the threshold itself is served
        (UNSURE, "large", "below_threshold", "0.2"),
        (SILENT, "large", "no_confidence", None),
        ("B\nConfidence: high", "large", "no_confidence", None),
        ("B\nConfidence: 90", "large", "no_confidence", None),
        ("", "large", "no_confidence", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_confidence_decides_who_answers(large, text, route, reason, confidence, stream):
    with Stub(text) as small, proxy(small.url, large.url) as (url, metrics):
        response = ask(url, stream=stream)
        assert response.status_code == 200
        assert route_of(response) == (route, reason)
        assert response.headers.get("x-caopd-confidence") == confidence
        model, said = ("tiny", text) if route == "small" else ("huge", LARGE)
        expected = "".join(events(model, said)) if stream else json.dumps(completion(model, said))
        assert response.text == expected  # byte for byte as the upstream said it
        assert response.headers["content-type"].startswith(
            "text/event-stream" if stream else "application/json"
        )
        assert len(large.bodies) == (route == "large")
        assert count(metrics, "requests_total", route=route, reason=reason, status="200") == 1


def test_the_small_model_gets_the_instruction_and_the_large_one_the_original_request(large):
    sent = {
        "messages": [{"role": "system", "content": "be brief"}, USER],
        "temperature": 0.3,
        "seed": 5,
        "x": [1, "ü"],
    }
    with Stub(UNSURE) as small, proxy(small.url, large.url) as (url, _):
        ask(url, **sent)
    assert large.bodies == [{**sent, "model": "huge"}]
    (asked,) = small.bodies
    assert asked == {**sent, "model": "tiny", "messages": asked["messages"]}
    assert asked["messages"][0]["content"].startswith("be brief\n\n")
    assert asked["messages"][0]["content"].endswith(CONFIDENCE_INSTRUCTION)
    assert asked["messages"][1:] == [USER]


def test_the_instruction_can_be_left_out(large):
    with (
        Stub(SURE) as small,
        proxy(small.url, large.url, replace(SETTINGS, instruction=False)) as (url, _),
    ):
        assert route_of(ask(url)) == ("small", "confident")
    assert small.bodies[0]["messages"] == [USER]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_has_no_room_for_a_confidence_goes_to_the_large_model_alone(large, more, reason):
    with Stub(SURE) as small, proxy(small.url, large.url) as (url, _):
        assert route_of(ask(url, **more)) == ("large", reason)
        assert route_of(ask(url, tools=[], response_format={"type": "text"})) == (
            "small",
            "confident",
        )
    assert len(small.bodies) == 1


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 400, "no JSON"),
        (b"[1]", 400, "no JSON object"),
        (b"[" * 100_000, 400, "no JSON"),
        (b'{"model": "gpt", "messages": [{}]}', 404, "'caopd-cascade'"),
        (b'{"model": "caopd-cascade"}', 400, "no messages"),
        (b'{"model": "caopd-cascade", "messages": ["a"]}', 400, "no messages"),
        (b'{"model": "caopd-cascade", "messages": [{}], "n": 2}', 400, "n = 2"),
        (b'{"model": "caopd-cascade", "messages": [{}], "stream": "yes"}', 400, "true or false"),
        (b" " * 2_000_000, 413, "larger than 1 MB"),
    ],
)
def test_bad_requests_are_refused_in_openais_form_and_go_nowhere(large, content, status, said):
    with (
        Stub(SURE) as small,
        proxy(small.url, large.url, replace(SETTINGS, max_body_mb=1.0)) as (url, _),
    ):
        response = httpx.post(f"{url}/v1/chat/completions", content=content)
        assert response.status_code == status
        assert said in response.json()["error"]["message"]
        assert response.headers["x-caopd-route"] == "proxy"
    assert not small.bodies and not large.bodies


def test_the_large_models_stream_is_passed_on_as_it_comes():
    with (
        Stub(UNSURE) as small,
        Stub(LARGE, gated=True) as large,
        proxy(small.url, large.url) as (url, _),
    ):
        body = {"model": "caopd-cascade", "messages": [USER], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as response:
            # The headers are here before the first piece was let go ...
            assert route_of(response) == ("large", "below_threshold")
            pieces = response.iter_raw()
            for expected in events("huge", LARGE):
                large.release()
                assert (
                    next(pieces).decode() == expected
                )  # ... and each piece before the next one is.
            assert list(pieces) == []


def test_a_stream_of_the_large_models_that_breaks_off_breaks_off_for_the_client():
    with (
        Stub(UNSURE) as small,
        Stub(LARGE, "midclose") as large,
        proxy(small.url, large.url) as (url, metrics),
    ):
        body, got = {"model": "caopd-cascade", "messages": [USER], "stream": True}, b""
        with (
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
        ):
            for piece in response.iter_raw():
                got += piece
        assert got.decode() and "".join(events("huge", LARGE)).startswith(got.decode())
        assert count(metrics, "broken_streams_total") == 1
        large.fault = None
        assert ask(url).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status"), [("400", 400), ("401", 401), ("429", 429), ("500", 500)]
)
def test_the_large_models_errors_are_passed_on(fault, status, stream):
    with (
        Stub(UNSURE) as small,
        Stub("", fault) as large,
        proxy(small.url, large.url) as (url, metrics),
    ):
        response = ask(url, stream=stream)
        assert response.status_code == status
        assert response.text in ("oops", *(f'{{"error": {{"message": "{t}"}}}}' for t in ERRORS))
        assert route_of(response) == ("large", "below_threshold")
        if status == 429:
            assert response.headers["retry-after"] == "7"
            assert response.headers["x-ratelimit-remaining"] == "0"
        labels = {"route": "large", "reason": "below_threshold", "status": str(status)}
        assert count(metrics, "requests_total", **labels) == 1


ERRORS = ("this prompt is too long", "wrong key: none", "slow")


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
        assert response.status_code == 200
        assert route_of(response) == ("large", "small_failed")
        assert "x-caopd-confidence" not in response.headers
        assert count(metrics, "small_failures_total", kind=kind) == 1


def test_a_stream_of_the_small_models_without_its_end_is_not_served(large, monkeypatch):
    monkeypatch.setattr("tests.cascade.stub.events", lambda model, text: events(model, text)[:-1])
    with Stub(SURE) as small, proxy(small.url, large.url, SETTINGS) as (url, _):
        assert route_of(ask(url, stream=True)) == ("large", "small_failed")


@pytest.mark.parametrize(
    ("text", "fault", "status", "route"),
    [
        (SURE, "429", 429, "small"),  # both fail: the one that can be reached says why
        (UNSURE, None, 502, "proxy"),  # an unsure answer is never served
        (SURE, "html", 502, "proxy"),
    ],
)
def test_where_the_large_model_cant_be_reached(text, fault, status, route):
    with Stub(text, fault) as small, proxy(small.url, dead_url()) as (url, _):
        response = ask(url)
        assert (response.status_code, response.headers["x-caopd-route"]) == (status, route)
        if status == 429:
            assert response.json() == {"error": {"message": "slow"}}
            assert response.headers["retry-after"] == "7"
        else:
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
    settings = replace(SETTINGS, small_timeout_s=60.0, large_timeout_s=60.0)

    async def leave(url):
        body = {"model": "caopd-cascade", "messages": [USER], "stream": True}
        async with httpx.AsyncClient() as client:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(client.post(f"{url}/v1/chat/completions", json=body), 1.0)

    with small, large, proxy(small.url, large.url, settings) as (url, metrics):
        asyncio.run(leave(url))
        assert (small if who == "small" else large).left.wait(5)
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
    with caplog.at_level(logging.DEBUG), Stub("", "401") as small, Stub("", "401") as large:
        with proxy(small.url, large.url) as (url, metrics):
            response = ask(url, headers={"Authorization": "Bearer client-secret"})
            exposed = httpx.get(f"{url}/metrics").text
        assert small.headers[0]["authorization"] == "Bearer small-secret"
        assert large.headers[0]["authorization"] == "Bearer large-secret"
    assert response.status_code == 401
    assert (
        "[key]" in response.text
    )  # the endpoint repeats the key: the client doesn't get to see it
    for shown in (caplog.text, exposed, response.text, str(response.headers)):
        assert "secret" not in shown
    assert count(metrics, "small_failures_total", kind="http_401") == 1


def test_without_a_key_of_its_own_the_large_model_gets_the_clients_and_the_small_one_none(large):
    with Stub(UNSURE) as small, proxy(small.url, large.url) as (url, _):
        ask(url, headers={"Authorization": "Bearer client-secret"})
    assert large.headers[0]["authorization"] == "Bearer client-secret"
    assert "authorization" not in small.headers[0]


def test_models_health_and_metrics(large):
    with Stub(SURE) as small, proxy(small.url, large.url) as (url, _):
        assert [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]] == ["caopd-cascade"]
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        ask(url)
        text = httpx.get(f"{url}/metrics").text
        assert (
            'caopd_proxy_requests_total{reason="confident",route="small",status="200"} 1.0' in text
        )
        assert "caopd_proxy_threshold 0.7" in text
        assert "caopd_proxy_confidence_sum 0.9" in text
        assert httpx.get(f"{url}/v1/chat/completions").status_code == 405


def test_many_at_once_each_get_their_own_answer(large):
    async def all_of(url):
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"model": "caopd-cascade", "messages": [USER]}
            asked = [
                client.post(f"{url}/v1/chat/completions", json={**body, "stream": bool(i % 2)})
                for i in range(40)
            ]
            return await asyncio.gather(*asked)

    with Stub(SURE) as small, proxy(small.url, large.url) as (url, metrics):
        responses = asyncio.run(all_of(url))
        assert {r.status_code for r in responses} == {200}
        assert {r.text for r in responses[1::2]} == {"".join(events("tiny", SURE))}
        assert {r.text for r in responses[::2]} == {json.dumps(completion("tiny", SURE))}
        assert count(metrics, "in_flight") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 1.5}, "--threshold"),
        ({"threshold": float("nan")}, "--threshold"),
        ({"small": ("localhost:8000", "tiny")}, "--small-url"),
        ({"large": ("http://me:password@x/v1", "huge")}, "--large-url"),
        ({"large": ("http://127.0.0.1:1/v1", "tiny")}, "--large-url"),
        ({"settings": replace(SETTINGS, small_timeout_s=0.0)}, "--small-timeout-s"),
    ],
)
def test_bad_settings_are_refused(change, said):
    good = {
        "small": ("http://127.0.0.1:1/v1", "tiny"),
        "large": ("http://127.0.0.1:2/v1", "huge"),
        "threshold": 0.5,
        "settings": SETTINGS,
    }
    with pytest.raises(ConfigError) as error:
        build(**{**good, **change})
    assert said in str(error.value) and "password" not in str(error.value).replace(
        "user, password", ""
    )


def test_the_command_says_what_is_wrong(capsys):
    args = [
        "proxy",
        "--small-url",
        "http://127.0.0.1:1/v1",
        "--small-model",
        "s",
        "--large-model",
        "l",
    ]
    assert main([*args, "--large-url", "ftp://x", "--threshold", "0.5"]) == BAD_INPUT
    assert "--large-url" in capsys.readouterr().err
