"""OpenTelemetry traces (extra `otel`): a span per request, with its stages, and one per batch. Never a text or a key.

    POST /v1/embeddings                 the request; a child of the caller's span, if it sent `traceparent`
    ├── tokenize
    ├── queue                           waiting for the model
    └── batch                           in the model, until the last text is done
    model batch                         on its own: one forward pass, for many requests

Without an endpoint none of this is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from threefold import __version__
from threefold.errors import MissingExtraError
from threefold.serve.queue import BatchReport

if TYPE_CHECKING:
    from threefold.serve.http import Call

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    _missing = "exporter-otlp-proto-http" if "exporter" in str(error.name) else "sdk"
    raise MissingExtraError(f"opentelemetry-{_missing}", "otel", "a trace") from error

#: What the collectors of OTLP over HTTP listen to.
TRACES_PATH = "/v1/traces"

NANO = 1_000_000_000


class RequestSpan:
    """The span of one request."""

    def __init__(self, span: Span, tracer: Any) -> None:
        self._span = span
        self._inside = set_span_in_context(span)
        self._tracer = tracer

    def stages(self, **seconds: float) -> None:
        """Stages that followed each other and have just ended."""
        now = time.time_ns()
        began = now - round(sum(seconds.values()) * NANO)
        for name, duration in seconds.items():
            ended = began + round(duration * NANO)
            self._tracer.start_span(name, self._inside, start_time=began).end(ended)
            began = ended

    def end(self, status: int, facts: dict[str, Any]) -> None:
        """The answer is ready."""
        self._span.set_attribute("http.response.status_code", status)
        for name, value in facts.items():
            self._span.set_attribute(f"threefold.{name}", value)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Traces:
    """The traces of a server, sent by a provider's processors."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("threefold", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> Self:
        """Traces that go to a collector, by OTLP over HTTP. Its variables (`OTEL_...`) say the rest."""
        provider = TracerProvider(
            resource=Resource.create({"service.name": "threefold", "service.version": __version__})
        )
        address = endpoint.rstrip("/")
        address = address if address.endswith(TRACES_PATH) else address + TRACES_PATH
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(address)))
        return cls(provider)

    def begin(self, call: Call) -> RequestSpan:
        """The span of a request, within that of its caller."""
        method = call.request.method
        outside: Context = self._propagator.extract(dict(call.request.headers))
        facts = {"http.request.method": method, "http.route": call.route, "threefold.id": call.id}
        span = self._tracer.start_span(f"{method} {call.route}", outside, SpanKind.SERVER, facts)
        return RequestSpan(span, self._tracer)

    def batches(self, model: Callable[[], str]) -> Callable[[BatchReport], None]:
        """An observer of the batches of one model."""

        def observe(report: BatchReport) -> None:
            ended = time.time_ns()
            counts = {"texts": report.texts, "tokens": report.tokens, "failed": report.failed}
            span = self._tracer.start_span(
                "model batch",
                Context(),
                attributes={"threefold.model": model(), **{f"threefold.{name}": n for name, n in counts.items()}},
                start_time=ended - round(report.seconds * NANO),
            )
            span.end(ended)

        return observe

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
