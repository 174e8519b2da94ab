"""Single HTTP requests that are sent exactly as given, and WSGI applications served over HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from store.address import split_address

Past = dict[str, int]
"""Causal metadata: replica id -> counter."""


@dataclass(frozen=True)
class Response:
    """One response. Header names are in lower case.

    ``body``: decoded JSON, or bytes if the response says so; None for an empty body or another type.
    """

    status: int
    body: Any
    headers: Mapping[str, str]
    took_s: float
    """Seconds from before the connection was opened until the response was read."""

    @property
    def past(self) -> Past:
        """The causal metadata: from the body; from the header if there is no body, or it is bytes."""
        in_body = isinstance(self.body, dict)
        past = self.body["causal-metadata"] if in_body else json.loads(self.headers["x-causal-metadata"])
        assert isinstance(past, dict)
        return past

    @property
    def etag(self) -> str:
        return self.headers["etag"]


def send_request(
    address: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    chunked: bool = False,
    timeout_s: float = 70,
) -> Response:
    """Send one request on a connection of its own. ``http.client`` does not rewrite paths or add headers.

    ``body``: bytes are sent unchanged, None is no body, anything else is sent as JSON.
    """
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    typed = {"Content-Type": "application/json"} if content is not None else {}
    payload = iter([content[:7], content[7:]]) if chunked and content is not None else content
    began_s = time.monotonic()
    with closing(HTTPConnection(*split_address(address), timeout=timeout_s)) as connection:
        connection.request(method, path, payload, {**typed, **(headers or {})}, encode_chunked=chunked)
        response = connection.getresponse()
        text = response.read()
    took_s = time.monotonic() - began_s
    received = {name.lower(): value for name, value in response.headers.items()}
    media_type = received.get("content-type", "")
    content_of_body: Any = text if media_type == "application/octet-stream" else None
    if media_type.startswith("application/json") and text:
        content_of_body = json.loads(text)
    return Response(response.status, content_of_body, received, took_s)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""


@contextmanager
def served(application: Any) -> Iterator[str]:
    """Serve a WSGI application at a free port of 127.0.0.1, in a thread; yield its address."""
    with make_server("127.0.0.1", 0, application, handler_class=_QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


Serve = Callable[[Any], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves a WSGI application over HTTP until the test ends, and returns its address."""
    with ExitStack() as stack:
        yield lambda application: stack.enter_context(served(application))
