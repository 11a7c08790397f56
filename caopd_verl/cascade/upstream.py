"""One of the proxy's two upstreams: requests, time limits, its key.

The key is read from the environment when the proxy starts. It is sent in a header and nowhere else: log lines name the
upstream and the kind of failure, and an error body that repeats the key loses it before it is passed on.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

import httpx

PASSED_ON = ("content-type", "retry-after", "x-request-id")
_PASSED_PREFIX = "x-ratelimit-"
_KEEPALIVE_S = 4.0  # servers close idle connections after 5 s (uvicorn, vLLM); ours goes first, not into a closing one


class Unreachable(Exception):
    """No complete response: `kind` is `timeout` or `connection`."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """A complete response; `headers` are those that the client gets too."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Upstream:
    """An OpenAI-compatible endpoint.

    Args:
        name: `small` or `large`, for messages and metrics.
        base_url: up to and including `/v1`.
        model: as the endpoint calls it.
        key_env: environment variable that holds its key.
        connect_timeout_s, read_timeout_s: to connect, and between two pieces of a response.
        total_timeout_s: of a whole response; None has no limit.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        model: str,
        *,
        key_env: str,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float | None,
    ):
        self.name, self.model = name, model
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.key = os.environ.get(key_env) or None
        self.total_timeout_s = total_timeout_s
        self._timeout = httpx.Timeout(read_timeout_s, connect=connect_timeout_s)
        self._tls = _tls()  # here, not in the first request, which would wait for it
        self._idle: list[httpx.AsyncClient] = []
        self._all: set[httpx.AsyncClient] = set()

    async def close(self) -> None:
        await asyncio.gather(*[http.aclose() for http in self._all])

    async def ask(self, body: bytes, authorization: str | None) -> Reply:
        """The whole response, whatever its status.

        Raises:
            Unreachable: none within the time limits.
        """
        try:
            return await asyncio.wait_for(self._whole(body, authorization), self.total_timeout_s)
        except asyncio.TimeoutError:
            raise Unreachable("timeout", f"no answer within {self.total_timeout_s:g} s") from None

    async def _whole(self, body: bytes, authorization: str | None) -> Reply:
        async with self.stream(body, authorization) as response:
            return await self.whole(response)

    async def whole(self, response: httpx.Response) -> Reply:
        """What is still to come of `response`.

        Raises:
            Unreachable: it breaks off.
        """
        with _translated():
            content = await response.aread()
        if response.status_code >= 400 and self.key:
            content = content.replace(self.key.encode(), b"[key]")
        return Reply(response.status_code, passed_on(response), content)

    @asynccontextmanager
    async def stream(self, body: bytes, authorization: str | None) -> AsyncIterator[httpx.Response]:
        """The response as soon as its headers are here; leaving the context gives up what has not come.

        Raises:
            Unreachable: no headers within the time limits.
        """
        http = self._idle.pop() if self._idle else self._connection()
        try:
            with _translated():
                response = await http.send(self._request(http, body, authorization), stream=True)
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            self._idle.append(http)

    def _request(self, http: httpx.AsyncClient, body: bytes, authorization: str | None) -> httpx.Request:
        # Not compressed: chunks are passed on as they come, and a compressor would hold them back.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        elif authorization:
            headers["authorization"] = authorization
        return http.build_request("POST", self.url, content=body, headers=headers)

    def _connection(self) -> httpx.AsyncClient:
        """A client with one connection: a shared pool is searched at every request, and that grows with its size."""
        http = httpx.AsyncClient(
            timeout=self._timeout,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEEPALIVE_S),
            verify=self._tls,
            follow_redirects=False,
        )
        self._all.add(http)
        return http


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class _translated:
    """httpx's errors as `Unreachable`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, httpx.TimeoutException):
            raise Unreachable("timeout", f"no answer in time ({type(error).__name__})") from None
        if isinstance(error, httpx.RequestError):
            raise Unreachable("connection", f"the connection failed ({type(error).__name__})") from None


def passed_on(response: httpx.Response) -> list[tuple[str, str]]:
    """The headers that the client gets too."""
    return [(k, v) for k, v in response.headers.items() if k in PASSED_ON or k.startswith(_PASSED_PREFIX)]


async def chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """The pieces of a body as they arrive.

    Raises:
        Unreachable: it breaks off.
    """
    pieces = response.aiter_raw()
    while True:
        with _translated():
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
        yield piece
