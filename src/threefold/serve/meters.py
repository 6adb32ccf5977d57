"""Prometheus metrics of one server: requests, tokens per key, queue, batches, speed, restarts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from threefold.serve.catalog import Model
from threefold.serve.queue import BatchReport

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
        self._cost = Counter(
            "threefold_cost", "What they cost, in the currency of the server.", ["model", "key"], registry=self.registry
        )
        self._loads = Counter(
            "threefold_model_loads",
            "Models that were loaded, or could not be.",
            ["model", "outcome"],
            registry=self.registry,
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
            "model_bytes": "Weights in memory.",
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

    def cost(self, model: str, key: str, units: float) -> None:
        """What one answered request costs, in the currency of the server."""
        self._cost.labels(model, key).inc(units)

    def batches(self, model: Callable[[], str]) -> Callable[[BatchReport], None]:
        """An observer of the batches of one model."""

        def observe(report: BatchReport) -> None:
            name = model()
            self._batch_texts.labels(name).observe(report.texts)
            self._batch_tokens.labels(name).observe(report.tokens)
            self._batch_seconds.labels(name).observe(report.seconds)
            self._failed.labels(name).inc(report.failed)

        return observe

    def watch(self, model: Model) -> None:
        """Show the state of a model that was just loaded whenever the metrics are read, and no more when it is gone."""
        if model.state == "failed":
            self._loads.labels(model.name, "failed").inc()
        if model.state != "ready" or model.service is None:
            for gauge in self._gauges.values():
                with suppress(KeyError):
                    gauge.remove(model.name)
            return
        engine = model.service.engine
        self._loads.labels(model.name, "loaded").inc()
        shown: dict[str, Callable[[], float]] = {
            "queued_tokens": lambda: engine.queued_tokens,
            "tokens_per_second": lambda: engine.pace.rate,
            "worker_restarts": lambda: engine.restarts,
            "ready": lambda: engine.problem() is None,
            "model_bytes": lambda: model.bytes,
        }
        for name, value in shown.items():
            self._gauges[name].labels(model.name).set_function(value)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)
