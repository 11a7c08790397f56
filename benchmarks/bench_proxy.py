"""What the proxy adds to a request: at most 5 ms at the median, against local stubs, direct and proxied interleaved.

Stub endpoints answer at once, so a request's time is the overhead of all that carries it; the pieces of a stream come
5 ms apart, as a model would write them. For each kind of request the direct way and the way through the proxy are timed
in turn, over kept-alive connections. A deferred request needs two calls, so it is compared with a direct call to the
small and one to the large stub. Times are to the last byte; `first_piece`: to the first piece of the large's stream.
`proxy_cpu_ms` is the proxy's own processor time for a request, which a busy machine does not change (Linux only).

    python benchmarks/bench_proxy.py [--requests 1000] [--streams 100]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx

LIMIT_MS, WARM_UP = 5.0, 20  # the first requests open connections
ROOT = Path(__file__).resolve().parents[1]
WORDS, INTERVAL_S = "some reasoning, " * 8, 0.005
TEXTS = {
    "small": f"{WORDS}\nConfidence: 0.90",
    "unsure": f"{WORDS}\nConfidence: 0.20",
    "large": WORDS,
}
KINDS = ("served", "deferred", "served_stream", "deferred_stream")


class Proxy(NamedTuple):
    url: str
    pid: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind without streaming")
    parser.add_argument("--streams", type=int, default=100, help="of each kind with streaming")
    args = parser.parse_args()
    processes: list[subprocess.Popen[str]] = []
    try:
        urls = {name: _stub(text, processes) for name, text in TEXTS.items()}
        proxies = {
            name: _proxy(urls[name], urls["large"], processes) for name in ("small", "unsure")
        }
        results = {
            kind: _measure(kind, urls, proxies, args.streams if "stream" in kind else args.requests)
            for kind in KINDS
        }
    finally:
        for process in processes:
            process.kill()
            process.wait()
    within = all(result["added_ms_median"] <= LIMIT_MS for result in results.values())
    head = {
        "requests": args.requests,
        "streams": args.streams,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps({**head, **results, "limit_ms": LIMIT_MS, "within_limits": within}, indent=2))
    return 0 if within else 1


def _measure(kind: str, urls: dict[str, str], proxies: dict[str, Proxy], n: int) -> dict[str, Any]:
    """Times in ms; `added` is proxied minus direct of the pair that was timed in turn."""
    small, answered_by = ("small", "small") if kind.startswith("served") else ("unsure", "large")
    body = {"messages": [{"role": "user", "content": WORDS}], "stream": kind.endswith("stream")}
    direct_urls = [urls[small]] if small == "small" else [urls[small], urls["large"]]
    direct, proxied = [], []
    proxy = proxies[small]
    cpu = _cpu_ms(proxy.pid)
    with httpx.Client(timeout=60) as client:
        for i in range(n + WARM_UP):
            ways = [(direct, direct_urls, "stub"), (proxied, [proxy.url], "caopd-cascade")]
            for times, way, model in ways if i % 2 else reversed(ways):
                begun = time.perf_counter()
                for url in way:
                    headers, first = _ask(client, url, {**body, "model": model})
                times.append((1e3 * (time.perf_counter() - begun), 1e3 * (first - begun)))
                assert model == "stub" or headers["x-caopd-route"] == answered_by, headers
    spent = _cpu_ms(proxy.pid)
    out: dict[str, Any] = {}
    if cpu is not None and spent is not None:
        out["proxy_cpu_ms"] = round((spent - cpu) / (n + WARM_UP), 2)
    out |= _figures("", [t[0] for t in direct], [t[0] for t in proxied])
    if kind == "deferred_stream":
        out |= _figures("first_piece_", [t[1] for t in direct], [t[1] for t in proxied])
    return out


def _cpu_ms(pid: int) -> float | None:
    """Processor time of a process so far; None where there is no /proc."""
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return None
    user, system = path.read_text().rsplit(")", 1)[1].split()[11:13]
    return 1e3 * (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _ask(client: httpx.Client, url: str, body: dict[str, object]) -> tuple[httpx.Headers, float]:
    """The response's headers, and when its first piece came."""
    first = 0.0
    with client.stream("POST", f"{url}/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for _ in response.iter_raw():
            first = first or time.perf_counter()
    return response.headers, first


def _figures(name: str, direct: list[float], proxied: list[float]) -> dict[str, float]:
    direct, proxied = direct[WARM_UP:], proxied[WARM_UP:]
    added = [p - d for p, d in zip(proxied, direct, strict=True)]
    return {
        f"{name}direct_ms_median": round(statistics.median(direct), 2),
        f"{name}proxied_ms_median": round(statistics.median(proxied), 2),
        f"{name}added_ms_median": round(statistics.median(added), 2),
        f"{name}added_ms_p95": round(statistics.quantiles(added, n=20)[-1], 2),
    }


def _stub(text: str, processes: list[subprocess.Popen[str]]) -> str:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cascade.stub", "--text", text, "--interval", str(INTERVAL_S)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _proxy(small: str, large: str, processes: list[subprocess.Popen[str]]) -> Proxy:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        "proxy",
        "--small-url",
        small,
        "--small-model",
        "s",
        "--large-url",
        large,
        "--large-model",
        "l",
    ]
    more = ["--threshold", "0.7", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "caopd_verl.cli", *command, *more], text=True, cwd=ROOT
    )
    processes.append(process)
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/health")
            return Proxy(f"http://127.0.0.1:{port}/v1", process.pid)
        except httpx.ConnectError:
            assert process.poll() is None, "the proxy has ended"
            time.sleep(0.1)
    raise TimeoutError("the proxy does not answer")


if __name__ == "__main__":
    sys.exit(main())
