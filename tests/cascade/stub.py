"""A chat-completions endpoint on 127.0.0.1 that says what it is told to, and can misbehave.

python -m tests.cascade.stub --text "B\\nConfidence: 0.9"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import threading
import time
from typing import Any, Literal

from tests.local_server import LocalServer

Fault = Literal[
    "400", "401", "429", "500", "html", "two", "close", "midclose", "stall", "unfinished"
]
# fault -> status line, extra headers, body
REFUSALS = {
    "400": ("400 Bad Request", "", '{"error": {"message": "this prompt is too long"}}'),
    "401": ("401 Unauthorized", "", '{"error": {"message": "wrong key: KEY"}}'),
    "429": (
        "429 Too Many Requests",
        "Retry-After: 7\r\nX-RateLimit-Remaining: 0\r\n",
        '{"error": {"message": "slow"}}',
    ),
    "500": ("500 Internal Server Error", "", "oops"),
    "html": ("200 OK", "", "<html>hello</html>"),
    "two": (
        "200 OK",
        "",
        '{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}',
    ),
}


class Stub(LocalServer):
    """Use as a context manager; `url` ends in `/v1`.

    `headers` and `bodies` keep what it was asked, `left` is set when the other side has closed a
    connection that an answer was due on.

    Args:
        text: the answer.
        fault: one of `REFUSALS`; `close` (no answer), `midclose` (half of one), `stall` (headers
            never come), `unfinished` (a stream without its last event); or None.
        gated: each piece of a stream waits for `release()`.
        interval: seconds before each piece of a stream.
    """

    def __init__(
        self,
        text: str,
        fault: Fault | None = None,
        *,
        gated: bool = False,
        interval: float = 0.0,
        port: int = 0,
    ):
        self.text, self.fault = text, fault
        self.gated, self.interval, self.port = gated, interval, port
        self._gate = asyncio.Semaphore(0)
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.left = threading.Event()

    def release(self) -> None:
        """Let one more piece of the stream go."""
        self._loop.call_soon_threadsafe(self._gate.release)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            while True:
                headers, body = await _request(reader)
                self.headers.append(headers)
                self.bodies.append(body)
                answer = asyncio.ensure_future(self._answer(writer, body, headers))
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    self.left.set()
                    answer.cancel()
                    break
                gone.cancel()
                await asyncio.wait({gone})
                if not answer.result():
                    break
        writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], headers: dict[str, str]
    ) -> bool:
        """Answer one request; returns whether the connection stays open."""
        if self.fault == "stall":
            await asyncio.sleep(3600)
        if self.fault == "close":
            return False
        if self.fault in REFUSALS:
            status, extra, said = REFUSALS[self.fault]
            said = said.replace("KEY", headers.get("authorization", "none"))
            await _send(writer, status, f"{extra}Content-Length: {len(said)}\r\n", said)
            return True
        if body.get("stream"):
            return await self._stream(writer, body)
        said = json.dumps(completion(body["model"], self.text))
        sent = said[: len(said) // 2] if self.fault == "midclose" else said
        about = f"Content-Type: application/json\r\nContent-Length: {len(said)}\r\n"
        await _send(writer, "200 OK", about, sent)
        return sent == said

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        about = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        await _send(writer, "200 OK", about, "")
        pieces = events(body["model"], self.text)
        if self.fault == "midclose":
            pieces = pieces[: len(pieces) // 2]
        if self.fault == "unfinished":
            pieces = pieces[:-1]
        for piece in pieces:
            if self.gated:
                await self._gate.acquire()
            if self.interval:
                await asyncio.sleep(self.interval)
            encoded = piece.encode()
            size = f"{len(encoded):x}\r\n".encode()
            writer.write(size + encoded + b"\r\n")
            await writer.drain()
        if self.fault == "midclose":
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _request(reader: asyncio.StreamReader) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers (names in lower case) and JSON body of the next request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    headers = {}
    for line in head.split("\r\n")[1:]:
        name, found, value = line.partition(": ")
        if found:
            headers[name.lower()] = value
    body = await reader.readexactly(int(headers["content-length"]))
    return headers, json.loads(body)


async def _send(writer: asyncio.StreamWriter, status: str, headers: str, data: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n{data}".encode())
    await writer.drain()


def completion(model: str, text: str) -> dict[str, Any]:
    """A chat completion as OpenAI's endpoint gives it."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": model,
        "choices": [choice],
        "usage": {"total_tokens": 9},
    }


def events(model: str, text: str) -> list[str]:
    """Server-sent events, three characters each, then the usage (without choices) and the end."""
    deltas = [{"role": "assistant", "content": ""}]
    for start in range(0, len(text), 3):
        deltas.append({"content": text[start : start + 3]})
    bodies = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta}
        bodies.append({"id": "x", "model": model, "choices": [choice]})
    bodies.append({"id": "x", "model": model, "choices": [], "usage": {"total_tokens": 9}})
    pieces = [f"data: {json.dumps(body)}\n\n" for body in bodies]
    return [*pieces, "data: [DONE]\n\n"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", default="B\nConfidence: 0.90")
    parser.add_argument("--interval", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    with Stub(args.text, interval=args.interval, port=args.port) as stub:
        print(stub.url, flush=True)
        while True:
            time.sleep(3600)
