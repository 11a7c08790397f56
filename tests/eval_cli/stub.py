"""A chat-completions endpoint on 127.0.0.1 that answers additions, and misbehaves as it is told to.

Faults are played per question: the first attempts get `faults[i]` in turn, then the answer comes.
What was asked is kept in `Stub.asked` (question and sample seed) and `Stub.served` (those that got
an answer).

    python -m tests.eval_cli.stub --port 8123 --latency 0.2
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tests.local_server import LocalServer

FAULTS = (
    "429",
    "429date",
    "500",
    "503",
    "html",
    "half",
    "empty",
    "nochoices",
    "close",
    "midclose",
    "stall",
)


class Stub(LocalServer):
    """Use as a context manager; `url` ends in `/v1`.

    Args:
        faults: for the n-th attempt at a question (0, 1, ...), what goes wrong, or "ok"; a function
            of the question's text and the attempt, or a list that every question goes through.
        latency: seconds before an answer.
        max_logprobs: largest `top_logprobs` that is accepted.
        port: 0: any that is free.
        retry_after: what that header says with a 429 or 503.
        answer: the response to a question and seed.
    """

    def __init__(
        self,
        faults: Sequence[str] | Callable[[str, int], str] = (),
        *,
        latency: float = 0.0,
        max_logprobs: int = 20,
        port: int = 0,
        retry_after: str = "0",
        answer: Callable[[str, int | None], str] | None = None,
    ):
        self.faults = faults
        self.latency, self.max_logprobs = latency, max_logprobs
        self.port, self.retry_after = port, retry_after
        self.answer = answer or addition
        self.asked: Counter[tuple[str, Any]] = Counter()
        self.served: Counter[tuple[str, Any]] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.open_now = self.open_most = 0

    def fault(self, question: str, attempt: int) -> str:
        """What goes wrong at this attempt, or "ok"."""
        if callable(self.faults):
            return self.faults(question, attempt)
        return self.faults[attempt] if attempt < len(self.faults) else "ok"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError
        ):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        headers = {key.lower(): value for key, value in headers.items()}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        question = body["messages"][-1]["content"].split("\n")[0]
        key = (question, body.get("seed"))
        attempt = self.asked[key]
        self.asked[key] += 1
        self.headers.append(headers)
        self.bodies.append(body)
        self.times.append(time.monotonic())
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            begun = time.monotonic()
            data = json.dumps(completion(body, self.answer(*key)))
            # the latency holds what the stub itself takes
            await asyncio.sleep(self.latency - (time.monotonic() - begun))
            return await self._reply(writer, self.fault(question, attempt), body, key, data)
        finally:
            self.open_now -= 1

    async def _reply(
        self, writer: asyncio.StreamWriter, fault: str, body: dict, key: tuple[str, Any], data: str
    ) -> bool:
        if fault == "ok" and (body.get("top_logprobs") or 0) > self.max_logprobs:
            fault = "400logprobs"
        if fault == "stall":
            await asyncio.sleep(3600)
        if fault == "close":
            return False
        if fault in REFUSALS:
            status, said = REFUSALS[fault]
            extra = ""
            if fault.startswith("429") or fault == "503":
                extra = f"Retry-After: {self.retry_after}\r\n"
            if fault == "429date":
                now = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
                extra = f"Retry-After: {now}\r\n"
            key_sent = str(self.headers[-1].get("authorization"))
            return await _send(writer, status, said.replace("KEY", key_sent), extra)
        if fault == "html":
            data = "<html><body>Bad gateway</body></html>"
        elif fault == "empty":
            data = ""
        elif fault == "half":
            data = data[: len(data) // 2]
        elif fault == "nochoices":
            data = json.dumps({"error": {"message": "overloaded"}})
        elif fault == "midclose":
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n"
            writer.write(f"{head}{data[:20]}".encode())
            await writer.drain()
            return False
        else:
            self.served[key] += 1
        return await _send(writer, "200 OK", data, "")


REFUSALS = {
    "400": ("400 Bad Request", '{"error": {"message": "this prompt is too long"}}'),
    "400logprobs": ("400 Bad Request", '{"error": {"message": "top_logprobs is too large"}}'),
    "401": ("401 Unauthorized", '{"error": {"message": "wrong key: KEY"}}'),
    "404": ("404 Not Found", '{"error": {"message": "no such model"}}'),
    "429": ("429 Too Many Requests", '{"error": {"message": "slow down"}}'),
    "429date": ("429 Too Many Requests", '{"error": {"message": "slow down"}}'),
    "500": ("500 Internal Server Error", "oops KEY"),
    "503": ("503 Service Unavailable", "<html>busy</html>"),
}


async def _send(writer: asyncio.StreamWriter, status: str, data: str, extra: str) -> bool:
    raw = data.encode()
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(raw)}\r\n{extra}\r\n".encode() + raw)
    await writer.drain()
    return True


def addition(question: str, seed: int | None) -> str:
    """A sum that is wrong in about a third of the cases, and a confidence that knows a little."""
    match = re.match(r"(\d+)\+(\d+)", question)
    a, b = (int(n) for n in match.groups()) if match else (0, 0)
    digest = hashlib.sha256(f"{question}{seed}".encode()).digest()
    wrong = digest[0] < 85
    confidence = 0.55 + (digest[1] % 30) / 100 + (0.0 if wrong else 0.1)
    return f"{a + b + wrong}\nConfidence: {confidence:.2f}"


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    """A chat completion in OpenAI's form, with log-probs of each character where asked for."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [token(character) for character in text]}
    usage = {"prompt_tokens": 40, "completion_tokens": len(text), "total_tokens": 40 + len(text)}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }


def token(character: str) -> dict[str, Any]:
    """A character as a token; a digit is as probable as the next one."""
    if not character.isdigit():
        return {"token": character, "logprob": 0.0, "top_logprobs": []}
    half = math.log(0.5)
    following = str((int(character) + 1) % 10)
    top = [{"token": digit, "logprob": half} for digit in (character, following)]
    return {"token": character, "logprob": half, "top_logprobs": top}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    args = parser.parse_args()
    with Stub(latency=args.latency, port=args.port) as stub:
        print(stub.url, flush=True)
        while True:
            time.sleep(3600)
