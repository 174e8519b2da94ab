"""Spans of requests, exported by OpenTelemetry. Needs the extra ``otel``: kvsite/wsgi.py imports it only on demand.

The edge makes one span for a request, because the fast path serves the API without Django's middleware. A span covers
the same time as the log of slow requests: from when the server passes the request on until its response is ready.

Requests of probes, scrapes and peers come every second, so they have a span only if they carry a ``traceparent``.

A span has the route and not the path, which contains the key. Its only text of a client is the request id.

Exporting never delays a request: a finished span is appended to a bounded queue, and one thread sends what is queued.
When the queue is full (``OTEL_BSP_MAX_QUEUE_SIZE``), the oldest spans are dropped.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from kvsite import slow_requests
from kvsite.fast_path import API_ROUTES
from kvsite.trace_context import KNOWN_FLAGS, TraceContext
from replication.rate_limit import LogRateLimiter
from store.api.keys import RAW_PATH
from store.version import VERSION

logger = logging.getLogger("causeway.spans")

CREDENTIALS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""Variables with secrets: removed from the environment once they are read."""

EXPORT_TIMEOUT_S: Final = 5.0
"""How long sending one batch may take."""

CLOSE_S: Final = 0.3
"""How long the end of the process waits for the last spans. It has to end in time (contract 4)."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD: Final = "_OTHER"
"""Stands for every other method, as OpenTelemetry's conventions say."""

QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
QUIET_PREFIX: Final = "/replication/"
"""Routes of probes, scrapes and peers."""

_EXACT: Final = frozenset(f"/{route.path}" for route in API_ROUTES if not route.takes_rest)
_PREFIXES: Final = tuple(f"/{route.path}" for route in API_ROUTES if route.takes_rest)


def route_of(path: str) -> str:
    """Return the route of a path, such as ``/kvs/{key}``; an empty text if it is no route of the API."""
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            return f"{prefix}{{key}}"
    return path if path in _EXACT else ""


class RequestSpan:
    """The span of one request. ``trace``: the position in the trace of the requests that follow from it."""

    def __init__(self, span: Span) -> None:
        context = span.get_span_context()
        flags = int(context.trace_flags) & KNOWN_FLAGS
        self.trace = TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", flags)
        self._span = span

    def end(self, environ: Mapping[str, Any], request_id: str, hold_s: float) -> None:
        """End the span: the response is ready. ``hold_s``: how long the request waited because it asked to."""
        span = self._span
        if span.is_recording():
            status = int(environ.get(slow_requests.STATUS, "500")[:3])
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("causeway.request_id", request_id)
            span.set_attribute("causeway.hold_s", round(hold_s, 6))
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()


class Spans:
    """Makes the spans of the replica at ``address``, and passes them to ``processor``."""

    def __init__(self, processor: SpanProcessor, address: str) -> None:
        own = {"service.name": "causeway", "service.version": VERSION, "service.instance.id": address}
        stated = OTELResourceDetector().detect().attributes  # by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        resource = Resource.create({name: text for name, text in own.items() if name not in stated})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("causeway", VERSION)

    @classmethod
    def from_environment(cls, address: str) -> Self:
        """Return spans that are exported as the variables of OpenTelemetry say, by OTLP over HTTP."""
        reports = logging.getLogger("opentelemetry")
        if not any(isinstance(handler, ExportReports) for handler in reports.handlers):
            reports.addHandler(ExportReports())
            reports.propagate = False
        exporter = OTLPSpanExporter(timeout=EXPORT_TIMEOUT_S)
        for variable in CREDENTIALS:
            os.environ.pop(variable, None)
        return cls(BatchSpanProcessor(exporter), address)

    def begin(self, environ: Mapping[str, Any], trace: TraceContext | None) -> RequestSpan | None:
        """Begin the span of a request; None if it gets none. ``trace``: what its ``traceparent`` states."""
        route = route_of(environ[RAW_PATH])
        if trace is None and (route in QUIET_ROUTES or route.startswith(QUIET_PREFIX)):
            return None
        method = environ["REQUEST_METHOD"]
        method = method if method in METHODS else OTHER_METHOD
        attributes = {"http.request.method": method, "url.scheme": environ.get("wsgi.url_scheme", "http")}
        if route:
            attributes["http.route"] = route
        span = self._tracer.start_span(
            f"{method} {route}".rstrip(), context=_context(trace), kind=SpanKind.SERVER, attributes=attributes
        )
        return RequestSpan(span)

    def close(self) -> None:
        """Send what is queued, and end. Waits at most ``CLOSE_S`` for that."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def _context(trace: TraceContext | None) -> Context:
    if trace is None:
        return Context()
    flags = TraceFlags(trace.flags)
    parent = SpanContext(int(trace.trace_id, 16), int(trace.parent_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(parent), Context())


class ExportReports(logging.Handler):
    """Passes on what the packages log, each kind of line once a minute: an attempt fails every few seconds."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._rate = LogRateLimiter()

    def emit(self, record: logging.LogRecord) -> None:
        """Log the message of ``record``, without its traceback."""
        if self._rate.allow(f"{record.name}:{record.lineno}", time.monotonic()):
            logger.warning("exporting spans: %s", record.getMessage())
