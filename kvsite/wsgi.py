"""The edge: the outermost WSGI application. It handles what must be right before Django sees a request.

Paths. granian decodes the path once and passes only the result, as PATH_INFO: ``%FF`` becomes the byte 0xFF, and
``%25FF`` becomes the three characters ``%FF``. The two keys are still different. Django's request then turns the byte
0xFF into the characters ``%FF``, and the two keys become one. So the edge keeps the original PATH_INFO for the views.
(An invalid escape such as ``%zz`` stays as it is, so ``%zz`` and ``%25zz`` name the same key.)

Bodies. The edge reads no body, except that of a request with a valid proof, which covers the body, and a form of the
dashboard. Views of the API read theirs when they need them, within the bounds of store/api/bodies.py.

Access. The guard (guard.py), CORS (cors.py) and the Host header (hosts.py) are checked here, so that every route is
protected.

The edge adds ``X-Request-ID`` to every response, and logs slow requests (slow_requests.py). It reads the trace that a
request belongs to (trace_context.py), and makes its span if spans are exported (spans.py).
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from rest_framework.exceptions import APIException

from kvsite import slow_requests
from kvsite.config import ConfigError
from kvsite.context import ServerContext
from kvsite.cors import ORIGIN, Cors
from kvsite.denied_responses import RequestDenied, SignReply
from kvsite.errors import ERROR_PAGE_HEADERS, error_page, wants_page
from kvsite.guard import DASHBOARD, PROOF, Guard
from kvsite.hosts import HostCheck
from kvsite.logs import RequestIds
from kvsite.trace_context import TRACEPARENT, TraceContext
from replication.messages import MAX_MESSAGE_BYTES
from replication.proof import HEADER
from replication.refusals import RefusalKind
from replication.rejected_senders import CLAIMED_SENDER
from store.api.bodies import RECEIVED, RESERVED, SMALL_BYTES
from store.api.context import CONTEXT
from store.api.errors import TOO_LARGE
from store.api.event_stream import EventStream
from store.api.keys import RAW_PATH
from store.api.large_responses import OpenStream
from store.api.usage import hint_of

if TYPE_CHECKING:
    from kvsite.spans import Spans

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

logger = logging.getLogger(__name__)

Headers = list[tuple[str, str]]

PEER_PATHS = ("/replication/exchange", "/replication/snapshot")

CLOSE: Final = ("Connection", "close")

HOST_HINT: Final = (
    "Use the replica's address as GET /view shows it, or its IP address. To use another name, add it to "
    "KV_ALLOWED_HOSTS of every replica."
)

UNSIGNED: Final[Mapping[type, tuple[str, str]]] = {
    EventStream: (
        "An event stream has no end, so it cannot be signed; poll with wait",
        "Send Accept: application/json, and wait=30 in the query.",
    ),
    OpenStream: (
        "An export is not in memory as a whole, so it cannot be signed",
        "Leave X-Causeway-Proof out, and send Authorization: Bearer with a token if KV_API_TOKENS is set.",
    ),
}
"""What a request with a proof gets for a response that cannot be signed: the error and its hint."""

SPAN_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of OpenTelemetry, one of which turns spans on."""

NO_SPANS: Final = (
    "%s is set, but spans are not exported, because packages are missing: "
    "install Causeway with its extra otel (docs/operations.md)"
)

LARGE_REQUEST_BYTES: Final = 16 * 1024
"""From this size on, the server's buffer of a connection stays large after the request."""


def _is_large(environ: Environ) -> bool:
    """Return whether the request has at least ``LARGE_REQUEST_BYTES``, or an unknown number of them."""
    declared = environ.get("CONTENT_LENGTH") or "0"
    if "HTTP_TRANSFER_ENCODING" in environ or not declared.isdecimal() or int(declared) >= LARGE_REQUEST_BYTES:
        return True
    texts = [text for name, text in environ.items() if name.startswith(("HTTP_", "PATH_INFO", "QUERY_STRING"))]
    return sum(map(len, texts)) >= LARGE_REQUEST_BYTES


class Edge:
    """A WSGI application around ``application`` that serves the replica of ``context``.

    ``guard``: None allows every request. ``spans``: None makes no spans.
    """

    def __init__(
        self, application: Application, context: ServerContext, guard: Guard | None, spans: Spans | None = None
    ) -> None:
        config = context.config
        self._application = application
        self._context = context
        self._guard = guard
        self._spans = spans
        self._cors = Cors(config.cors_origins)
        self._hosts = HostCheck(config, context.node.members)
        self._request_ids = RequestIds()
        self._hold_time = context.engine.hold_time
        self._bodies = context.bodies
        self._in_progress = context.bodies.in_progress
        self._slow_request_s = config.slow_request_s or math.inf
        self._common_headers: Headers = self._cors.common_headers

    def close_connections(self) -> None:
        """Add ``Connection: close`` to every response from this moment on, because the server is about to stop."""
        self._common_headers = [*self._cors.common_headers, CLOSE]

    def close_spans(self) -> None:
        """Send the spans that are left."""
        if self._spans is not None:
            self._spans.close()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        thread, began_s = get_ident(), monotonic()
        self._hold_time.seconds = 0.0
        environ[CONTEXT] = self._context
        environ[RAW_PATH] = environ["PATH_INFO"]
        environ[RECEIVED] = began_s
        trace = TraceContext.parse(environ[TRACEPARENT]) if TRACEPARENT in environ else None
        span = None
        if self._spans is not None and (span := self._spans.begin(environ, trace)) is not None:
            trace = span.trace
        request_id = self._request_ids.assign(environ.get("HTTP_X_REQUEST_ID"), trace)
        added_headers = [("X-Request-ID", request_id), *self._common_headers]
        self._bodies.note_request()
        if self._bodies.has_many_connections and _is_large(environ):
            added_headers.append(CLOSE)

        def respond(status: str, headers: Headers, *exc_info: Any) -> Any:
            environ[slow_requests.STATUS] = status
            headers += added_headers
            return start_response(status, headers, *exc_info)

        self._in_progress[thread] = environ
        if self._guard is None and PROOF in environ:
            # The sender has a cluster secret. It does not accept the response of a replica without one.
            self._note_rejected(environ, "secret")
        try:
            if self._guard is None and ORIGIN not in environ:
                body = self._serve(environ, respond)
            else:
                body = self._serve_checked(environ, respond, added_headers)
        finally:
            del self._in_progress[thread]
            if RESERVED in environ:
                self._bodies.release(environ)
            if span is not None:
                span.end(environ, request_id, self._hold_time.seconds)
        elapsed_s = monotonic() - began_s
        if elapsed_s > self._slow_request_s:
            hold_s = self._hold_time.seconds
            if elapsed_s - hold_s > self._slow_request_s:
                slow_requests.log_slow_request(environ, elapsed_s - hold_s, hold_s)
        return body

    def _serve_checked(self, environ: Environ, respond: StartResponse, added_headers: Headers) -> Iterable[bytes]:
        """Serve a request if CORS and the guard allow it.

        ``added_headers``: headers that ``respond`` adds to the response; CORS appends to them.
        """
        guard = self._guard
        try:
            if ORIGIN in environ:
                added_headers += self._cors.headers(environ)
                if (preflight := self._cors.preflight(environ)) is not None:
                    return send_error(respond, 204, headers=preflight)
                self._cors.check(environ)
            if guard is None:
                return self._serve(environ, respond)
            authorization = guard.authorize(environ)
            if authorization.sign is None:
                return self._serve(environ, respond)
            self._read_ahead(environ, MAX_MESSAGE_BYTES)
            guard.check_body(environ, authorization)
            return self._serve_signed(environ, respond, authorization.sign)
        except RequestDenied as denied:
            details = self._details(environ, denied.rejected)
            if details and denied.sign is None:  # Whoever has the secret only tries again, by the right clock.
                self._note_rejected(environ, denied.rejected)
            details |= {"hint": denied.hint} if denied.hint else {}
            return send_error(respond, denied.status, denied.error, denied.headers, denied.sign, details)

    def _details(self, environ: Environ, rejected: RefusalKind) -> dict[str, str]:
        """Return what tells a peer's program why it is rejected (replication/refusals.py); nothing for others."""
        if PROOF in environ or environ["PATH_INFO"].startswith(PEER_PATHS):
            return {"rejected": rejected, "state": self._context.node.state}
        return {}

    def _note_rejected(self, environ: Environ, rejected: RefusalKind) -> None:
        """Note who claims to have sent the request, for operators."""
        source = environ.get("REMOTE_ADDR", "")
        self._context.node.rejected_senders.note(environ.get(CLAIMED_SENDER, ""), source, rejected)

    def _serve_signed(self, environ: Environ, respond: StartResponse, sign: SignReply) -> Iterable[bytes]:
        """Serve a request that has a proof, and sign the response."""
        started: list[Any] = []
        chunks = self._serve(environ, lambda *args: started.extend(args))
        if isinstance(chunks, EventStream | OpenStream):
            chunks.close()
            error, hint = UNSIGNED[type(chunks)]
            raise RequestDenied(406, error, sign=sign, hint=hint)
        try:
            body = b"".join(chunks)
        finally:
            if close := getattr(chunks, "close", None):
                close()
        status, headers = started[:2]
        respond(status, [*headers, (HEADER, sign(int(status[:3]), body))])
        return [body]

    def _read_ahead(self, environ: Environ, max_bytes: int) -> None:
        """Read the body of a request and replace ``wsgi.input`` by it. Raises ``RequestDenied``."""
        declared = environ.get("CONTENT_LENGTH") or "0"
        if not declared.isdecimal() or int(declared) > max_bytes:
            raise RequestDenied(413, "Body is too large", hint=TOO_LARGE)
        try:
            body = self._bodies.read(environ, max_bytes) if int(declared) else b""
        except APIException as exc:
            raise RequestDenied(exc.status_code, str(exc.detail), hint=hint_of(exc)) from None
        environ["wsgi.input"] = io.BytesIO(body)

    def _serve(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        if not self._hosts.allows(host):
            logger.warning("rejected %s %.200r: Host %.100r", environ["REQUEST_METHOD"], environ["PATH_INFO"], host)
            error = "Host header names no member of this cluster; see KV_ALLOWED_HOSTS"
            details = {**self._details(environ, "name"), "hint": HOST_HINT}
            if "rejected" in details:
                self._note_rejected(environ, "name")
            return self._send_error(environ, start_response, 400, error, details)
        if "HTTP_TRANSFER_ENCODING" in environ and not environ.get("wsgi.input_terminated"):
            # The development server does not know where a chunked body ends, and would wait forever.
            error, hint = "This server does not accept chunked bodies", "Send the body with a Content-Length."
            return send_error(start_response, 411, error, details={"hint": hint})
        if environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"].startswith(DASHBOARD):
            try:
                self._read_ahead(environ, SMALL_BYTES)
            except RequestDenied as denied:
                details = {"hint": denied.hint} if denied.hint else {}
                return self._send_error(environ, start_response, denied.status, denied.error, details)
        try:
            response = self._application(environ, start_response)
            return response if isinstance(response, list) else as_list(response)
        except Exception:
            # Django handles exceptions of views. This is for exceptions outside of views, for example in middleware.
            logger.exception("exception outside of a view: %s %r", environ["REQUEST_METHOD"], environ["PATH_INFO"])
            return self._send_error(environ, start_response, 500, "Internal error", {})

    def _send_error(
        self, environ: Environ, start_response: StartResponse, status: int, error: str, details: Mapping[str, str]
    ) -> list[bytes]:
        """Send an error: a page for a browser on a page's path, or else JSON."""
        if wants_page(environ):
            return send_error_page(start_response, status, error, details.get("hint", ""))
        return send_error(start_response, status, error, details=details)


def as_list(response: Iterable[bytes]) -> Iterable[bytes]:
    """Return the body of a complete Django response as a list, and close the response.

    granian sends a list in one piece, with its length.
    """
    if not isinstance(response, HttpResponse):
        return response
    try:
        return [response.content]
    finally:
        response.close()


def send_error(
    start_response: StartResponse,
    status: int,
    error: str = "",
    headers: Iterable[tuple[str, str]] = (),
    sign: SignReply | None = None,
    details: Mapping[str, str] | None = None,
) -> list[bytes]:
    """Send ``{"error": …}`` and ``details``; an empty ``error`` sends no body. ``sign``: signs the response."""
    body = msgspec.json.encode({"error": error, **(details or {})}) if error else b""
    body_headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))] if error else []
    body_headers += [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    proof = [] if sign is None else [(HEADER, sign(status, body))]
    start_response(f"{status} {HTTPStatus(status).phrase}", [*body_headers, *headers, *proof])
    return [body]


def send_error_page(start_response: StartResponse, status: int, error: str, hint: str) -> list[bytes]:
    """Send the error as a page for a browser."""
    body = error_page(status, error, hint)
    about_body = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))]
    phrase = HTTPStatus(status).phrase
    start_response(f"{status} {phrase}", [*about_body, *ERROR_PAGE_HEADERS.items()])
    return [body]


def load(context: ServerContext) -> Edge:
    """Return the whole WSGI application: the edge, the fast path for the API, and Django for everything else."""
    django = get_wsgi_application()
    from kvsite.fast_path import FastPath  # noqa: PLC0415  # imports views, which need Django to be set up

    guard, spans = Guard.for_config(context.config, context.node.id), spans_for(context.config.address)
    return Edge(FastPath(django), context, guard, spans)


def spans_for(address: str) -> Spans | None:
    """Return the spans of the replica at ``address``; None if the environment does not ask for spans.

    Raises ``ConfigError`` if OpenTelemetry rejects a value of its variables.
    """
    variable = next((name for name in SPAN_ENDPOINTS if os.environ.get(name, "").strip()), None)
    if variable is None or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from kvsite.spans import Spans  # noqa: PLC0415  # of the optional extra
    except ImportError:
        logger.warning(NO_SPANS, variable)
        return None
    try:
        return Spans.from_environment(address)
    except ValueError as exc:
        raise ConfigError(f"{variable}: spans cannot be exported: {exc}") from None
