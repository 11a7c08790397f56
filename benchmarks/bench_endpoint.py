"""Request rate against a local stub with 200 ms latency: concurrency 64 must keep 90 % of the ideal rate (issue 3).

The whole path is timed: request, retry logic, verifier, parser, rows on disk.

    python benchmarks/bench_endpoint.py [--rows 3200] [--concurrency 64]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from caopd_verl.data.registry import load_task
from caopd_verl.evaluation.rows.row import jobs_of
from caopd_verl.evaluation.rows.store import RowStore
from caopd_verl.evaluation.settings import DEFAULTS
from caopd_verl.evaluation.sources.client import ChatClient
from caopd_verl.evaluation.sources.endpoint import run_endpoint

LATENCY, LIMIT = 0.2, 0.9
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3200)
    parser.add_argument("--concurrency", type=int, default=64)
    args = parser.parse_args()
    stub = subprocess.Popen(
        [sys.executable, "-m", "tests.eval_cli.stub", "--latency", str(LATENCY)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert stub.stdout is not None
    try:
        url = stub.stdout.readline().strip()
        questions = load_task("arithmetic", path=None, seed=0, n=args.rows, split="test")
        endpoint = replace(DEFAULTS.endpoint, concurrency=args.concurrency)
        with tempfile.TemporaryDirectory() as folder, RowStore(folder, {}) as store:
            client = ChatClient(url, "stub", sampling=DEFAULTS.sampling, endpoint=endpoint)
            cpu = time.process_time()
            run = run_endpoint(jobs_of(questions, 1), store, client, on_row=lambda row: None)
            cpu = time.process_time() - cpu
            assert len(store.done) == run.finished == args.rows
    finally:
        stub.kill()
        stub.wait()
    ideal = args.concurrency / LATENCY
    share = args.rows / run.seconds / ideal
    result = {
        "rows": args.rows,
        "seconds": round(run.seconds, 2),
        "rows_per_s": round(args.rows / run.seconds, 1),
        "ideal_rows_per_s": ideal,
        "share_of_ideal": round(share, 3),
        "client_cpu_ms_per_row": round(1000 * cpu / args.rows, 2),
    }
    print(json.dumps({**result, "within_limits": share >= LIMIT}, indent=2))
    return 0 if share >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
