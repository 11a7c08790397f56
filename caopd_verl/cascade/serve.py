"""`caopd proxy`: check the settings, put the application together, listen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import fields

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from caopd_verl.cascade.proxy import ChatRouter
from caopd_verl.cascade.proxy_metrics import ProxyMetrics
from caopd_verl.cascade.routing_settings import Proxy
from caopd_verl.cascade.upstream import Upstream
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.sources.client import check_url

# The settings that end so are times and sizes, in which 0 would stop everything.
_POSITIVE = ("_s", "_mb", "_concurrency")
_KEY_FIX = (
    "give a plain http(s) address; keys come from the environment variables of "
    "--small-key-env, --large-key-env"
)


def build(
    *, small: tuple[str, str], large: tuple[str, str], threshold: float, settings: Proxy
) -> Starlette:
    """The application for two upstreams; its metrics are in `app.state.metrics`.

    Args:
        small, large: each an address up to `/v1`, and a model's name there.
        threshold: confidence from which the small model is served.
        settings: everything else.

    Raises:
        ConfigError: a threshold outside [0, 1], no address, an impossible limit, the same upstream
            twice.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(
            f"the threshold is {threshold}", where="--threshold", expected="a number in [0, 1]"
        )
    _check_limits(settings)
    if small == large:
        raise ConfigError(
            "both upstreams are the same", where="--large-url", expected="a small and a large model"
        )
    small_url, small_model = small
    large_url, large_model = large
    small_upstream = Upstream(
        _checked(small_url, "--small-url"),
        small_model,
        key_env=settings.small_key_env,
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.small_timeout_s,
        total_timeout_s=settings.small_timeout_s,
    )
    large_upstream = Upstream(
        _checked(large_url, "--large-url"),
        large_model,
        key_env=settings.large_key_env,
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.large_timeout_s,
        # Its stream may go on for as long as pieces keep coming.
        total_timeout_s=None,
    )
    return _application(small_upstream, large_upstream, threshold, settings)


def serve(
    *, small: tuple[str, str], large: tuple[str, str], threshold: float, settings: Proxy
) -> None:
    """Listen until interrupted. Requests are not logged: counts and times are in `/metrics`.

    Raises:
        ConfigError: as `build`.
    """
    app = build(small=small, large=large, threshold=threshold, settings=settings)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    # uvicorn shuts down by itself on an interrupt, and then raises it once more.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            limit_concurrency=settings.max_concurrency,
            access_log=False,
        )


def _application(small: Upstream, large: Upstream, threshold: float, settings: Proxy) -> Starlette:
    metrics = ProxyMetrics(threshold)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Not before: a client session belongs to the event loop that it is opened in.
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
    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
        Route("/metrics", exposition),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.metrics = metrics
    return app


def _check_limits(settings: Proxy) -> None:
    for item in fields(settings):
        if not item.name.endswith(_POSITIVE):
            continue
        value = getattr(settings, item.name)
        if not (math.isfinite(value) and value > 0):
            flag = "--" + item.name.replace("_", "-")
            raise ConfigError(f"{value} can't work", where=flag, expected="a number > 0")


def _checked(url: str, flag: str) -> str:
    """The address, or an error that names the proxy's option instead of the evaluation's."""
    try:
        return check_url(url)
    except ConfigError as error:
        raise ConfigError(error.what, where=flag, expected=error.expected, fix=_KEY_FIX) from None
