"""The fast path: serves the routes of the API without Django's request handler.

Django's request handler supports features that the API does not use: middleware, URL prefixes, database transactions,
sessions, forms. Preparing each request for them would take most of the time of a request. So the API's routes have a
router of their own:

    route of the API?    yes  ApiRequest -> view -> ApiResponse -> log of 4xx and 5xx
                         no   Django's handler: dashboard, documentation, static files, unknown paths

Django's handler can serve the API too, with the same views; it does so in tests and below a ``SCRIPT_NAME``.
tests/kvsite/test_fast_path.py checks that both ways give the same status, headers, body and log lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http.client import responses
from typing import Any, Final

from django.core.handlers.exception import response_for_exception
from django.core.handlers.wsgi import WSGIRequest, get_path_info
from django.core.signals import request_finished, request_started
from django.http import HttpResponse
from django.utils.log import log_response

import replication.api.urls
import store.api.urls
from kvsite.large_pages import with_bounds
from kvsite.logs import ORDINARY_STATUSES
from store.api.base import ApiView
from store.api.request import ApiRequest
from store.api.routing import Route

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

API_ROUTES: Final = (*store.api.urls.ROUTES, *replication.api.urls.ROUTES)

STATUS_LINES: Final = {int(status): f"{status:d} {reason}" for status, reason in responses.items()}
"""Status code -> status line, as Django writes it."""


class Router:
    """Finds the view of a path among ``routes``."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, type[ApiView]] = {}
        self._prefixes: list[tuple[str, type[ApiView]]] = []
        for route in routes:
            if route.takes_rest:
                self._prefixes.append((f"/{route.path}", route.view))
            else:
                self._exact[f"/{route.path}"] = route.view

    def find(self, path: str) -> tuple[type[ApiView], tuple[str, ...]] | None:
        """Return the view for ``path`` and its arguments; None if no route matches."""
        for prefix, view in self._prefixes:
            if path.startswith(prefix):
                return view, (path[len(prefix) :],)
        exact = self._exact.get(path)
        return None if exact is None else (exact, ())


class FastPath:
    """A WSGI application that serves the routes of the API itself and passes other paths to ``django``."""

    def __init__(self, django: Application) -> None:
        self._django = with_bounds(django)
        self._router = Router(API_ROUTES)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        path = environ["PATH_INFO"]
        if not path.isascii():
            path = get_path_info(environ)
        found = self._router.find(path)
        if found is None or environ.get("SCRIPT_NAME"):
            return self._django(environ, start_response)
        view, arguments = found
        if request_started.receivers:
            request_started.send(sender=self.__class__, environ=environ)
        request = ApiRequest(environ, path)
        try:
            response = view().respond(request, *arguments)
        except Exception as exc:  # noqa: BLE001  # a bug outside of the handlers: log it and respond as Django does
            return _send(response_for_exception(WSGIRequest(environ), exc), start_response)
        status = response.status_code
        if status >= 400 and status not in ORDINARY_STATUSES:
            log_response("%s: %s", response.reason_phrase, path, response=HttpResponse(status=status))
        start_response(STATUS_LINES.get(status) or f"{status} {response.reason_phrase}", response.header_list)
        if request_finished.receivers:
            request_finished.send(sender=self.__class__)
        body = response.body
        return [body] if body.__class__ is bytes else response.chunks


def _send(response: HttpResponse, start_response: StartResponse) -> list[bytes]:
    """Send a complete response of Django. ``close`` sends the signal ``request_finished``."""
    start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
    try:
        return [response.content]
    finally:
        response.close()
