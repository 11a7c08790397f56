"""Request rate against a local stub with 200 ms latency: at least 90 % of the ideal rate is kept.

The ideal is one answer for each connection and latency. The whole path is timed: request, retry
logic, verifier, parser, rows on disk. The limit is met where a client's own work does not hold back
64 requests at once.

    python benchmarks/bench_endpoint.py [--rows 3200] [--concurrency 64]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from caopd_verl.data.registry import load_task
from caopd_verl.evaluation.rows.row import jobs_of
from caopd_verl.evaluation.rows.store import RowStore
from caopd_verl.evaluation.settings import DEFAULTS
from caopd_verl.evaluation.sources.client import ChatClient
from caopd_verl.evaluation.sources.endpoint import run_endpoint

LATENCY_S, LIMIT = 0.2, 0.9
ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def stub() -> Iterator[str]:
    """A stub endpoint in a process of its own, so that it takes no time from the client."""
    command = [sys.executable, "-m", "tests.eval_cli.stub", "--latency", str(LATENCY_S)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def timed(url: str, rows: int, concurrency: int) -> tuple[float, float]:
    """Seconds that `rows` rows took, by the clock and of this process's processor time."""
    questions = load_task("arithmetic", path=None, seed=0, n=rows, split="test")
    endpoint = replace(DEFAULTS.endpoint, concurrency=concurrency)
    with tempfile.TemporaryDirectory() as folder, RowStore(folder, {}) as store:
        client = ChatClient(url, "stub", sampling=DEFAULTS.sampling, endpoint=endpoint)
        begun = time.process_time()
        run = run_endpoint(jobs_of(questions, 1), store, client, on_row=lambda row: None)
        spent = time.process_time() - begun
        assert len(store.done) == run.finished == rows
    return run.seconds, spent


def main() -> int:
    """Print the rates as JSON; 1 where the limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3200)
    parser.add_argument("--concurrency", type=int, default=64)
    args = parser.parse_args()
    with stub() as url:
        seconds, cpu_seconds = timed(url, args.rows, args.concurrency)
    rate = args.rows / seconds
    ideal = args.concurrency / LATENCY_S
    share = rate / ideal
    cpu_ms_per_row = 1000 * cpu_seconds / args.rows
    result = {
        "rows": args.rows,
        "seconds": round(seconds, 2),
        "rows_per_s": round(rate, 1),
        "ideal_rows_per_s": ideal,
        "share_of_ideal": round(share, 3),
        "client_cpu_ms_per_row": round(cpu_ms_per_row, 2),
        "within_limits": share >= LIMIT,
    }
    print(json.dumps(result, indent=2))
    return 0 if share >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
