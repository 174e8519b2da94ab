"""Spans of requests: what they contain, which requests have one, and that exporting never delays a request."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from kvsite import wsgi
from kvsite.cluster import LocalCluster
from kvsite.config import ConfigError
from kvsite.logs import current_traceparent
from kvsite.spans import CLOSE_S, ExportReports, Spans
from kvsite.wsgi import Edge, Environ, StartResponse, spans_for
from tests.support.api import Api, make_context, make_store
from tests.support.http import Serve, serve
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

__all__ = ["serve"]  # a fixture

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


class Spanned(Api):
    """A replica whose spans are kept in memory."""

    def __init__(self) -> None:
        super().__init__(make_store())
        self.exporter = InMemorySpanExporter()
        self._application._spans = Spans(SimpleSpanProcessor(self.exporter), "a:1")

    def spans(self) -> Sequence[ReadableSpan]:
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        return found


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Spanned:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    return Spanned()


def test_a_request_has_one_span_with_its_route_and_status_and_without_its_key(api: Spanned) -> None:
    response = api.put("/kvs/secret-key", 1, headers={"X-Request-ID": "r-1"})
    (span,) = api.spans()
    assert (span.name, span.kind, span.parent) == ("PUT /kvs/{key}", SpanKind.SERVER, None)
    assert response.status == 201
    attributes = dict(span.attributes or {})
    assert attributes.pop("causeway.hold_s") == 0.0
    assert attributes == {
        "http.request.method": "PUT",
        "http.route": "/kvs/{key}",
        "http.response.status_code": 201,
        "url.scheme": "http",
        "causeway.request_id": "r-1",
    }
    assert span.resource.attributes["service.name"] == "causeway"
    assert span.resource.attributes["service.instance.id"] == "a:1"
    assert "secret-key" not in span.to_json()


def test_the_span_covers_the_hold_time_and_says_so(api: Spanned) -> None:
    response = api.get("/kvs/a?wait=0.05", {"nobody:1@0000000000000001": 1})
    (span,) = api.spans()
    assert response.status == 503
    assert span.status.status_code is StatusCode.ERROR
    assert span.end_time is not None
    assert span.start_time is not None
    assert span.attributes is not None
    hold_s = span.attributes["causeway.hold_s"]
    assert isinstance(hold_s, float)
    assert 0.04 < hold_s <= (span.end_time - span.start_time) / 1e9


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/kvs", "GET /kvs"),
        ("POST", "/kvs", "POST /kvs"),
        ("GET", "/changes", "GET /changes"),
        ("GET", "/view", "GET /view"),
        ("GET", "/no/such/path/" + "x" * 5000, "GET"),
        ("BREW", "/kvs/tea", "_OTHER /kvs/{key}"),
    ],
)
def test_names_of_spans_are_of_a_fixed_set(api: Spanned, method: str, path: str, name: str) -> None:
    api.ask(method, path)
    (span,) = api.spans()
    assert span.name == name


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/replication/status"])
def test_probes_scrapes_and_peers_have_a_span_only_with_a_traceparent(api: Spanned, path: str) -> None:
    api.ask("GET", path)
    assert api.spans() == ()
    api.ask("GET", path, headers={"traceparent": TRACEPARENT})
    assert len(api.spans()) == 1


def test_a_span_continues_the_trace_of_its_request_and_what_follows_belongs_to_the_span(api: Spanned) -> None:
    seen: list[str] = []

    def application(environ: Environ, start_response: StartResponse) -> list[bytes]:
        seen.append(current_traceparent())
        start_response("200 OK", [])
        return []

    edge = Edge(application, make_context(), None, api._application._spans)
    edge({"REQUEST_METHOD": "GET", "PATH_INFO": "/kvs/a", "HTTP_TRACEPARENT": TRACEPARENT}, lambda *_: None)
    (span,) = api.spans()
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert seen == [f"00-{TRACE}-{span.context.span_id:016x}-01"]


def test_the_caller_decides_whether_its_trace_is_sampled(api: Spanned) -> None:
    api.ask("GET", "/kvs/a", headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert api.spans() == ()


def test_an_exception_outside_of_a_view_ends_the_span(api: Spanned) -> None:
    def broken(environ: Environ, start_response: StartResponse) -> list[bytes]:
        raise LookupError

    Edge(broken, make_context(), None, api._application._spans)(
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/kvs/a"}, lambda *_: None
    )
    (span,) = api.spans()
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 500


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-store")
    api = Spanned()
    api.get("/kvs/a")
    assert api.spans()[0].resource.attributes["service.name"] == "shop-store"


MAX_QUEUED = 2048
"""The default of OpenTelemetry, which docs/limits.md states."""


class Hanging(SpanExporter):
    """An exporter whose collector never answers."""

    def __init__(self) -> None:
        self.is_called = threading.Event()
        self.may_end = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_called.set()
        self.may_end.wait(30)
        return SpanExportResult.FAILURE


def test_a_collector_that_hangs_delays_no_request_fills_no_memory_and_does_not_hold_up_the_end(api: Spanned) -> None:
    exporter = Hanging()
    processor = BatchSpanProcessor(exporter, schedule_delay_millis=10)
    spans = Spans(processor, "a:1")
    try:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/kvs/a"}
        began_s = time.monotonic()
        for _ in range(2 * MAX_QUEUED):
            span = spans.begin({**environ, "causeway.raw_path": "/kvs/a"}, None)
            assert span is not None
            span.end({}, "r", 0.0)
        assert time.monotonic() - began_s < 5
        assert exporter.is_called.wait(5)
        assert len(processor._batch_processor._queue) <= MAX_QUEUED
        began_s = time.monotonic()
        spans.close()
        assert time.monotonic() - began_s < CLOSE_S + 1
    finally:
        exporter.may_end.set()


def test_what_the_packages_log_is_passed_on_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    handler = ExportReports()
    for _ in range(10):
        for line, text in enumerate(("no %s", "bad %s")):
            handler.handle(logging.LogRecord("opentelemetry.x", logging.ERROR, __file__, line, text, ("answer",), None))
    texts = [each.getMessage() for each in caplog.records]
    assert texts == ["exporting spans: no answer", "exporting spans: bad answer"]


# -- from the environment ----------------------------------------------------------------------------------------------

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize("environment", [{}, {ENDPOINT: ""}, {ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "true"}])
def test_without_an_endpoint_nothing_is_imported(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block_import(monkeypatch)
    for name in wsgi.SPAN_ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert spans_for("a:1") is None
    assert caplog.text == ""


def block_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every import of the module fail, as where the packages are not installed."""
    monkeypatch.setitem(sys.modules, "kvsite.spans", None)


def test_without_the_packages_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block_import(monkeypatch)
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    assert spans_for("a:1") is None
    assert "install Causeway with its extra otel" in caplog.text


@pytest.mark.parametrize("variable", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
def test_a_value_that_opentelemetry_rejects_stops_the_start(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv(variable, "-1")
    with pytest.raises(ConfigError, match=f"^{ENDPOINT}: "):
        spans_for("a:1")


# -- of real replicas --------------------------------------------------------------------------------------------------


class Collector:
    """A collector of OpenTelemetry on the loopback interface: keeps the spans that it receives, as (replica, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.credentials: set[str] = set()

    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        assert environ["PATH_INFO"] == "/v1/traces"
        self.credentials.add(environ.get("HTTP_AUTHORIZATION", ""))
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for each in request.resource_spans:
            (replica,) = [a.value.string_value for a in each.resource.attributes if a.key == "service.instance.id"]
            self.spans += [(replica, span) for scope in each.scope_spans for span in scope.spans]
        start_response("200 OK", [("Content-Type", "application/x-protobuf")])
        return [b""]

    def named(self, name: str) -> list[tuple[str, Any]]:
        return [(replica, span) for replica, span in list(self.spans) if span.name == name]


@pytest.fixture
def collector(serve: Serve) -> tuple[Collector, str]:
    made = Collector()
    return made, serve(made)


@pytest.mark.processes
def test_a_write_that_waits_for_acks_is_one_trace_across_replicas(collector: tuple[Collector, str]) -> None:
    """With a cluster secret. Writes that wait for nobody share exchanges, which belong to no trace."""
    received, address = collector
    environment = {
        ENDPOINT: f"http://{address}",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20of-the-collector",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "KV_CLUSTER_SECRET": "a secret of the cluster",
        "KV_LOG_FORMAT": "json",
    }
    with LocalCluster(2, free_ports(2), environment=environment) as cluster:
        requests.put(f"{cluster.url(0)}/kvs/a", json={"value": 1}, timeout=5)
        headers = {"traceparent": TRACEPARENT}
        body = {"value": 2, "w": "all", "w-timeout": 5}
        assert requests.put(f"{cluster.url(0)}/kvs/b", json=body, headers=headers, timeout=10).json()["acks"] == 2
        wait_until(lambda: received.named("POST /replication/exchange"), timeout_s=10)
        wait_until(lambda: len(received.named("PUT /kvs/{key}")) == 2, timeout_s=10)
        log = cluster.log(0) + cluster.log(1)
    (plain,) = [span for _, span in received.named("PUT /kvs/{key}") if span.trace_id.hex() != TRACE]
    (traced,) = [span for _, span in received.named("PUT /kvs/{key}") if span.trace_id.hex() == TRACE]
    assert plain.parent_span_id == b""
    assert traced.parent_span_id.hex() == SPAN
    ((replica, exchange),) = received.named("POST /replication/exchange")
    assert replica == cluster.addresses[1]
    assert (exchange.trace_id.hex(), exchange.parent_span_id) == (TRACE, traced.span_id)
    assert received.credentials == {"Bearer of-the-collector"}
    assert "of-the-collector" not in log
    assert "Traceback" not in log
