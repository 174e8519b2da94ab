"""The view that every endpoint of the JSON API is made of: DRF's, without what the API does not use.

DRF's own ``dispatch`` builds a second request around Django's, parsers, renderers, a negotiator and response headers,
every time; that costs more than the store itself. This one keeps what HTTP asks for (405 with ``Allow``, HEAD, OPTIONS)
and DRF's ``handle_exception``. It hands Django's request to the handler, and leaves media types to ``parsing`` and
bytes to ``rendering``.

Who may come in is decided at the edge (kvsite/guard.py): DRF's authentication and permissions are never run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from time import perf_counter
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from rest_framework.exceptions import ParseError
from rest_framework.views import APIView

from store.api import errors, parsing
from store.api.rendering import JSON
from store.api.request_metrics import METER

Handler = Callable[..., HttpResponseBase]

HANDLERS: Final = {name.upper(): name for name in APIView.http_method_names}
"""Method -> the name of what answers it in a view that does."""


class ApiView(APIView):
    """A view whose handlers take Django's request and return a response that is finished: nothing renders it later."""

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

    @classmethod
    def as_view(cls) -> Any:  # type: ignore[override]  # views of the API take no arguments here
        """Return what answers requests. Django's own keeps each request and its arguments as well, for nobody here."""

        def view(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return cls().dispatch(request, *args, **kwargs)

        update_wrapper(view, super().as_view())  # with its marks, such as that no form's token is asked for
        return view

    __init__ = object.__init__  # Django's takes what ``as_view`` was given: nothing.

    def __init_subclass__(cls) -> None:
        """Answer HEAD as GET. Django's ``setup`` would see to it in each view, which would then refer to itself, and
        wait for a collection when it is done."""
        super().__init_subclass__()
        if hasattr(cls, "get"):
            cls.head = cls.get  # type: ignore[attr-defined]  # looked up by name

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer one request, and count it; as DRF's, without content negotiation and without touching the response."""
        began_s = perf_counter()
        self.http = request
        method = request.method or ""
        try:
            handler: Handler = getattr(self, HANDLERS.get(method, ""), self.http_method_not_allowed)
            response = handler(request, *args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - whatever it is becomes a JSON answer, and is logged if it is our fault
            response = self.handle_exception(exc)
        operation = self.operation or self.operations.get(method, "other")
        METER.note(operation, response.status_code, perf_counter() - began_s)
        return response

    def options(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:  # type: ignore[override]
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
