"""What the proxy adds to a request: at most 5 ms at the median, against local stubs.

Stub endpoints answer at once, so a request's time is the overhead of all that carries it; the
pieces of a stream come 5 ms apart, as a model would write them. For each kind of request the direct
way and the way through the proxy are timed in turn, over kept-alive connections. A deferred request
needs two calls, so it is compared with a direct call to the small and one to the large stub. Times
are to the last byte; `first_piece`: to the first piece of the large model's stream. `proxy_cpu_ms`
is the proxy's own processor time for a request, which a busy machine does not change (Linux only).

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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx

LIMIT_MS = 5.0
WARM_UP = 20  # requests left out: the first ones open connections
ROOT = Path(__file__).resolve().parents[1]
WORDS = "some reasoning, " * 8
INTERVAL_S = 0.005
TEXTS = {
    "small": f"{WORDS}\nConfidence: 0.90",
    "unsure": f"{WORDS}\nConfidence: 0.20",
    "large": WORDS,
}
KINDS = ("served", "deferred", "served_stream", "deferred_stream")
STARTS_WITHIN_S = 60


class Proxy(NamedTuple):
    """A running proxy: its address up to `/v1`, and its process."""

    url: str
    pid: int


class Timed(NamedTuple):
    """Milliseconds of a request, to the last byte and to the first piece of the last response."""

    whole: float
    first_piece: float


def main() -> int:
    """Print all figures as JSON; 1 where the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind without streaming")
    parser.add_argument("--streams", type=int, default=100, help="of each kind with streaming")
    args = parser.parse_args()
    results = {}
    with ExitStack() as running:
        urls = {name: start_stub(text, running) for name, text in TEXTS.items()}
        proxies = {}
        for name in ("small", "unsure"):
            proxies[name] = start_proxy(urls[name], urls["large"], running)
        for kind in KINDS:
            n = args.streams if kind.endswith("stream") else args.requests
            results[kind] = measure(kind, urls, proxies, n)
    within = all(result["added_ms_median"] <= LIMIT_MS for result in results.values())
    summary = {
        "requests": args.requests,
        "streams": args.streams,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        **results,
        "limit_ms": LIMIT_MS,
        "within_limits": within,
    }
    print(json.dumps(summary, indent=2))
    return 0 if within else 1


def measure(kind: str, urls: dict[str, str], proxies: dict[str, Proxy], n: int) -> dict[str, Any]:
    """The figures of one kind of request; `added` is proxied minus direct of each pair."""
    stream = kind.endswith("stream")
    if kind.startswith("served"):
        small, answered_by, direct_urls = "small", "small", [urls["small"]]
    else:
        small, answered_by, direct_urls = "unsure", "large", [urls["unsure"], urls["large"]]
    proxy = proxies[small]
    body = {"messages": [{"role": "user", "content": WORDS}], "stream": stream}
    direct, proxied = [], []
    cpu = cpu_ms(proxy.pid)
    with httpx.Client(timeout=60) as client:
        for number in range(n + WARM_UP):
            # In turn, so that neither is always the one that finds a warm connection.
            for through_proxy in (False, True) if number % 2 else (True, False):
                if through_proxy:
                    asked = {**body, "model": "caopd-cascade"}
                    proxied.append(ask(client, [proxy.url], asked, answered_by))
                else:
                    direct.append(ask(client, direct_urls, {**body, "model": "stub"}, None))
    spent = cpu_ms(proxy.pid)
    found: dict[str, Any] = {}
    if cpu is not None and spent is not None:
        found["proxy_cpu_ms"] = round((spent - cpu) / (n + WARM_UP), 2)
    found |= figures("", [t.whole for t in direct], [t.whole for t in proxied])
    if kind == "deferred_stream":
        first_direct = [t.first_piece for t in direct]
        found |= figures("first_piece_", first_direct, [t.first_piece for t in proxied])
    return found


def ask(
    client: httpx.Client, urls: Sequence[str], body: dict[str, Any], answered_by: str | None
) -> Timed:
    """Ask each of `urls` once; `answered_by`: whose answer the proxy must say that it is."""
    begun = time.perf_counter()
    first = 0.0
    for url in urls:
        first = 0.0
        with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            for _ in response.iter_raw():
                first = first or time.perf_counter()
    ended = time.perf_counter()
    assert answered_by in (None, response.headers.get("x-caopd-route")), response.headers
    return Timed(1e3 * (ended - begun), 1e3 * (first - begun))


def cpu_ms(pid: int) -> float | None:
    """Processor time of a process so far; None where there is no /proc."""
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return None
    # The process's name comes first, in brackets, and may hold blanks.
    _, _, fields = path.read_text().rpartition(")")
    user, system = fields.split()[11:13]
    ticks = int(user) + int(system)
    return 1e3 * ticks / os.sysconf("SC_CLK_TCK")


def figures(name: str, direct: list[float], proxied: list[float]) -> dict[str, float]:
    """Medians and the 95th percentile in ms, without the warm-up."""
    direct, proxied = direct[WARM_UP:], proxied[WARM_UP:]
    pairs = zip(proxied, direct, strict=True)
    added = [through - straight for through, straight in pairs]
    found = {
        "direct_ms_median": statistics.median(direct),
        "proxied_ms_median": statistics.median(proxied),
        "added_ms_median": statistics.median(added),
        "added_ms_p95": statistics.quantiles(added, n=20)[-1],
    }
    return {f"{name}{key}": round(value, 2) for key, value in found.items()}


def start(arguments: Sequence[str], running: ExitStack, **pipes: Any) -> subprocess.Popen[str]:
    """A Python process that ends with `running`."""
    command = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
    running.callback(process.wait)
    running.callback(process.kill)
    return process


def start_stub(text: str, running: ExitStack) -> str:
    """The address of a stub endpoint that says `text`."""
    options = ["--text", text, "--interval", str(INTERVAL_S)]
    process = start(["tests.cascade.stub", *options], running, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process.stdout.readline().strip()


def start_proxy(small: str, large: str, running: ExitStack) -> Proxy:
    """A proxy that answers, between the endpoints `small` and `large`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    upstreams = ["--small-url", small, "--small-model", "s", "--large-url", large]
    options = ["--large-model", "l", "--threshold", "0.7", "--port", str(port)]
    process = start(["caopd_verl.cli", "proxy", *upstreams, *options], running)
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health")
            return Proxy(f"http://127.0.0.1:{port}/v1", process.pid)
        except httpx.ConnectError:
            assert process.poll() is None, "the proxy has ended"
            time.sleep(0.1)
    raise TimeoutError("the proxy does not answer")


if __name__ == "__main__":
    sys.exit(main())
