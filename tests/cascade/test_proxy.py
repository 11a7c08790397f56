"""The proxy between two stub endpoints, over real connections: who answers, and what is asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import httpx
import pytest

from caopd_verl.cascade.serve import build
from caopd_verl.cli import BAD_INPUT, main
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.errors import ConfigError
from tests.cascade.running import (
    ASKED,
    LARGE,
    SETTINGS,
    SURE,
    UNSURE,
    USER,
    ask,
    chat_url,
    count,
    proxy,
    route_of,
)
from tests.cascade.stub import Stub, completion, events


@pytest.fixture
def large():
    """The large model's endpoint."""
    with Stub(LARGE) as stub:
        yield stub


def whole(model, text):
    """An answer as the stub gives it in one piece."""
    return json.dumps(completion(model, text))


def streamed(model, text):
    """An answer as the stub streams it."""
    return "".join(events(model, text))


@pytest.mark.parametrize(
    ("text", "route", "reason", "confidence"),
    [
        (SURE, "small", "confident", "0.9"),
        ("B\nConfidence: 0.70", "small", "confident", "0.7"),  # the threshold itself is served
        (UNSURE, "large", "below_threshold", "0.2"),
        ("B", "large", "no_confidence", None),
        ("B\nConfidence: high", "large", "no_confidence", None),
        ("B\nConfidence: 90", "large", "no_confidence", None),
        ("", "large", "no_confidence", None),
    ],
)
@pytest.mark.parametrize(
    ("stream", "form", "content_type"),
    [(False, whole, "application/json"), (True, streamed, "text/event-stream")],
)
def test_the_confidence_decides_who_answers(
    large, text, route, reason, confidence, stream, form, content_type
):
    with Stub(text) as small, proxy(small.url, large.url) as (url, metrics):
        response = ask(url, stream=stream)
        counted = count(metrics, "requests_total", route=route, reason=reason, status="200")
    assert response.status_code == 200
    assert route_of(response) == (route, reason)
    assert response.headers.get("x-caopd-confidence") == confidence
    # Byte for byte as the upstream said it.
    assert response.text == (form("tiny", text) if route == "small" else form("huge", LARGE))
    assert response.headers["content-type"].startswith(content_type)
    assert len(large.bodies) == (route == "large")
    assert counted == 1


def test_the_small_model_gets_the_instruction_and_the_large_one_the_original_request(large):
    system = {"role": "system", "content": "be brief"}
    sent = {"messages": [system, USER], "temperature": 0.3, "seed": 5, "x": [1, "ü"]}
    with Stub(UNSURE) as small, proxy(small.url, large.url) as (url, _):
        ask(url, **sent)
    assert large.bodies == [{**sent, "model": "huge"}]
    (asked,) = small.bodies
    assert asked == {**sent, "model": "tiny", "messages": asked["messages"]}
    first, *others = asked["messages"]
    assert first["content"].startswith("be brief\n\n")
    assert first["content"].endswith(CONFIDENCE_INSTRUCTION)
    assert others == [USER]


def test_the_instruction_can_be_left_out(large):
    settings = replace(SETTINGS, instruction=False)
    with Stub(SURE) as small, proxy(small.url, large.url, settings) as (url, _):
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
        plain = ask(url, tools=[], response_format={"type": "text"})
        assert route_of(plain) == ("small", "confident")
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
    settings = replace(SETTINGS, max_body_mb=1.0)
    with Stub(SURE) as small, proxy(small.url, large.url, settings) as (url, _):
        response = httpx.post(chat_url(url), content=content)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]
    assert response.headers["x-caopd-route"] == "proxy"
    assert not small.bodies and not large.bodies


def test_the_large_models_stream_is_passed_on_as_it_comes():
    with (
        Stub(UNSURE) as small,
        Stub(LARGE, gated=True) as large,
        proxy(small.url, large.url) as (url, _),
        httpx.stream("POST", chat_url(url), json={**ASKED, "stream": True}) as response,
    ):
        # The headers are here before the first piece was let go ...
        assert route_of(response) == ("large", "below_threshold")
        pieces = response.iter_raw()
        for expected in events("huge", LARGE):
            large.release()
            # ... and each piece before the next one is.
            assert next(pieces).decode() == expected
        assert list(pieces) == []


def test_models_health_and_metrics(large):
    with Stub(SURE) as small, proxy(small.url, large.url) as (url, _):
        (model,) = httpx.get(f"{url}/v1/models").json()["data"]
        assert model["id"] == "caopd-cascade"
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        ask(url)
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        labels = 'reason="confident",route="small",status="200"'
        assert f"caopd_proxy_requests_total{{{labels}}} 1.0" in lines
        assert "caopd_proxy_threshold 0.7" in lines
        assert "caopd_proxy_confidence_sum 0.9" in lines
        assert httpx.get(chat_url(url)).status_code == 405


def test_many_at_once_each_get_their_own_answer(large):
    async def all_of(url):
        async with httpx.AsyncClient(timeout=30) as client:
            requests = []
            for number in range(40):
                body = {**ASKED, "stream": number % 2 == 1}
                requests.append(client.post(chat_url(url), json=body))
            return await asyncio.gather(*requests)

    with Stub(SURE) as small, proxy(small.url, large.url) as (url, metrics):
        responses = asyncio.run(all_of(url))
        assert count(metrics, "in_flight") == 0
    assert {response.status_code for response in responses} == {200}
    texts = [response.text for response in responses]
    assert set(texts[::2]) == {whole("tiny", SURE)}
    assert set(texts[1::2]) == {streamed("tiny", SURE)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 1.5}, "--threshold"),
        ({"threshold": float("nan")}, "--threshold"),
        ({"small": ("localhost:8000", "tiny")}, "--small-url"),
        ({"large": ("http://me:opensesame@x/v1", "huge")}, "--large-url"),
        ({"large": ("http://127.0.0.1:1/v1", "tiny")}, "--large-url"),
        ({"settings": replace(SETTINGS, small_timeout_s=0.0)}, "--small-timeout-s"),
    ],
)
def test_bad_settings_are_refused_without_repeating_a_password(change, said):
    good = {
        "small": ("http://127.0.0.1:1/v1", "tiny"),
        "large": ("http://127.0.0.1:2/v1", "huge"),
        "threshold": 0.5,
        "settings": SETTINGS,
    }
    with pytest.raises(ConfigError) as error:
        build(**{**good, **change})
    assert said in str(error.value)
    assert "opensesame" not in str(error.value)


def test_the_command_says_what_is_wrong(capsys):
    models = ["--small-model", "s", "--large-model", "l"]
    urls = ["--small-url", "http://127.0.0.1:1/v1", "--large-url", "ftp://x"]
    assert main(["proxy", *models, *urls, "--threshold", "0.5"]) == BAD_INPUT
    assert "--large-url" in capsys.readouterr().err
