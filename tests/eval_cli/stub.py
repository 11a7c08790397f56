"""A chat-completions endpoint on 127.0.0.1 that answers additions, and misbehaves as it is told to.

Faults are played per question: the first attempts get `faults[i]` in turn, then the answer comes.
What was asked is
kept in `Stub.asked` (question and sample seed) and `Stub.served` (those that got an answer).

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
        of the question's
            number and attempt, or a list that every question goes through.
        latency: seconds before an answer.
        refuse_logprobs: largest `top_logprobs` that is accepted.
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
        self.fault = (
            faults
            if callable(faults)
            else lambda _, attempt: [*faults, *["ok"] * 99][min(attempt, 98)]
        )
        self.latency, self.max_logprobs, self.port, self.retry_after = (
            latency,
            max_logprobs,
            port,
            retry_after,
        )
        self.answer = answer or addition
        self.asked: Counter[tuple[str, Any]] = Counter()
        self.served: Counter[tuple[str, Any]] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.open_now = self.open_most = 0

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
            await asyncio.sleep(
                self.latency - (time.monotonic() - begun)
            )  # the latency holds what the stub itself takes
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
                extra = (
                    f"Retry-After: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime())}\r\n"
                )
            return await _send(
                writer,
                status,
                said.replace("KEY", str(self.headers[-1].get("authorization"))),
                extra,
            )
        if fault == "html":
            data = "<html><body>Bad gateway</body></html>"
        elif fault == "empty":
            data = ""
        elif fault == "half":
            data = data[: len(data) // 2]
        elif fault == "nochoices":
            data = json.dumps({"error": {"message": "overloaded"}})
        elif fault == "midclose":
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n{data[:20]}".encode()
            )
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
    """A sum that is wrong in about a third of the cases, and a confidence that knows a little about
    it.
    """
    match = re.match(r"(\d+)\+(\d+)", question)
    a, b = (int(n) for n in match.groups()) if match else (0, 0)
    digest = hashlib.sha256(f"{question}{seed}".encode()).digest()
    wrong = digest[0] < 85
    confidence = 0.55 + (digest[1] % 30) / 100 + (0.0 if wrong else 0.1)
    return f"{a + b + wrong}\nConfidence: {confidence:.2f}"


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    """A chat completion in OpenAI's form, with log-probs for each character where they are asked
    for.
    """
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    if body.get("logprobs"):
        half = math.log(0.5)
        choice["logprobs"] = {
            "content": [
                {
                    "token": c,
                    "logprob": half if c.isdigit() else 0.0,
                    "top_logprobs": [
                        {"token": t, "logprob": half} for t in (c, str((int(c) + 1) % 10))
                    ]
                    if c.isdigit()
                    else [],
                }
                for c in text
            ]
        }
    return {
        "id": "x",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [choice],
        "usage": {
            "prompt_tokens": 40,
            "completion_tokens": len(text),
            "total_tokens": 40 + len(text),
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    args = parser.parse_args()
    with Stub(latency=args.latency, port=args.port) as stub:
        print(stub.url, flush=True)
        while True:
            time.sleep(3600)
