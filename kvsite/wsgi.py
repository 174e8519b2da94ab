"""The edge: what must be right about a request before Django sees it.

granian hands over PATH_INFO decoded once (``%FF`` as the byte 0xFF, ``%25FF`` as the three characters ``%FF``) and no
raw request line. That is enough to tell keys apart, but Django's request writes the byte 0xFF back as ``%FF`` and makes
one key of two: the path is kept aside for the views of keys. (``%zz``, which is no escape at all, arrives as ``%zz``,
as does ``%25zz``: there is nothing else that it could mean.)

A chunked body has no Content-Length, and without one Django reads nothing: the body is read here and given its
length. One byte above the limit is enough for the view to see that it is too long.

Who may do what is decided here as well (guard.py, cors.py), so that nothing behind can forget it. Every answer says the
request's id, and the log which requests were slow (slow_requests.py).
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterable
from http import HTTPStatus
from time import perf_counter
from typing import Any

import msgspec
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse

from kvsite import slow_requests
from kvsite.config import Config, current
from kvsite.cors import ORIGIN, Cors
from kvsite.denied_responses import SignReply, Turned
from kvsite.guard import Guard
from kvsite.logs import name_request
from replication.api.context import own_id
from replication.proof import HEADER
from store.api.keys import RAW_PATH
from store.hold_time import HELD

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

logger = logging.getLogger(__name__)

Headers = list[tuple[str, str]]


class Edge:
    """A WSGI application around Django's.

    ``max_body_bytes``: how much of a chunked body is read. ``guard``: who may come in, None for everybody; ``cors``:
    which pages of other origins may; ``slow_s``: requests that take longer are logged (slow_requests.py).
    """

    def __init__(
        self,
        application: Application,
        max_body_bytes: int,
        guard: Guard | None = None,
        cors: Cors | None = None,
        slow_s: float = math.inf,
    ) -> None:
        self._application = application
        self._max_body_bytes = max_body_bytes
        self._guard = guard
        self._cors = cors or Cors(())
        self._slow_s = slow_s
        self._always: Headers = self._cors.always

    @classmethod
    def for_config(cls, application: Application, config: Config) -> Edge:
        """Return the edge that ``config`` asks for."""
        guard = Guard.for_config(config, own_id)
        slow_s = config.slow_request_s or math.inf
        return cls(application, config.limits.max_body_bytes, guard, Cors(config.cors_origins), slow_s)

    def close_connections(self) -> None:
        """Say with each answer from now on that its connection ends: the replica is about to."""
        self._always = [*self._cors.always, ("Connection", "close")]

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; whatever goes wrong in it, the replica goes on."""
        began_s = perf_counter()
        HELD.seconds = 0.0
        environ[RAW_PATH] = environ["PATH_INFO"]
        extra = [("X-Request-ID", name_request(environ.get("HTTP_X_REQUEST_ID"))), *self._always]

        def respond(status: str, headers: Headers, *rest: Any) -> Any:
            environ[slow_requests.STATUS] = status
            return start_response(status, headers + extra, *rest)

        if self._guard is None and ORIGIN not in environ:
            answered = self._serve(environ, respond)
        else:
            answered = self._serve_guarded(environ, respond, extra)
        took_s = perf_counter() - began_s
        if took_s > self._slow_s and took_s - HELD.seconds > self._slow_s:
            slow_requests.note(environ, took_s, HELD.seconds)
        return answered

    def _serve_guarded(self, environ: Environ, respond: StartResponse, extra: Headers) -> Iterable[bytes]:
        """Serve a request that has to be let in; ``extra``: the headers that ``respond`` adds, to which some come."""
        guard, page = self._guard, ORIGIN in environ
        try:
            if page:
                extra += self._cors.headers(environ)
                if (preflight := self._cors.preflight(environ)) is not None:
                    return answer(respond, 204, headers=preflight)
                self._cors.check(environ)
            if guard is None:
                return self._serve(environ, respond)
            admitted = guard.admit(environ)
            if admitted.sign is None:
                return self._serve(environ, respond)
            guard.check_body(environ, admitted)
            return self._serve_proven(environ, respond, admitted.sign)
        except Turned as turned:
            return answer(respond, turned.status, turned.error, turned.headers, turned.sign)

    def _serve_proven(self, environ: Environ, respond: StartResponse, sign: SignReply) -> Iterable[bytes]:
        """Serve a request with proof: the reply carries proof as well."""
        told: list[Any] = []
        answered = self._serve(environ, lambda *args: told.extend(args))
        try:
            body = b"".join(answered)
        finally:
            if close := getattr(answered, "close", None):
                close()
        status, headers = told[:2]
        respond(status, [*headers, (HEADER, sign(int(status[:3]), body))])
        return [body]

    def _serve(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
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


def answer(
    start_response: StartResponse,
    status: int,
    error: str = "",
    headers: Iterable[tuple[str, str]] = (),
    sign: SignReply | None = None,
) -> list[bytes]:
    """Answer with ``{"error": …}``, or with nothing; ``sign``: for a sender that has proven the secret."""
    body = msgspec.json.encode({"error": error}) if error else b""
    typed = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))] if error else []
    proof = [] if sign is None else [(HEADER, sign(status, body))]
    start_response(f"{status} {HTTPStatus(status).phrase}", [*typed, *headers, *proof])
    return [body]


def load() -> Edge:
    """Return the whole application: the edge, in it the short way for the API, and Django for the rest."""
    others = get_wsgi_application()
    from kvsite.fast_path import LeanEntry  # noqa: PLC0415  # finds views, for which Django has to be set up

    return Edge.for_config(LeanEntry(others), current())


application: Edge = load()
