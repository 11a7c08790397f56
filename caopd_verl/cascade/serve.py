"""`caopd proxy`: check the settings, then listen."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import fields

import uvicorn
from starlette.applications import Starlette

from caopd_verl.cascade.proxy import make_app
from caopd_verl.cascade.routing_settings import Proxy
from caopd_verl.cascade.upstream import Upstream
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.sources.client import check_url


def build(
    *, small: tuple[str, str], large: tuple[str, str], threshold: float, settings: Proxy
) -> Starlette:
    """The application for two upstreams, each an address up to `/v1` and a model's name there.

    Raises:
        ConfigError: a threshold outside [0, 1], no address, an impossible limit, the same upstream twice.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(
            f"the threshold is {threshold}", where="--threshold", expected="a number in [0, 1]"
        )
    for item in fields(settings):
        value, positive = (
            getattr(settings, item.name),
            item.name.endswith(("_s", "_mb", "_concurrency")),
        )
        if positive and not (math.isfinite(value) and value > 0):
            flag = "--" + item.name.replace("_", "-")
            raise ConfigError(f"{value} can't work", where=flag, expected="a number > 0")
    if small == large:
        raise ConfigError(
            "both upstreams are the same", where="--large-url", expected="a small and a large model"
        )
    return make_app(
        Upstream(
            "small", _checked(small[0], "--small-url"), small[1],
            key_env=settings.small_key_env, connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.small_timeout_s, total_timeout_s=settings.small_timeout_s,
        ),
        Upstream(
            "large", _checked(large[0], "--large-url"), large[1],
            key_env=settings.large_key_env, connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.large_timeout_s, total_timeout_s=None,
        ),
        threshold,
        settings,
    )  # fmt: skip


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
    with contextlib.suppress(
        KeyboardInterrupt
    ):  # uvicorn has shut down by then, and raises it once more
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            limit_concurrency=settings.max_concurrency,
            access_log=False,
        )


def _checked(url: str, flag: str) -> str:
    try:
        return check_url(url)
    except ConfigError as error:
        raise ConfigError(error.what, where=flag, expected=error.expected, fix=_KEY_FIX) from None


_KEY_FIX = "give a plain http(s) address; keys come from the environment variables of --small-key-env, --large-key-env"
