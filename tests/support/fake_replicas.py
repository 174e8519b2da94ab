"""Replicas that are played: HTTP servers in this process that answer what a test says, and note what they were sent."""

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

PORTS = iter(range(24100, 24999))


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Play = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Reads one request, notes it, and lets the next play of its replica answer (the last one again and again)."""

    protocol_version = "HTTP/1.1"
    replica: FakeReplica

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.replica.lock:
            self.replica.seen.append(Seen(self.command, self.path, headers, json.loads(raw) if raw else None))
            plays = self.replica.plays
            play = plays.popleft() if len(plays) > 1 else plays[0]
        play(self)

    do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silence."""


@dataclass
class FakeReplica:
    port: int
    plays: deque[Play] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def will(self, *plays: Play) -> None:
        self.plays = deque(plays)


def answer(status: int, body: Any = None, **headers: str) -> Play:
    """Answer with JSON; header names with ``_`` for ``-``."""

    def play(handler: Handler) -> None:
        content = b"" if status == 304 else json.dumps(body if body is not None else {}).encode()
        handler.send_response(status)
        if status != 304:
            handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return play


def found(value: Any, metadata: Any = None, **more: Any) -> Play:
    body = {"result": "found", "value": value, "causal-metadata": metadata or {}, **more}
    return answer(200, body, ETag='"a@1:1"')


def stored(metadata: Any = None, status: int = 201) -> Play:
    return answer(status, {"result": "created" if status == 201 else "replaced", "causal-metadata": metadata or {}})


def busy(retry_after: str = "1", **more: Any) -> Play:
    return answer(503, {"error": "Replica is catching up", "causal-metadata": {}, **more}, Retry_After=retry_after)


def hang_up(handler: Handler) -> None:
    """The request was read; no byte of an answer comes."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def half_an_answer(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"result":')
    hang_up(handler)


def silence(seconds: float) -> Play:
    def play(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return play


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port")


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the play."""


@contextlib.contextmanager
def played(count: int) -> Iterator[list[FakeReplica]]:
    """``count`` replicas that listen."""
    fakes, servers = [], []
    for _ in range(count):
        fake = FakeReplica(free_port())
        handler = type("BoundHandler", (Handler,), {"replica": fake})
        server = QuietServer(("127.0.0.1", fake.port), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        fakes.append(fake)
        servers.append(server)
    try:
        yield fakes
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
