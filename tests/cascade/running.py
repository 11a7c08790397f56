"""A running proxy between two stubs, and what the tests ask of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import uvicorn

from caopd_verl.cascade.proxy_metrics import ProxyMetrics
from caopd_verl.cascade.routing_settings import DEFAULTS, Proxy
from caopd_verl.cascade.serve import build

SURE, UNSURE = "B\nConfidence: 0.90", "B\nConfidence: 0.20"
LARGE = "the large model's answer"
USER = {"role": "user", "content": "which?"}
ASKED = {"model": "caopd-cascade", "messages": [USER]}
SETTINGS = replace(DEFAULTS.proxy, connect_timeout_s=2.0, small_timeout_s=5.0, large_timeout_s=5.0)


@contextlib.contextmanager
def proxy(small: str, large: str, settings: Proxy = SETTINGS) -> Iterator[tuple[str, ProxyMetrics]]:
    """The proxy's address (without /v1) and metrics, on a free port in a thread; threshold 0.7."""
    app = build(small=(small, "tiny"), large=(large, "huge"), threshold=0.7, settings=settings)
    config = uvicorn.Config(app, port=0, log_level="critical", access_log=False)
    server = uvicorn.Server(config)
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


def chat_url(url: str) -> str:
    """Where the proxy at `url` takes chat completions."""
    return f"{url}/v1/chat/completions"


def ask(url: str, *, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    """Ask the proxy at `url` the usual question, with `more` in the request."""
    return httpx.post(chat_url(url), json={**ASKED, **more}, headers=headers, timeout=20)


def count(metrics: ProxyMetrics, name: str, **labels: str) -> float:
    """A metric's value; 0 where it was never counted."""
    return metrics.registry.get_sample_value(f"caopd_proxy_{name}", labels) or 0.0


def dead_url() -> str:
    """An address that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


def route_of(response: httpx.Response) -> tuple[str | None, str | None]:
    """Who answered, and why."""
    return response.headers.get("x-caopd-route"), response.headers.get("x-caopd-reason")
