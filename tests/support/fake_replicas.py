"""Fake replicas: HTTP servers in this process that send the responses a test sets, and record the requests.

A *responder* sends one response. ``FakeReplica.respond_with`` sets a replica's responders: each answers one request,
in order; the last one answers all further requests.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ReceivedRequest:
    """A request as it arrived. Header names are in lower case.

    ``body``: the decoded JSON, or bytes if the request says so; None without a body.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Responder = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Reads and records one request, then calls the next responder of its replica."""

    protocol_version = "HTTP/1.1"
    replica: FakeReplica

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_bytes = headers.get("content-type") == "application/octet-stream"
        body = raw if is_bytes else json.loads(raw) if raw else None
        with self.replica.lock:
            self.replica.requests.append(ReceivedRequest(self.command, self.path, headers, body))
            responders = self.replica.responders
            responder = responders.popleft() if len(responders) > 1 else responders[0]
        responder(self)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = handle_any  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""


@dataclass
class FakeReplica:
    """One fake replica. ``lock`` guards ``requests`` and ``responders``, which the server's threads share."""

    port: int
    responders: deque[Responder] = field(default_factory=deque)
    requests: list[ReceivedRequest] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def respond_with(self, *responders: Responder) -> None:
        self.responders = deque(responders)


def json_response(status: int, body: Any = None, **headers: str) -> Responder:
    """Send ``body`` as JSON. In the names of ``headers``, ``_`` stands for ``-``."""

    def send(handler: Handler) -> None:
        content = b"" if status == 304 else json.dumps(body if body is not None else {}).encode()
        handler.send_response(status)
        if status != 304:
            handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def found(value: Any, metadata: Any = None, **more: Any) -> Responder:
    """Send the 200 of a GET that found ``value``."""
    body = {"result": "found", "value": value, "causal-metadata": metadata or {}, **more}
    return json_response(200, body, ETag='"a@1:1"')


def stored(metadata: Any = None, status: int = 201) -> Responder:
    """Send the success response of a PUT."""
    result = "created" if status == 201 else "replaced"
    return json_response(status, {"result": result, "causal-metadata": metadata or {}})


def unavailable(retry_after: str = "1", **more: Any) -> Responder:
    """Send the 503 of a replica that is catching up."""
    body = {"error": "Replica is catching up", "causal-metadata": {}, **more}
    return json_response(503, body, Retry_After=retry_after)


def close_connection(handler: Handler) -> None:
    """Close the connection after the request was read, without sending a byte."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def tls_alert(handler: Handler) -> None:
    """Answer as a server with TLS answers plain HTTP."""
    handler.wfile.write(b"\x15\x03\x03\x00\x02\x02\x32")
    close_connection(handler)


def truncated_response(handler: Handler) -> None:
    """Send the beginning of a response, then close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"result":')
    close_connection(handler)


def no_response(delay_s: float) -> Responder:
    """Keep the connection open for ``delay_s`` seconds, then close it without a response."""

    def send(handler: Handler) -> None:
        time.sleep(delay_s)
        handler.close_connection = True

    return send


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # With the default, 5, the kernel drops connections that many tasks open at once.

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: tests break connections on purpose."""


@contextlib.contextmanager
def fake_replicas(count: int) -> Iterator[list[FakeReplica]]:
    """Run ``count`` fake replicas, each listening at a port of 127.0.0.1."""
    fakes, servers = [], []
    for _ in range(count):
        server = QuietServer(("127.0.0.1", 0), Handler)
        fake = FakeReplica(server.server_port)
        server.RequestHandlerClass = type("BoundHandler", (Handler,), {"replica": fake})
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        fakes.append(fake)
        servers.append(server)
    try:
        yield fakes
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
