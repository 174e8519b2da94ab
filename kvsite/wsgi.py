"""The edge: what must be right about a request before Django sees it.

granian hands over PATH_INFO decoded once (``%FF`` as the byte 0xFF, ``%25FF`` as the three characters ``%FF``) and no
raw request line. That is enough to tell keys apart, but Django's request writes the byte 0xFF back as ``%FF`` and makes
one key of two: the path is kept aside for the views of keys. (``%zz``, which is no escape at all, arrives as ``%zz``,
as does ``%25zz``: there is nothing else that it could mean.)

A chunked body has no Content-Length, and without one Django reads nothing: the body is read here and given its
length. One byte above the limit is enough for the view to see that it is too long.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse

from kvsite.config import current
from store.api.keys import RAW_PATH

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

logger = logging.getLogger(__name__)

REASONS = {411: "Length Required", 500: "Internal Server Error"}


class Edge:
    """A WSGI application around Django's. ``max_body_bytes``: how much of a chunked body is read."""

    def __init__(self, application: Application, max_body_bytes: int) -> None:
        self._application = application
        self._max_body_bytes = max_body_bytes

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; whatever goes wrong in it, the replica goes on."""
        environ[RAW_PATH] = environ["PATH_INFO"]
        if "HTTP_TRANSFER_ENCODING" in environ and not environ.get("CONTENT_LENGTH"):
            if not environ.get("wsgi.input_terminated"):
                # The development server cannot tell where such a body ends and would wait for ever.
                return answer(start_response, 411, "This server takes no chunked bodies")
            read_chunked(environ, self._max_body_bytes + 1)
        try:
            return at_once(self._application(environ, start_response))
        except Exception:
            # Django answers faults in views itself; this is for those around it, such as a broken middleware.
            logger.exception("fault outside of a view: %s %r", environ["REQUEST_METHOD"], environ["PATH_INFO"])
            return answer(start_response, 500, "Internal error")


def at_once(response: Iterable[bytes]) -> Iterable[bytes]:
    """Return a Django response that is complete as a list: granian then sends it in one piece, with its length."""
    if not isinstance(response, HttpResponse):
        return response
    try:
        return [response.content]
    finally:
        response.close()


def read_chunked(environ: Environ, limit: int) -> None:
    """Replace a body of unknown length by its first ``limit`` bytes, and say how many there are."""
    stream, body = environ["wsgi.input"], bytearray()
    while len(body) < limit:
        piece = stream.read(limit - len(body))
        if not piece:
            break
        body += piece
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))


def answer(start_response: StartResponse, status: int, error: str) -> list[bytes]:
    """Answer with ``{"error": …}``."""
    body = msgspec.json.encode({"error": error})
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {REASONS[status]}", headers)
    return [body]


# Django's own handler. A leaner one for the routes of the API goes in its place here, inside the edge.
application: Application = Edge(get_wsgi_application(), current().max_body_bytes)
