"""A small OpenAI-compatible proxy: the small model answers, the large one is asked where the small one is not sure.

`POST /v1/chat/completions`, `GET /v1/models`, `GET /health` (of the proxy itself), `GET /metrics` (Prometheus).

Every answer says in its headers who gave it (`x-caopd-route`: `small`, `large`, or `proxy` for errors of its own), the
confidence that the small model stated (`x-caopd-confidence`, absent where there is none) and why (`x-caopd-reason`):
`confident`; `below_threshold`, `no_confidence`, `small_failed`; `tools`, `response_format` (not asked of the small
one). The small model's stream is buffered, as its confidence comes last, and replayed as it came; the large one's is
passed on piece by piece. If the large model refuses, its status and body are passed on. If it can't be reached, those
of the small model's refusal are, if it refused too, and otherwise 502 or 504 is the answer: an answer below the
threshold is never served. A client that leaves cancels what is running for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import aiohttp
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from caopd_verl.cascade.messages import (
    BadRequest,
    BadResponse,
    Body,
    confidence_of,
    error_body,
    for_large,
    for_small,
    only_large,
    read_request,
)
from caopd_verl.cascade.proxy_metrics import ProxyMetrics
from caopd_verl.cascade.routing_settings import Proxy
from caopd_verl.cascade.upstream import Reply, Unreachable, Upstream, chunks, passed_on

log = logging.getLogger("caopd.proxy")
_JSON = [("content-type", "application/json")]


@dataclass(frozen=True)
class Decision:
    """Who answers, and why. `reply` is the small model's response, also where it was a refusal."""

    route: str
    reason: str
    confidence: float | None = None
    reply: Reply | None = None

    def headers(self) -> list[tuple[str, str]]:
        stated = [] if self.confidence is None else [("x-caopd-confidence", f"{self.confidence:g}")]
        return [("x-caopd-route", self.route), *stated, ("x-caopd-reason", self.reason)]


class ChatRouter:
    """The ASGI application behind `/v1/chat/completions`."""

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
                refused = error_body(error.message, code=error.code, param=error.param)
                await self._send(
                    send, Decision("proxy", error.code), Reply(error.status, _JSON, refused)
                )
                return
            except ClientDisconnect:
                self.metrics.disconnects.inc()
                return
            work = asyncio.create_task(
                self._answer(body, request.headers.get("authorization"), send)
            )
            gone = asyncio.create_task(_disconnected(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    self.metrics.disconnects.inc()
            finally:
                for task in (work, gone):
                    task.cancel()
                await asyncio.wait({work, gone})
            if not work.cancelled():
                work.result()  # an error of the proxy's own is for the server to log

    async def _body(self, request: Request) -> bytes:
        limit, parts, size = self.settings.max_body_mb * 1e6, [], 0
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

    async def _answer(self, body: Body, authorization: str | None, send: Send) -> None:
        begun, stream = time.perf_counter(), body.get("stream") is True
        decision = await self._decide(body, stream)
        if decision.route == "small":
            assert decision.reply is not None
            await self._send(send, decision, decision.reply)
        else:
            await self._ask_large(body, authorization, stream, decision, send)
        self.metrics.request_seconds.labels(decision.route).observe(time.perf_counter() - begun)

    async def _decide(self, body: Body, stream: bool) -> Decision:
        """Ask the small model, and see whether its answer may be served."""
        if reason := only_large(body):
            return Decision("large", reason)
        asked = for_small(body, model=self.small.model, instruction=self.settings.instruction)
        begun = time.perf_counter()
        try:
            # Without the client's Authorization: a key meant for one provider does not go to the other.
            reply = await self.small.ask(asked, None)
        except Unreachable as error:
            return self._small_failed(error.kind, str(error))
        self.metrics.upstream_seconds.labels("small").observe(time.perf_counter() - begun)
        if reply.status != 200:
            return self._small_failed(f"http_{reply.status}", f"HTTP {reply.status}", reply)
        try:
            stated = confidence_of(reply.body, stream=stream)
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

    async def _ask_large(
        self, body: Body, authorization: str | None, stream: bool, decision: Decision, send: Send
    ) -> None:
        begun, started = time.perf_counter(), False
        try:
            async with self.large.stream(
                for_large(body, model=self.large.model), authorization
            ) as response:
                if stream and response.status == 200:
                    self.metrics.upstream_seconds.labels("large").observe(
                        time.perf_counter() - begun
                    )
                    started = True
                    await self._pass_on(send, decision, response)
                    return
                reply = await self.large.whole(response)
                self.metrics.upstream_seconds.labels("large").observe(time.perf_counter() - begun)
        except Unreachable as error:
            log.warning("the large model failed: %s", error)
            if started:
                # The response is left without its end, so the server closes the connection: the client sees that too.
                self.metrics.broken_streams.inc()
                return
            decision, reply = _unreachable(decision, error)
        await self._send(send, decision, reply)

    async def _pass_on(
        self, send: Send, decision: Decision, response: aiohttp.ClientResponse
    ) -> None:
        """Every piece as it comes."""
        self.metrics.requests.labels(decision.route, decision.reason, 200).inc()
        await _start(send, 200, [*passed_on(response), *decision.headers()])
        async for piece in chunks(response):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, decision: Decision, reply: Reply) -> None:
        self.metrics.requests.labels(decision.route, decision.reason, reply.status).inc()
        length = [("content-length", str(len(reply.body)))]
        await _start(send, reply.status, [*reply.headers, *length, *decision.headers()])
        await send({"type": "http.response.body", "body": reply.body})


def _unreachable(decision: Decision, error: Unreachable) -> tuple[Decision, Reply]:
    """What is answered where the large model can't be reached: the small one's refusal, or an error of the proxy's."""
    if decision.reply is not None:
        return replace(decision, route="small"), decision.reply
    status, code = (504, "large_timeout") if error.kind == "timeout" else (502, "large_unreachable")
    text = error_body(f"the large model can't be asked: {error}", code=code)
    return replace(decision, route="proxy"), Reply(status, _JSON, text)


async def _start(send: Send, status: int, headers: list[tuple[str, str]]) -> None:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def make_app(small: Upstream, large: Upstream, threshold: float, settings: Proxy) -> Starlette:
    """The application; its metrics are in `app.state.metrics`."""
    metrics = ProxyMetrics(threshold)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.gather(small.open(), large.open())
        yield
        await asyncio.gather(small.close(), large.close())

    async def models(request: Request) -> Response:
        one = {"id": settings.model_name, "object": "model", "created": 0, "owned_by": "caopd"}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def exposition(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    chat = ChatRouter(small, large, threshold, settings, metrics)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
            Route("/metrics", exposition),
        ],
        lifespan=lifespan,
    )
    app.state.metrics = metrics
    return app
