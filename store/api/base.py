"""``ApiView``: the base class of every endpoint of the JSON API.

It is a Django REST framework view without the parts that the API does not use. DRF's ``dispatch`` wraps Django's
request in a second one, negotiates parsers and renderers, and edits the response's headers on each request; that costs
more than the store itself. This class keeps HTTP's rules (405 with ``Allow``, HEAD, OPTIONS) and DRF's exceptions.
Module ``parsing`` checks media types and reads bodies; module ``rendering`` writes them.

The edge authenticates and authorises requests (kvsite/guard.py). DRF's authentication and permissions do not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from rest_framework.exceptions import MethodNotAllowed, ParseError
from rest_framework.views import APIView

from store.api import errors, parsing
from store.api.context import CONTEXT, StoreContext
from store.api.event_stream import EventStream
from store.api.large_responses import LARGE_BODY_BYTES, LargeResponses, ResponseStream, TooManyLargeResponses
from store.api.rendering import JSON
from store.api.request import ApiRequest
from store.api.response import ApiResponse
from store.api.usage import Usage


class ApiView(APIView):
    """An endpoint. Its handlers (``get``, ``put``, …) take the arguments of the route and return an ``ApiResponse``.

    Handlers read the request from ``self.request`` and the replica from ``self.context``. Whatever they raise becomes a
    JSON error (store/api/errors.py). One instance serves one request.
    """

    authentication_classes: Sequence[Any] = ()
    permission_classes: Sequence[Any] = ()
    throttle_classes = ()
    parser_classes = ()
    renderer_classes = ()

    operations: Mapping[str, str] = {}
    """Method -> name of the operation in ``/metrics``."""

    usage: Mapping[str, Usage] = {}
    """Method -> how to send such a request, for error responses. It may name methods that no handler serves."""

    operation: str | None = None
    """Name of the operation for this request, if the method alone does not determine it."""

    request: ApiRequest  # type: ignore[assignment]  # DRF has its own class
    context: StoreContext

    _handlers: ClassVar[Mapping[str, str]] = {}
    """Method -> name of the handler that serves it."""

    _body: bytes | None = None
    _body_was_read = False

    def __init_subclass__(cls) -> None:
        """Find the handlers. HEAD is served by ``get``; the server drops the body."""
        super().__init_subclass__()
        handlers = {name: "get" if name == "head" else name for name in cls.http_method_names}
        cls._handlers = {name.upper(): handler for name, handler in handlers.items() if hasattr(cls, handler)}

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | StreamingHttpResponse:
        """Serve a request of Django's handler. The server uses the fast path, which calls ``respond`` directly."""
        return self.respond(ApiRequest.from_django(request), *args, **kwargs).to_django()

    def respond(self, request: ApiRequest, *args: Any, **kwargs: Any) -> ApiResponse:
        """Serve one request and record it in the metrics. ``args``: what the route captured."""
        began_s = perf_counter()
        self.request = request
        context = self.context = request.environ[CONTEXT]
        method = request.method
        try:
            handler = self._handlers.get(method, "reject_method")
            response: ApiResponse = getattr(self, handler)(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001  # every exception becomes a JSON error; unexpected ones are logged
            response = errors.response_for(exc, self)
        if len(response.body) > LARGE_BODY_BYTES:
            response = self.stream(response)
        operation = self.operation or self.operations.get(method, "other")
        context.request_metrics.record(operation, response.status_code, perf_counter() - began_s)
        return response

    @property
    def large_responses(self) -> LargeResponses:
        """Where a large response of this view gets its room."""
        return self.context.large_responses

    def stream(self, response: ApiResponse) -> ApiResponse:
        """Turn the body of a large response into a stream, or return a 503 if there is no room for it."""
        if isinstance(response.body, ResponseStream | EventStream):
            return response
        try:
            response.body = self.large_responses.send(response.body, self.request.environ.get("REMOTE_ADDR", ""))
        except TooManyLargeResponses as exc:
            rejection = errors.response_for(exc, self)
            if len(rejection.body) <= LARGE_BODY_BYTES:
                return rejection
            return errors.response_for(exc, self, repeat_metadata=False)
        return response

    def options(self, *args: Any, **kwargs: Any) -> ApiResponse:  # type: ignore[override]
        """Return the allowed methods and nothing else; ``/schema/`` describes the API."""
        return ApiResponse(204, b"", {"Allow": self.allow})

    def reject_method(self, *args: Any, **kwargs: Any) -> ApiResponse:
        """Raise ``MethodNotAllowed``: no handler serves the request's method."""
        raise MethodNotAllowed(self.request.method)

    @property
    def allow(self) -> str:
        """The value of the ``Allow`` header."""
        return ", ".join(self._handlers)

    def body(self, max_bytes: int, media_type: str = JSON) -> bytes:
        """Return the request's body. Raises as ``parsing.read_body``.

        The body can be read only once, so after a failure every further call raises ``ParseError``.
        """
        if not self._body_was_read:
            self._body_was_read = True
            self._body = parsing.read_body(self.request, max_bytes, media_type)
        if self._body is None:
            raise ParseError("Body cannot be read")
        return self._body

    def request_past(self) -> dict[str, int] | None:
        """Return the causal past that an error response repeats; None if the endpoint or the request has none."""
        return None
