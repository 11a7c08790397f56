"""A chat-completions endpoint on 127.0.0.1 that says what it is told to, streams when asked to, and can misbehave.

python -m tests.cascade.stub --text "B\\nConfidence: 0.9"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import threading
import time
from typing import Any

from tests.local_server import LocalServer

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

    Args:
        text: the answer.
        fault: one of `REFUSALS`, `close` (no answer), `midclose` (half of one), `stall` (headers never come) or None.
        gated: each piece of a stream waits for `release()`.
        interval: seconds before each piece of a stream.
    """

    def __init__(
        self,
        text: str,
        fault: str | None = None,
        *,
        gated: bool = False,
        interval: float = 0.0,
        port: int = 0,
    ):
        self.text, self.fault, self.gated, self.interval, self.port = (
            text,
            fault,
            gated,
            interval,
            port,
        )
        self._gate = asyncio.Semaphore(0)
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.left = (
            threading.Event()
        )  # the other side has closed a connection that an answer was due on

    def release(self) -> None:
        """Let one more piece of the stream go."""
        self._loop.call_soon_threadsafe(self._gate.release)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError
        ):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                pairs = (line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                headers = {key.lower(): value for key, value in pairs}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
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
        if self.fault == "stall":
            await asyncio.sleep(3600)
        if self.fault == "close":
            return False
        if self.fault in REFUSALS:
            status, extra, said = REFUSALS[self.fault]
            said = said.replace("KEY", headers.get("authorization", "none"))
            _head(writer, status, f"{extra}Content-Length: {len(said)}\r\n", said)
            await writer.drain()
            return True
        if body.get("stream"):
            return await self._stream(writer, body)
        said = json.dumps(completion(body["model"], self.text))
        cut = len(said) // 2 if self.fault == "midclose" else None
        _head(
            writer,
            "200 OK",
            f"Content-Type: application/json\r\nContent-Length: {len(said)}\r\n",
            said[:cut],
        )
        await writer.drain()
        return cut is None

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        _head(
            writer,
            "200 OK",
            "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n",
            "",
        )
        await writer.drain()
        pieces = events(body["model"], self.text)
        for piece in pieces[: len(pieces) // 2] if self.fault == "midclose" else pieces:
            if self.gated:
                await self._gate.acquire()
            if self.interval:
                await asyncio.sleep(self.interval)
            writer.write(f"{len(piece.encode()):x}\r\n".encode() + piece.encode() + b"\r\n")
            await writer.drain()
        if self.fault == "midclose":
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _head(writer: asyncio.StreamWriter, status: str, headers: str, data: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n{data}".encode())


def completion(model: str, text: str) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    return {
        "id": "x",
        "object": "chat.completion",
        "model": model,
        "choices": [choice],
        "usage": {"total_tokens": 9},
    }


def events(model: str, text: str) -> list[str]:
    """Server-sent events, three characters each, then the usage (without choices) and the end."""
    deltas = [
        {"role": "assistant", "content": ""},
        *({"content": text[i : i + 3]} for i in range(0, len(text), 3)),
    ]
    bodies = [
        {"id": "x", "model": model, "choices": [{"index": 0, "delta": delta}]} for delta in deltas
    ]
    bodies.append({"id": "x", "model": model, "choices": [], "usage": {"total_tokens": 9}})
    return [*(f"data: {json.dumps(body)}\n\n" for body in bodies), "data: [DONE]\n\n"]


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
