"""Ask an endpoint for every row that is missing: bounded concurrency, finished rows on disk as they come.

A worker asks for its next row when its last one is on disk, so a run that is killed has at most `concurrency` requests
to repeat, however slow the disk is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from caopd_verl.evaluation.rows.row import Job, make_row
from caopd_verl.evaluation.rows.store import RowStore
from caopd_verl.evaluation.sources.client import ChatClient, RowError

Row = dict[str, Any]


@dataclass(frozen=True)
class _Item:
    """A row (or, where `good` is false, a failure) to be written; `written` is set when it is on disk."""

    good: bool
    row: Row
    written: asyncio.Event = field(default_factory=asyncio.Event)


Queue = asyncio.Queue[_Item | None]


@dataclass
class EndpointRun:
    """What a run did, for `metrics.json`."""

    asked: int = 0
    finished: int = 0
    failed: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_endpoint(
    jobs: Sequence[Job],
    store: RowStore,
    client: ChatClient,
    *,
    on_row: Callable[[Row | None], None],
) -> EndpointRun:
    """Finish `jobs` and write them to `store`; returns what happened.

    Args:
        jobs: those still to be done.
        store: open.
        client: not yet entered.
        on_row: called for each finished row, and with None for each failed one.

    Raises:
        EndpointError: the endpoint refuses everything. Rows that were finished by then are on disk.
    """
    return asyncio.run(_run(jobs, store, client, on_row))


async def _run(
    jobs: Sequence[Job], store: RowStore, client: ChatClient, on_row: Callable[[Row | None], None]
) -> EndpointRun:
    run = EndpointRun()
    start = time.monotonic()
    waiting: Iterator[Job] = iter(jobs)
    queue: Queue = asyncio.Queue()
    writer = asyncio.create_task(_write(queue, store))
    try:
        async with client:
            workers = [
                asyncio.create_task(_work(waiting, client, queue, on_row, run))
                for _ in range(min(client.endpoint.concurrency, len(jobs)))
            ]
            try:
                await _first_error([*workers], writer)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
    finally:
        queue.put_nowait(None)
        await asyncio.shield(writer)
        run.seconds = time.monotonic() - start
        run.retries, run.notes = dict(client.retries), list(client.notes)
    return run


async def _first_error(workers: list[asyncio.Task], writer: asyncio.Task) -> None:
    """Wait for all workers; raise as soon as one of them, or the writer, fails."""
    pending: set[asyncio.Task] = set(workers)
    while pending:
        done, _ = await asyncio.wait({*pending, writer}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        pending -= done


async def _work(
    waiting: Iterator[Job],
    client: ChatClient,
    queue: Queue,
    on_row: Callable[[Row | None], None],
    run: EndpointRun,
) -> None:
    base = client.sampling.seed
    for job in waiting:
        run.asked += 1
        try:
            generation = await client.complete(
                job.example.messages, seed=None if base is None else base + job.sample
            )
        except RowError as error:
            run.failed += 1
            row = {
                "id": job.example.id,
                "sample": job.sample,
                "where": job.example.where,
                "error": error.reason,
            }
            item = _Item(False, {**row, "attempts": error.attempts})
        else:
            run.finished += 1
            item = _Item(True, make_row(job, generation))
        queue.put_nowait(item)
        on_row(item.row if item.good else None)
        await item.written.wait()


async def _write(queue: Queue, store: RowStore) -> None:
    """Write whatever is waiting in one go and sync it, in a thread, while requests go on."""
    open_ = True
    while open_:
        items = [await queue.get()]
        while not queue.empty():
            items.append(queue.get_nowait())
        open_ = None not in items
        held = [item for item in items if item is not None]
        await asyncio.to_thread(_append, store, held)
        for item in held:
            item.written.set()


def _append(store: RowStore, items: Sequence[_Item]) -> None:
    store.append([item.row for item in items if item.good])
    store.append_failures([item.row for item in items if not item.good])
