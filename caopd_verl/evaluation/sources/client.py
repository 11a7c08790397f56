"""One chat completion from an OpenAI-compatible endpoint, retried until it is there or can't be.

* Retried: no connection, a closed connection, a stall beyond the time limit, 408, 409, 425, 429,
  every 5xx, and a 200 whose body is no chat completion (HTML, half a JSON). Waiting times double
  with jitter; `Retry-After` is honoured and holds for all requests, as rate limits do.
* Stops the run: 401, 403, 404.
* Fails the row alone: other 4xx.

The key is read from the environment, sent in a header, and removed from every message before it is
shown or stored.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from caopd_verl.errors import CaopdError, ConfigError
from caopd_verl.evaluation.rows.row import Generation
from caopd_verl.evaluation.settings import Endpoint, Sampling
from caopd_verl.evaluation.sources.completion import BadBody, error_text, parse_completion
from caopd_verl.types import Messages

RETRIED = {408, 409, 425, 429}
FATAL = {
    401: "the key is missing or wrong",
    403: "the key may not use this",
    404: "no such model or address",
}
LOGPROBS_LADDER = (20, 5, 0)
"""Numbers of alternatives, in the order in which they are tried: 20 is the most OpenAI gives."""

# Servers close idle connections after 5 s (uvicorn, vLLM). Ours goes first, so that no request is
# sent into a connection that is being closed.
KEEPALIVE_S = 4.0
_CONNECT_S = 30.0  # an endpoint that is there accepts sooner, however long it takes to answer
_REASON = 80  # characters of a refusal that retries are counted by


class RowError(Exception):
    """This row can't be finished; the run goes on."""

    def __init__(self, reason: str, attempts: int):
        super().__init__(reason)
        self.reason, self.attempts = reason, attempts


class EndpointError(CaopdError, RuntimeError):
    """The endpoint refuses every request: the run stops, and can be resumed."""


class _Retry(Exception):
    """This attempt came to nothing; `after` is how long the endpoint asks to wait, in seconds."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class _Answer:
    """A response that came whole, whatever its status."""

    status: int
    retry_after: str | None
    content: bytes


class ChatClient:
    """Chat completions of one model; use as an asynchronous context manager.

    Args:
        base_url: up to and including `/v1`.
        model: as the endpoint calls it.
        sampling, endpoint: settings.
        extra_body: further fields of the request, such as
            `{"chat_template_kwargs": {"enable_thinking": false}}`.

    Raises:
        ConfigError: an address that is no http(s) address, or that holds a password or a query.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        sampling: Sampling,
        endpoint: Endpoint,
        extra_body: Mapping[str, Any] | None = None,
    ):
        self.url = check_url(base_url).rstrip("/") + "/chat/completions"
        self.model, self.sampling, self.endpoint = model, sampling, endpoint
        self.extra_body = dict(extra_body or {})
        self.key = os.environ.get(endpoint.api_key_env) or None  # an empty one is no key
        self.top_logprobs = endpoint.top_logprobs
        self.notes: list[str] = []
        self.retries: dict[str, int] = {}
        self._pause_until = 0.0

    async def __aenter__(self) -> ChatClient:
        limit = self.endpoint.timeout_s
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=min(_CONNECT_S, limit))
        # No limit on connections: the workers bound concurrency.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._http = aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=connector, trust_env=True
        )  # trust_env: proxies that the environment names
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def complete(self, messages: Messages, *, seed: int | None) -> Generation:
        """One response.

        Args:
            messages: the prompt.
            seed: of the sampling; None leaves it to the endpoint.

        Raises:
            RowError: refused, or not to be had in `max_attempts` attempts.
            EndpointError: the endpoint refuses everything.
        """
        attempt, backoff = 0, self.endpoint.backoff_s
        while True:
            await self._wait_for_pause()
            attempt += 1
            try:
                return await self._attempt(messages, seed, attempt)
            except _Retry as error:
                reason = self.redact(str(error))
                self._count_retry(reason)
                if attempt >= self.endpoint.max_attempts:
                    raise RowError(f"{reason} (after {attempt} attempts)", attempt) from None
                if error.after is not None:
                    self._pause(error.after)
                # With jitter: requests that failed together must not come back together.
                jittered = random.uniform(0.5, 1.0) * backoff
                await asyncio.sleep(max(error.after or 0.0, jittered))
                backoff = min(2.0 * backoff, self.endpoint.max_backoff_s)

    def redact(self, text: str) -> str:
        """`text` without the key: endpoints repeat it in refusals, and those are stored."""
        return text.replace(self.key, "[key]") if self.key else text

    def request_body(self, messages: Messages, seed: int | None) -> dict[str, Any]:
        """The JSON that is sent."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            self.endpoint.max_tokens_field: self.sampling.max_tokens,
        }
        if seed is not None:
            body["seed"] = seed
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body | self.extra_body

    async def _attempt(self, messages: Messages, seed: int | None, attempt: int) -> Generation:
        asked = self.top_logprobs
        start = time.monotonic()
        answer = await self._post(self.request_body(messages, seed))
        if answer.status == 200:
            latency = time.monotonic() - start
            decoding = self.sampling.decoding
            try:
                return parse_completion(
                    answer.content, decoding=decoding, latency_s=latency, attempts=attempt
                )
            except BadBody as error:
                raise _Retry(f"200 without a chat completion: {error}") from None
        said = self.redact(error_text(answer.content))
        if answer.status in (400, 422) and asked and "logprob" in said.lower():
            self._lower_logprobs(asked, said)
            return await self._attempt(messages, seed, attempt)
        raise self._refusal(answer, said, attempt)

    async def _post(self, body: Mapping[str, Any]) -> _Answer:
        try:
            # No redirects: they would carry the key to another address.
            async with self._http.post(self.url, json=body, allow_redirects=False) as response:
                content = await response.read()
                return _Answer(response.status, response.headers.get("retry-after"), content)
        except asyncio.TimeoutError:
            raise _Retry(f"no answer within {self.endpoint.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise _Retry(f"the connection failed ({type(error).__name__})") from None

    def _refusal(self, answer: _Answer, said: str, attempt: int) -> Exception:
        """What a status other than 200 means for the row and for the run."""
        status = answer.status
        if status in RETRIED or status >= 500:
            return _Retry(f"HTTP {status}: {said}", self._retry_after(answer))
        if status in FATAL or 300 <= status < 400:
            access = FATAL.get(status, "the address points elsewhere")
            return EndpointError(
                f"the endpoint answers HTTP {status}: {said}",
                where=self.url,
                expected=f"access ({access})",
                fix="check the address, the model's name and the key in "
                f"${self.endpoint.api_key_env}; then run the same command again: finished rows are "
                "kept",
            )
        return RowError(f"HTTP {status}: {said}", attempt)

    def _lower_logprobs(self, refused: int, said: str) -> None:
        """Ask for fewer alternatives from now on, unless another request has seen to that."""
        if self.top_logprobs != refused:
            return
        self.top_logprobs = next(step for step in LOGPROBS_LADDER if step < refused)
        note = f"top_logprobs={refused} was refused ({said}); went on with {self.top_logprobs}"
        self.notes.append(note)

    def _retry_after(self, answer: _Answer) -> float | None:
        seconds = parse_retry_after(answer.retry_after)
        limit = self.endpoint.max_retry_after_s
        if seconds is not None and seconds > limit:
            raise EndpointError(
                f"the endpoint asks to come back in {seconds:.0f} s",
                where=self.url,
                expected=f"at most {limit:.0f} s",
                fix="run the same command again later: finished rows are kept",
            )
        return seconds

    def _count_retry(self, reason: str) -> None:
        short = reason[:_REASON]
        self.retries[short] = self.retries.get(short, 0) + 1

    def _pause(self, seconds: float) -> None:
        self._pause_until = max(self._pause_until, time.monotonic() + seconds)

    async def _wait_for_pause(self) -> None:
        while (left := self._pause_until - time.monotonic()) > 0:
            # Not all at the same instant, or the limit is hit again at once.
            spread = min(1.0, 0.1 * left)
            await asyncio.sleep(left + random.uniform(0.0, spread))


def check_url(url: str) -> str:
    """`url`, if requests may be sent there.

    Raises:
        ConfigError: not http(s), or with a user, password, query or fragment, which would end up in
            files.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{url!r} is no address",
            where="--endpoint",
            expected="such as http://127.0.0.1:8000/v1",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "the address holds a user, password or query",
            where="--endpoint",
            expected="a plain address: it is written into files",
            fix="put the key into an environment variable and name it with --api-key-env",
        )
    return url


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header (seconds or a date); None where none can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError):
        return None
    return max(0.0, moment - time.time())
