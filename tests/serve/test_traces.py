"""Spans of requests and batches, in memory; and none of it where it was not asked for (extra `otel`)."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from tests.serve.fakes import POISON, START_S, FakeCross, ServedEncoder, serving

from threefold.serve.server import Server
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from threefold.serve.traces import Traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def server(spans: InMemorySpanExporter, served: ServedEncoder, tokenizer: Tokenizer) -> Server:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Server(ServeConfig(), lambda: served, lambda: FakeCross(tokenizer), traces=Traces(provider))


def inside(span: ReadableSpan, spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [one for one in spans.get_finished_spans() if one.parent and one.parent.span_id == span.context.span_id]


def test_a_request_and_its_stages_within_the_trace_of_the_caller(
    server: Server, spans: InMemorySpanExporter, served: ServedEncoder
) -> None:
    with serving(server) as url:
        spans.clear()  # the batches of warming up
        body = {"model": "fake-m3", "input": "confidential fox"}
        httpx.post(f"{url}/v1/embeddings", json=body, headers={"traceparent": PARENT}, timeout=START_S)
        httpx.post(f"{url}/rerank", json={"query": "a", "texts": ["a"]}, timeout=START_S)
    request, rerank = (one for one in spans.get_finished_spans() if one.kind.name == "SERVER")
    assert request.name == "POST /v1/embeddings"
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert request.attributes is not None
    assert dict(request.attributes) | {"threefold.id": ""} == {
        "http.request.method": "POST", "http.route": "/v1/embeddings", "http.response.status_code": 200,
        "threefold.id": "", "threefold.model": "fake-m3", "threefold.texts": 1,
        "threefold.tokens": int(served.tokenizer.count(["confidential fox"])[0]),
    }  # fmt: skip
    for span in (request, rerank):
        stages = inside(span, spans)
        assert [one.name for one in stages] == ["tokenize", "queue", "batch"]
        assert all(one.end_time is not None and one.start_time is not None for one in stages)
        assert [one.start_time for one in stages[1:]] == [one.end_time for one in stages[:-1]]
        assert (stages[-1].end_time or 0) <= (span.end_time or 0)
    assert rerank.parent is None
    assert "confidential" not in "".join(one.to_json() for one in spans.get_finished_spans())


def test_batches_have_their_own_spans_and_failures_are_errors(server: Server, spans: InMemorySpanExporter) -> None:
    with serving(server) as url:
        spans.clear()
        body = {"model": "fake-m3", "input": ["a fox", POISON]}
        failed = httpx.post(f"{url}/v1/embeddings", json=body, timeout=START_S)
        httpx.post(f"{url}/v1/embeddings", content=b"{", timeout=START_S)
    found = spans.get_finished_spans()
    batches = [one for one in found if one.name == "model batch"]
    assert batches
    assert all(one.parent is None for one in batches)
    assert sum((one.attributes or {})["threefold.failed"] for one in batches) == 1  # type: ignore[misc]
    requests = [one for one in found if one.kind.name == "SERVER"]
    assert failed.status_code == 500
    assert [one.status.status_code.name for one in requests] == ["ERROR", "UNSET"]


def run(code: str) -> str:
    """What a fresh process prints, which ends well."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_an_endpoint_nothing_is_imported() -> None:
    code = (
        "import sys\n"
        "from threefold.serve.run import make_server\n"
        "from threefold.serve.settings import ServeConfig\n"
        "assert make_server(ServeConfig()).traces is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        "made = make_server(ServeConfig(otlp_endpoint='http://127.0.0.1:9'))\n"
        "assert made.traces is not None\n"
        "made.traces.close()\n"
    )
    run(code)


@pytest.mark.parametrize(
    ("module", "package"),
    [("opentelemetry.sdk", "opentelemetry-sdk"), ("opentelemetry.exporter", "opentelemetry-exporter-otlp-proto-http")],
)
def test_a_missing_package_names_the_extra(module: str, package: str) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        "from threefold.errors import MissingExtraError\n"
        "from threefold.serve.run import make_server\n"
        "from threefold.serve.settings import ServeConfig\n"
        "try:\n"
        "    make_server(ServeConfig(otlp_endpoint='http://127.0.0.1:9'))\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    said = run(code)
    assert f'needs the package "{package}"' in said
    assert 'pip install "threefold[otel]"' in said
