"""Connections to replicas, over ``requests``: how a ``Session`` sends a request."""

from __future__ import annotations

import os
import ssl
import threading
import weakref
from typing import Final, Self

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from .exchange import NO_RESPONSE, Failure, Response, Send, broken

PART_BYTES: Final = 64 * 1024
"""Most bytes of a stream that are read at once."""


class Connections:
    """Connections to replicas, shared by a session and its forks."""

    def __init__(self, replicas: int, *, pool_size: int, verify: bool | str) -> None:
        self._replicas, self._pool_size, self._verify = replicas, pool_size, verify
        self._users = 1
        self._lock = threading.Lock()
        self._http = self._open()
        _OPEN.add(self)

    def retain(self) -> Self:
        """Count one more user."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Count one user less. After the last one, close the connections."""
        with self._lock:
            self._users -= 1
            is_unused = self._users == 0
        if is_unused:
            self._http.close()

    def after_fork(self) -> None:
        """Use new connections. Both processes would otherwise read each other's responses."""
        self._lock = threading.Lock()
        self._http = self._open()

    def send(self, command: Send) -> Response | Failure:
        """Send one request."""
        prepared = requests.PreparedRequest()
        prepared.prepare_method(command.method)
        # Do not use prepare_url(): it resolves "." and "..", even percent-encoded, so it would change such keys.
        prepared.url = command.replica + command.path
        prepared.headers = CaseInsensitiveDict(command.headers)
        prepared.prepare_body(command.body, None)
        prepared.hooks = {"response": []}
        try:
            response = self._http.send(
                prepared,
                timeout=command.timeout_s,
                verify=self._verify,
                allow_redirects=False,
                stream=command.is_stream,
            )
            headers = {name.lower(): value for name, value in response.headers.items()}
            if command.is_stream and response.status_code == 200:
                return Response(200, headers, b"", _Stream(response))
            with response:
                content = response.content
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            return Failure(_reason(exc), maybe_sent=not _never_sent(exc))
        return Response(response.status_code, headers, content)

    def _open(self) -> requests.Session:
        http = requests.Session()
        http.trust_env = False  # Ignore proxies and .netrc: the caller names replicas explicitly.
        adapter = HTTPAdapter(pool_connections=self._replicas, pool_maxsize=self._pool_size, max_retries=0)
        http.mount("http://", adapter)
        http.mount("https://", adapter)
        return http


class _Stream:
    """The body of a response (``exchange.Stream``)."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._parts = response.iter_content(PART_BYTES)
        self.close = response.close

    def receive(self, timeout_s: float) -> bytes | Failure:
        """Return the next bytes."""
        connection = self._response.raw.connection
        if connection is not None and connection.sock is not None:  # It is None if the replica will close it.
            connection.sock.settimeout(timeout_s)
        try:
            return next(self._parts, b"")
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            return Failure(_reason(exc), maybe_sent=True)


_OPEN: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()
"""The connections of all sessions of this process."""


def _after_fork() -> None:
    for connections in [*_OPEN]:
        connections.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _never_sent(exc: BaseException) -> bool:
    """Return whether the request certainly did not reach the replica: no connection, or no valid certificate."""
    # requests and urllib3 wrap the cause, as ``reason`` or as the first argument, several levels deep.
    error: BaseException | None = exc
    while error is not None:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        for cause in (error, inner):
            # NewConnectionError and NameResolutionError are subclasses of ConnectTimeoutError.
            if isinstance(cause, (urllib3.exceptions.ConnectTimeoutError, ssl.SSLCertVerificationError)):
                return True
        error = inner if isinstance(inner, BaseException) else None
    return False


def _reason(exc: BaseException) -> str:
    # Within a body, requests wraps a timeout in an exception that is none.
    cause = exc.args[0] if exc.args else None
    if isinstance(exc, requests.Timeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return NO_RESPONSE
    return f"no connection ({type(exc).__name__})" if _never_sent(exc) else broken(exc)
