"""Prometheus metrics of one server: requests, tokens per key, queue, batches, speed, restarts."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from threefold.serve.queue import BatchReport, Engine

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 64, 256, 1_024, 4_096, 16_384, 65_536)


class Meters:
    """The metrics; each server has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "threefold_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "threefold_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self._tokens = Counter(
            "threefold_tokens", "Tokens that requests were answered for.", ["model", "key"], registry=self.registry
        )
        self._batch_texts = Histogram(
            "threefold_batch_texts", "Texts of a batch.", ["model"], buckets=TEXTS, registry=self.registry
        )
        self._batch_tokens = Histogram(
            "threefold_batch_tokens", "Tokens of a batch.", ["model"], buckets=TOKENS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "threefold_batch_seconds", "Time of a batch.", ["model"], buckets=SECONDS, registry=self.registry
        )
        self._failed = Counter(
            "threefold_failed_texts", "Texts on which the model failed.", ["model"], registry=self.registry
        )
        gauges = {
            "queued_tokens": "Tokens that wait.",
            "tokens_per_second": "Measured speed of the model.",
            "worker_restarts": "Workers that were replaced.",
            "ready": "1 when requests are answered.",
        }
        self._gauges = {
            name: Gauge(f"threefold_{name}", text, ["model"], registry=self.registry) for name, text in gauges.items()
        }

    def request(self, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, model: str, key: str, count: int) -> None:
        """Tokens of one answered request."""
        self._tokens.labels(model, key).inc(count)

    def batches(self, role: str) -> Callable[[BatchReport], None]:
        """An observer of the batches of one engine. `role` is `encoder` or `reranker`."""

        def observe(report: BatchReport) -> None:
            self._batch_texts.labels(role).observe(report.texts)
            self._batch_tokens.labels(role).observe(report.tokens)
            self._batch_seconds.labels(role).observe(report.seconds)
            self._failed.labels(role).inc(report.failed)

        return observe

    def watch(self, role: str, engine: Engine[object]) -> None:
        """Show the state of an engine whenever the metrics are read."""
        self._gauges["queued_tokens"].labels(role).set_function(lambda: engine.queued_tokens)
        self._gauges["tokens_per_second"].labels(role).set_function(lambda: engine.pace.rate)
        self._gauges["worker_restarts"].labels(role).set_function(lambda: engine.restarts)
        self._gauges["ready"].labels(role).set_function(lambda: engine.problem() is None)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)
