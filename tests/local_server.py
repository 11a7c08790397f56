"""A server on 127.0.0.1 in a thread with its own event loop; the stubs say what it answers."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import TypeVar

Self = TypeVar("Self", bound="LocalServer")
LIMIT_S = 10


class LocalServer(ABC):
    """Use as a context manager; `url` ends in `/v1`. With port 0 the system chooses one."""

    port: int = 0

    @property
    def url(self) -> str:
        """Where it listens, as the clients want it."""
        return f"http://127.0.0.1:{self.port}/v1"

    @abstractmethod
    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""

    def __enter__(self: Self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        # A daemon: a test that fails before the end must not keep the test run from ending.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._listening.wait(LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        starting = asyncio.start_server(self._connection, "127.0.0.1", self.port)
        server = self._loop.run_until_complete(starting)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        # One more turn of the loop, in which the cancelled tasks end.
        self._loop.run_until_complete(asyncio.sleep(0))
