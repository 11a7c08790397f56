"""A small OpenAI-compatible proxy: the small model answers, the large one where that is not sure.

`POST /v1/chat/completions`, `GET /v1/models`, `GET /health` (of the proxy itself), `GET /metrics`
(Prometheus).

Every answer says in its headers who gave it (`x-caopd-route`: `small`, `large`, or `proxy` for
errors of its own), the confidence that the small model stated (`x-caopd-confidence`, absent where
there is none) and why (`x-caopd-reason`): `confident`; `below_threshold`, `no_confidence`,
`small_failed`; `tools`, `response_format` (not asked of the small one).

The small model's stream is buffered, as its confidence comes last, and replayed as it came; the
large one's is passed on piece by piece. If the large model refuses, its status and body are passed
on. If it can't be reached, those of the small model's refusal are, if it refused too, and otherwise
502 or 504 is the answer: an answer below the threshold is never served. A client that leaves
cancels what is running for it.

    caopd proxy --small-url http://127.0.0.1:8001/v1 --small-model small \\
        --large-url http://127.0.0.1:8002/v1 --large-model large --threshold 0.7
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Literal

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from caopd_verl.cascade.messages import (
    BadRequest,
    BadResponse,
    Body,
    NotForSmall,
    RefusalCode,
    confidence_of,
    error_body,
    for_large,
    for_small,
    only_large,
    read_request,
)
from caopd_verl.cascade.proxy_metrics import ProxyMetrics
from caopd_verl.cascade.routing_settings import Proxy
from caopd_verl.cascade.upstream import Headers, Reply, Unreachable, Upstream, chunks, passed_on

AnsweredBy = Literal["small", "large", "proxy"]
Judged = Literal["confident", "below_threshold", "no_confidence", "small_failed"]
Reason = Judged | NotForSmall | RefusalCode

log = logging.getLogger("caopd.proxy")
_JSON = [("content-type", "application/json")]


@dataclass(frozen=True)
class Decision:
    """Who answers, and why. `reply` is the small model's response, also where it was a refusal."""

    route: AnsweredBy
    reason: Reason
    confidence: float | None = None
    reply: Reply | None = None

    def headers(self) -> Headers:
        """The decision as the client sees it."""
        found: Headers = [("x-caopd-route", self.route)]
        if self.confidence is not None:
            found.append(("x-caopd-confidence", f"{self.confidence:g}"))
        found.append(("x-caopd-reason", self.reason))
        return found


@dataclass(frozen=True)
class Asked:
    """A client's request, once it has been read.

    Attributes:
        body: the request's JSON.
        stream: whether the client wants the answer piece by piece.
        authorization: the client's own header, if it sent one.
    """

    body: Body
    stream: bool
    authorization: str | None


class ChatRouter:
    """The ASGI application behind `/v1/chat/completions`; see the module for what it does.

    Args:
        small, large: opened by whoever made them.
        threshold: confidence in [0, 1] from which the small model is served.
        settings: the proxy's own.
        metrics: what is counted goes here.
    """

    def __init__(
        self,
        small: Upstream,
        large: Upstream,
        threshold: float,
        settings: Proxy,
        metrics: ProxyMetrics,
    ):
        self.small, self.large, self.threshold = small, large, threshold
        self.settings, self.metrics = settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with self.metrics.in_flight.track_inprogress():
            try:
                raw = await self._body(request)
                body = read_request(raw, model=self.settings.model_name)
            except BadRequest as error:
                await self._refuse(error, send)
                return
            except ClientDisconnect:
                self.metrics.disconnects.inc()
                return
            authorization = request.headers.get("authorization")
            asked = Asked(body, body.get("stream") is True, authorization)
            await self._answer_unless_gone(asked, receive, send)

    async def _answer_unless_gone(self, asked: Asked, receive: Receive, send: Send) -> None:
        """Answer; stop as soon as the client has left, which cancels the upstreams' work too."""
        work = asyncio.create_task(self._answer(asked, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.metrics.disconnects.inc()
        finally:
            for task in (work, gone):
                task.cancel()
            # Cancelling only asks: the upstreams' connections are closed when the tasks have ended.
            await asyncio.wait({work, gone})
        if not work.cancelled():
            work.result()  # an error of the proxy's own is for the server to log

    async def _body(self, request: Request) -> bytes:
        limit = self.settings.max_body_mb * 1e6
        parts: list[bytes] = []
        size = 0
        # Piece by piece, so that a body over the limit is not held in memory first.
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise BadRequest(
                    f"the body is larger than {self.settings.max_body_mb:g} MB",
                    status=413,
                    code="body_too_large",
                )
            parts.append(part)
        return b"".join(parts)

    async def _refuse(self, error: BadRequest, send: Send) -> None:
        said = error_body(error.message, code=error.code, param=error.param)
        reply = Reply(error.status, _JSON, said)
        await self._send(send, Decision("proxy", error.code), reply)

    async def _answer(self, asked: Asked, send: Send) -> None:
        begun = time.perf_counter()
        decision = await self._decide(asked)
        if decision.route == "small":
            assert decision.reply is not None
            await self._send(send, decision, decision.reply)
        else:
            await self._ask_large(asked, decision, send)
        spent = time.perf_counter() - begun
        self.metrics.request_seconds.labels(decision.route).observe(spent)

    async def _decide(self, asked: Asked) -> Decision:
        """Ask the small model, and see whether its answer may be served."""
        if reason := only_large(asked.body):
            return Decision("large", reason)
        body = for_small(asked.body, model=self.small.model, instruction=self.settings.instruction)
        begun = time.perf_counter()
        try:
            # Without the client's Authorization: a key meant for one provider does not go to the
            # other.
            reply = await self.small.ask(body, None)
        except Unreachable as error:
            return self._small_failed(error.kind, str(error))
        self._count_upstream("small", begun)
        if reply.status != 200:
            return self._small_failed(f"http_{reply.status}", f"HTTP {reply.status}", reply)
        try:
            stated = confidence_of(reply.body, stream=asked.stream)
        except BadResponse as error:
            return self._small_failed("bad_response", f"200 without a chat completion: {error}")
        if stated.value is None:
            return Decision("large", "no_confidence")
        self.metrics.confidence.observe(stated.value)
        if stated.value < self.threshold:
            return Decision("large", "below_threshold", stated.value)
        return Decision("small", "confident", stated.value, reply)

    def _small_failed(self, kind: str, detail: str, reply: Reply | None = None) -> Decision:
        self.metrics.small_failures.labels(kind).inc()
        log.warning("the small model failed (%s): asking the large one", detail)
        return Decision("large", "small_failed", reply=reply)

    def _count_upstream(self, name: Literal["small", "large"], begun: float) -> None:
        spent = time.perf_counter() - begun
        self.metrics.upstream_seconds.labels(name).observe(spent)

    async def _ask_large(self, asked: Asked, decision: Decision, send: Send) -> None:
        body = for_large(asked.body, model=self.large.model)
        begun = time.perf_counter()
        started = False
        try:
            async with self.large.stream(body, asked.authorization) as response:
                if asked.stream and response.status == 200:
                    self._count_upstream("large", begun)
                    started = True
                    await self._pass_on(send, decision, response)
                    return
                reply = await self.large.whole(response)
                self._count_upstream("large", begun)
        except Unreachable as error:
            log.warning("the large model failed: %s", error)
            if started:
                # The response is left without its end, so the server closes the connection: the
                # client sees that its stream broke off too.
                self.metrics.broken_streams.inc()
                return
            decision, reply = _unreachable(decision, error)
        await self._send(send, decision, reply)

    async def _pass_on(
        self, send: Send, decision: Decision, response: aiohttp.ClientResponse
    ) -> None:
        """Every piece as it comes."""
        self.metrics.requests.labels(decision.route, decision.reason, 200).inc()
        headers = [*passed_on(response), *decision.headers()]
        await _start(send, 200, headers)
        async for piece in chunks(response):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, decision: Decision, reply: Reply) -> None:
        self.metrics.requests.labels(decision.route, decision.reason, reply.status).inc()
        length = ("content-length", str(len(reply.body)))
        headers = [*reply.headers, length, *decision.headers()]
        await _start(send, reply.status, headers)
        await send({"type": "http.response.body", "body": reply.body})


def _unreachable(decision: Decision, error: Unreachable) -> tuple[Decision, Reply]:
    """What is answered instead: the small model's refusal, or an error of the proxy's own."""
    if decision.reply is not None:
        return replace(decision, route="small"), decision.reply
    timed_out = error.kind == "timeout"
    status, code = (504, "large_timeout") if timed_out else (502, "large_unreachable")
    text = error_body(f"the large model can't be asked: {error}", code=code)
    return replace(decision, route="proxy"), Reply(status, _JSON, text)


async def _start(send: Send, status: int, headers: Headers) -> None:
    encoded = [(_latin_1(name), _latin_1(value)) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


def _latin_1(text: str) -> bytes:
    """HTTP's encoding of headers."""
    return text.encode("latin-1")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
