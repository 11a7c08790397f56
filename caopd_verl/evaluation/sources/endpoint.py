"""Ask an endpoint for every row that is missing, several at once.

Finished rows are on disk as they come: a worker asks for its next row when its last one is there,
so a run that is killed has at most `concurrency` requests to repeat, however slow the disk is.
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
    """Something to be written.

    Attributes:
        good: a row; else a failure.
        row: its content.
        written: set when it is on disk.
    """

    good: bool
    row: Row
    written: asyncio.Event = field(default_factory=asyncio.Event)


Queue = asyncio.Queue[_Item | None]


@dataclass
class EndpointRun:
    """What a run did, for `metrics.json`.

    Attributes:
        asked, finished, failed: rows.
        retries: reason -> how often.
        notes: what was given up on, such as log-probabilities.
        seconds: of the whole run.
    """

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
            workers = []
            for _ in range(min(client.endpoint.concurrency, len(jobs))):
                work = _work(waiting, client, queue, on_row, run)
                workers.append(asyncio.create_task(work))
            try:
                await _first_error([*workers], writer)
            finally:
                # After an error the others must not go on asking, and paying, in vain.
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
    finally:
        # Also after an error or Ctrl-C: what was answered is paid for, and gets to disk.
        queue.put_nowait(None)
        await asyncio.shield(writer)
        run.seconds = time.monotonic() - start
        run.retries = dict(client.retries)
        run.notes = list(client.notes)
    return run


async def _first_error(workers: list[asyncio.Task], writer: asyncio.Task) -> None:
    """Wait for all workers; raise as soon as one of them, or the writer, fails."""
    pending: set[asyncio.Task] = set(workers)
    while pending:
        watched = {*pending, writer}
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
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
    for job in waiting:
        run.asked += 1
        item = await _answer(job, client)
        if item.good:
            run.finished += 1
        else:
            run.failed += 1
        queue.put_nowait(item)  # never full: a worker waits for its item before the next
        on_row(item.row if item.good else None)
        await item.written.wait()


async def _answer(job: Job, client: ChatClient) -> _Item:
    """The row of a job, or what became of it."""
    base = client.sampling.seed
    # Samples of one question differ by their number alone, and must not be equal.
    seed = None if base is None else base + job.sample
    try:
        generation = await client.complete(job.example.messages, seed=seed)
    except RowError as error:
        failure = {
            "id": job.example.id,
            "sample": job.sample,
            "where": job.example.where,
            "error": error.reason,
            "attempts": error.attempts,
        }
        return _Item(False, failure)
    return _Item(True, make_row(job, generation))


async def _write(queue: Queue, store: RowStore) -> None:
    """Write whatever is waiting in one go and sync it, until a None comes."""
    more = True
    while more:
        taken = [await queue.get()]
        while not queue.empty():
            taken.append(queue.get_nowait())
        more = None not in taken
        items = [item for item in taken if item is not None]
        # In a thread: a sync takes milliseconds to seconds, and requests go on meanwhile.
        await asyncio.to_thread(_append, store, items)
        for item in items:
            item.written.set()


def _append(store: RowStore, items: Sequence[_Item]) -> None:
    rows: list[Row] = []
    failures: list[Row] = []
    for item in items:
        kind = rows if item.good else failures
        kind.append(item.row)
    store.append(rows)
    store.append_failures(failures)
