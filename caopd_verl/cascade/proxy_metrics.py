"""The proxy's Prometheus metrics, in a registry of their own; names begin with `caopd_proxy_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# The ten bins that the evaluation's ECE has by default, so that both can be compared.
_TENTHS = tuple(i / 10 for i in range(1, 11))
# From what the proxy itself adds (milliseconds) to the longest answers (minutes).
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ProxyMetrics:
    """Counters, histograms and gauges; `registry` holds them for `/metrics`.

    Args:
        threshold: confidence from which the small model is served.
    """

    def __init__(self, threshold: float) -> None:
        # Not prometheus_client's global one: two proxies in a process would share their counts.
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "caopd_proxy_requests",
            "Answered requests, by who answered, why, and HTTP status",
            ["route", "reason", "status"],
            registry=registry,
        )
        self.small_failures = Counter(
            "caopd_proxy_small_failures",
            "Failures of the small model, after which the large one was asked",
            ["kind"],
            registry=registry,
        )
        self.broken_streams = Counter(
            "caopd_proxy_broken_streams",
            "Streams of the large model that broke off midway",
            registry=registry,
        )
        self.disconnects = Counter(
            "caopd_proxy_client_disconnects",
            "Clients that left before their answer",
            registry=registry,
        )
        self.confidence = Histogram(
            "caopd_proxy_confidence",
            "Confidence stated by the small model",
            buckets=_TENTHS,
            registry=registry,
        )
        self.upstream_seconds = Histogram(
            "caopd_proxy_upstream_seconds",
            "Time to an upstream's whole response (large, streaming: to its headers)",
            ["upstream"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "caopd_proxy_request_seconds",
            "Time to the end of the answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "caopd_proxy_in_flight", "Requests being answered", registry=registry
        )
        shown_threshold = Gauge(
            "caopd_proxy_threshold",
            "Confidence from which the small model is served",
            registry=registry,
        )
        shown_threshold.set(threshold)
