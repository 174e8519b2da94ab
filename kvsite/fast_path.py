"""A short way through Django for the routes of the API.

Django readies each request for all that a site may have: a prefix to reverse URLs with, a URL configuration of its own,
transactions, templates, sessions, forms. For a store that is most of the time that a request takes. So the API's
routes have an entry of their own:

    path of the API?    yes  request_started -> LeanRequest -> API_MIDDLEWARE -> view -> log of 4xx and 5xx
                        no   Django's handler: dashboard, documentation, static files, and what has no route

It is made of Django's parts: request class, conversion of exceptions, log, signals. Status, headers, body and log
records are those of Django's handler; tests/kvsite/test_fast_path.py compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from django.conf import settings
from django.core.handlers.exception import convert_exception_to_response
from django.core.handlers.wsgi import LimitedStream, WSGIRequest, get_path_info
from django.core.signals import request_started
from django.urls import ResolverMatch, URLPattern, resolve
from django.urls.resolvers import RegexPattern, RoutePattern
from django.utils.functional import cached_property
from django.utils.log import log_response
from django.utils.module_loading import import_string

import replication.api.urls
import store.api.urls
from kvsite.logs import ORDINARY
from store.api.response import wsgi_headers

Environ = dict[str, Any]
View = Callable[..., Any]
Handler = Callable[[Any], Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

PLAIN_TYPES: Final = frozenset({"", "application/json", "application/msgpack"})
"""Content types, as declared, that need no parsing."""

_REST: Final = re.compile(r"\^(?P<prefix>[a-z/]+)\(\?P<rest>\(\?s:\.\*\)\)\$")
"""A route of which all that follows a prefix is one argument, ``rest``."""


class LeanRequest(WSGIRequest):
    """Django's request where the path is known already and the script name is empty."""

    _read_started = False

    def __init__(self, environ: Environ, path: str, view: View, arguments: tuple[str, ...]) -> None:
        # Without super(): to find out again what is known here takes longer than to answer.
        self.environ = self.META = environ
        self.path = self.path_info = environ["PATH_INFO"] = path
        self.method = environ["REQUEST_METHOD"].upper()
        self.view, self.arguments = view, arguments
        declared = environ.get("CONTENT_TYPE", "")
        if declared in PLAIN_TYPES:
            self.content_type, self.content_params = declared, {}
        else:
            self._set_content_type_params(environ)  # type: ignore[attr-defined]  # not in the stubs

    @cached_property
    def _stream(self) -> LimitedStream:  # type: ignore[override]  # Django makes it at once
        """The body for those who read it as Django means it; the views of the API do not (parsing.read_body)."""
        return LimitedStream(self.environ["wsgi.input"], _length(self.environ.get("CONTENT_LENGTH", "")))

    @cached_property
    def resolver_match(self) -> ResolverMatch:  # type: ignore[override]  # Django writes it, here it is found if asked
        """What Django's resolver says of the path."""
        return resolve(self.path_info)


class Routes:
    """Routes of two forms: a whole path, or a prefix and its rest.

    Patterns of any other form are not taken: Django's handler serves them, slower and as well.
    """

    def __init__(self, patterns: Sequence[Any]) -> None:
        self._whole: dict[str, View] = {}
        self._prefixes: list[tuple[str, View]] = []
        for each in patterns:
            pattern = each.pattern if isinstance(each, URLPattern) else None
            if isinstance(pattern, RoutePattern) and not pattern.converters:
                self._whole[f"/{pattern}"] = each.callback
            elif isinstance(pattern, RegexPattern) and (form := _REST.fullmatch(str(pattern))):
                self._prefixes.append((f"/{form['prefix']}", each.callback))

    def find(self, path: str) -> tuple[View, tuple[str, ...]] | None:
        """Return the view for ``path`` and its arguments, None where there is none."""
        for prefix, view in self._prefixes:
            if path.startswith(prefix):
                return view, (path[len(prefix) :],)
        found = self._whole.get(path)
        return None if found is None else (found, ())

    def __iter__(self) -> Iterator[View]:
        yield from self._whole.values()
        yield from (view for _, view in self._prefixes)


class LeanEntry:
    """A WSGI application: the routes of the API, and ``others`` for the rest. See the module's text."""

    def __init__(self, others: Application) -> None:
        self._others = others
        self._routes = Routes([*store.api.urls.urlpatterns, *replication.api.urls.urlpatterns])
        self._respond = _chain(settings.API_MIDDLEWARE, _call_view)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request, as Django's ``WSGIHandler`` would."""
        path = environ["PATH_INFO"]
        if not path.isascii():
            path = get_path_info(environ)
        found = self._routes.find(path)
        if found is None or environ.get("SCRIPT_NAME"):
            return self._others(environ, start_response)
        if request_started.receivers:
            request_started.send(sender=self.__class__, environ=environ)
        request = LeanRequest(environ, path, *found)
        response = self._respond(request)
        if request._read_started and "_files" in vars(request):  # noqa: SLF001  # all that a request has to close
            response._resource_closers.append(request.close)  # noqa: SLF001  # as Django's handler does
        response._handler_class = self.__class__  # noqa: SLF001
        if response.status_code >= 400 and response.status_code not in ORDINARY:  # those the log would drop
            log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request)
        start_response(f"{response.status_code} {response.reason_phrase}", wsgi_headers(response))
        return response  # type: ignore[no-any-return]


def _chain(middleware: Sequence[str], innermost: Handler) -> Handler:
    """Return ``innermost`` inside of ``middleware``, and outside of all what makes responses of exceptions.

    Django converts them at each layer, for those that look at responses; the API's do not.
    """
    handler = innermost
    for name in reversed(middleware):
        handler = import_string(name)(handler)
    return convert_exception_to_response(handler)


def _length(declared: str) -> int:
    try:
        return int(declared)
    except ValueError:
        return 0


def _call_view(request: LeanRequest) -> Any:
    return request.view(request, *request.arguments)
