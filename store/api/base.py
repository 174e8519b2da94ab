"""The view that every endpoint of the JSON API is made of: DRF's, without what the API does not use.

DRF's own ``dispatch`` builds parsers, renderers, a negotiator and response headers for every request; that costs more
than the store itself. This one keeps what HTTP asks for (405 with ``Allow``, HEAD, OPTIONS), DRF's ``Request`` and
``handle_exception``, and leaves media types to ``parsing`` and bytes to ``rendering``.

Where tokens come in: set ``authentication_classes`` and ``permission_classes``. ``initial`` runs them, and only
when there are any; they are DRF's and behave as its documentation says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.views import APIView

from store.api import errors, parsing
from store.api.metering import METER
from store.api.rendering import JSON

_NEGOTIATOR = DefaultContentNegotiation()  # Stateless; handed over so that DRF does not make one a request.


class ApiView(APIView):
    """A view whose handlers take DRF's ``Request`` and return a finished ``HttpResponse``."""

    authentication_classes: Sequence[Any] = ()
    permission_classes: Sequence[Any] = ()
    throttle_classes = ()
    parser_classes = ()
    renderer_classes = ()

    operations: Mapping[str, str] = {}
    """Method -> what it is called in ``/metrics``."""

    operation: str | None = None
    """The same of this request, where the method alone does not tell."""

    http: HttpRequest
    """The request as Django has it: what parsing reads."""

    _body: bytes | None = None
    _body_asked = False

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer one request, and count it."""
        began_s = perf_counter()
        response = self.respond(request, *args, **kwargs)
        operation = self.operation or self.operations.get(request.method or "", "other")
        METER.note(operation, response.status_code, perf_counter() - began_s)
        return response

    def respond(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer one request; as DRF's ``dispatch``, without content negotiation and without touching the response."""
        self.http = request
        self.headers = {}
        self.request = asked = self.initialize_request(request)
        try:
            self.initial(asked)
            return self._handler(request.method)(asked, *args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - whatever it is becomes a JSON answer, and is logged if it is our fault
            return self.handle_exception(exc)

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Wrap the request for DRF's hooks; nothing is parsed."""
        return Request(request, authenticators=self.get_authenticators(), negotiator=_NEGOTIATOR)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Decide whether the request may come in. Raises DRF's ``NotAuthenticated`` or ``PermissionDenied``."""
        if self.permission_classes:
            self.perform_authentication(request)
            self.check_permissions(request)

    def options(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponse:  # type: ignore[override]
        """Say which methods there are, and nothing else: /schema/ describes the API."""
        response = HttpResponse(status=204, headers={"Allow": ", ".join(self.allowed_methods)})
        del response.headers["Content-Type"]
        return response

    def get_exception_handler(self) -> Callable[..., HttpResponse]:
        """Return the one handler of the API, whatever DRF's settings say."""
        return errors.handle

    def body(self, max_bytes: int, media_type: str = JSON) -> bytes:
        """Return the request's body. Raises as ``parsing.read_body``; a failure is final, as the stream is used up."""
        if not self._body_asked:
            self._body_asked = True
            self._body = parsing.read_body(self.http, max_bytes, media_type)
        if self._body is None:
            raise ParseError("Body cannot be read")
        return self._body

    def request_past(self) -> dict[str, int] | None:
        """Return the causal past to repeat in an error's body; None where the endpoint or the request has none."""
        return None

    def _handler(self, method: str | None) -> Callable[..., HttpResponseBase]:
        name = (method or "").lower()
        if name not in self.http_method_names:
            return self.http_method_not_allowed
        handler: Callable[..., HttpResponseBase] = getattr(self, name, self.http_method_not_allowed)
        return handler
