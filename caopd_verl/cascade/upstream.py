"""One of the proxy's two upstreams: requests, time limits, its key.

The key is read from the environment when the proxy starts. It is sent in a header and nowhere else:
log lines name the upstream and the kind of failure, and an error body that repeats the key loses it
before it is passed on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import aiohttp

from caopd_verl.evaluation.sources.client import KEEPALIVE_S

Headers = list[tuple[str, str]]
Failure = Literal["timeout", "connection"]

# What a client needs to read a body, to wait as asked, and to report a failure; the other headers
# (length, encoding, cookies) are the connection's to the upstream.
PASSED_ON = ("content-type", "retry-after", "x-request-id")
_PASSED_PREFIX = "x-ratelimit-"


class Unreachable(Exception):
    """No complete response came."""

    def __init__(self, kind: Failure, detail: str):
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """A complete response; `headers` are those that the client gets too."""

    status: int
    headers: Headers
    body: bytes


class Upstream:
    """An OpenAI-compatible endpoint.

    Args:
        base_url: up to and including `/v1`.
        model: as the endpoint calls it.
        key_env: environment variable that holds its key.
        connect_timeout_s, read_timeout_s: to connect, and between two pieces of a response.
        total_timeout_s: of a whole response; None has no limit.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_env: str,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float | None,
    ):
        self.model = model
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.key = os.environ.get(key_env) or None
        self.total_timeout_s = total_timeout_s
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_s, sock_read=read_timeout_s
        )
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """To be called in the event loop that the requests run in."""
        # No limit of its own: how many requests run at once is the server's setting.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            connector=connector,
            auto_decompress=False,  # none is asked for, and bodies are passed on as they come
            trust_env=True,  # the machine's own HTTP proxy, if it has one
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, body: bytes, authorization: str | None) -> Reply:
        """The whole response, whatever its status.

        Raises:
            Unreachable: none within the time limits.
        """
        # aiohttp's own limits are renewed by every piece, so they do not bound a whole response.
        try:
            return await asyncio.wait_for(self._whole(body, authorization), self.total_timeout_s)
        except asyncio.TimeoutError:
            raise Unreachable("timeout", f"no answer within {self.total_timeout_s:g} s") from None

    async def _whole(self, body: bytes, authorization: str | None) -> Reply:
        async with self.stream(body, authorization) as response:
            return await self.whole(response)

    async def whole(self, response: aiohttp.ClientResponse) -> Reply:
        """What is still to come of `response`.

        Raises:
            Unreachable: it breaks off.
        """
        with _translated():
            content = await response.read()
        if response.status >= 400 and self.key:
            content = content.replace(self.key.encode(), b"[key]")
        return Reply(response.status, passed_on(response), content)

    @asynccontextmanager
    async def stream(
        self, body: bytes, authorization: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response as soon as its headers are here; leaving the context gives up the rest.

        Raises:
            Unreachable: no headers within the time limits.
        """
        assert self._session is not None, "the upstream is not open"
        headers = self._headers(authorization)
        with _translated():
            # A redirect would take the key to another address.
            response = await self._session.post(
                self.url, data=body, headers=headers, allow_redirects=False
            )
        try:
            yield response
        finally:
            response.release()  # closes the connection where the body has not come to its end

    def _headers(self, authorization: str | None) -> dict[str, str]:
        # Not compressed: chunks are passed on as they come, and a compressor would hold them back.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        elif authorization:
            headers["authorization"] = authorization
        return headers


class _translated:
    """aiohttp's errors as `Unreachable`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.TimeoutError):
            raise Unreachable("timeout", f"no answer in time ({type(error).__name__})") from None
        if isinstance(error, aiohttp.ClientError):
            raise Unreachable(
                "connection", f"the connection failed ({type(error).__name__})"
            ) from None


def passed_on(response: aiohttp.ClientResponse) -> Headers:
    """The headers that the client gets too."""
    found = []
    for raw_name, raw_value in response.raw_headers:
        name = raw_name.decode("latin-1").lower()
        if name in PASSED_ON or name.startswith(_PASSED_PREFIX):
            found.append((name, raw_value.decode("latin-1")))
    return found


async def chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The pieces of a body as they arrive.

    Raises:
        Unreachable: it breaks off.
    """
    while True:
        with _translated():
            piece = await response.content.readany()
        if not piece:
            return
        yield piece
