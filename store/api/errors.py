"""One handler from whatever a request runs into to a status and a JSON body.

Three kinds of causes, and whose fault they are:

    the client's    DRF's APIException, which parsing and HTTP checks raise   4xx, said exactly
    the store's     store.errors.StoreError: facts about the replica's state  412, 503, 507
    ours            anything else                                             500, logged with its traceback

An error of /kvs repeats the request's ``causal-metadata``, where it could be read, so that a client which
keeps the latest metadata of any answer loses nothing by a refused request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.http import HttpResponse
from rest_framework.exceptions import APIException, MethodNotAllowed

from store.api import rendering
from store.errors import (
    DependenciesMissing,
    NotServing,
    OutOfMemory,
    PreconditionFailed,
    StoreError,
    TooManyAckWaits,
    TooManyWatchers,
)

logger = logging.getLogger(__name__)


class TooLarge(APIException):
    """The body, or a value in it, exceeds its limit."""

    status_code = 413
    default_detail = "Request is too large"
    default_code = "too_large"


class Fault(NamedTuple):
    """What to tell the client. ``metadata`` None: repeat the request's."""

    status: int
    message: str
    details: Mapping[str, Any] = {}
    headers: Mapping[str, str] = {}
    metadata: Mapping[str, int] | None = None


def handle(exc: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """Return the response for ``exc``; the signature is the one of DRF's exception handlers."""
    view = context["view"]
    fault = fault_of(exc, view)
    if fault.status == 500:
        logger.error("Unexpected fault at %s %r", view.http.method, view.http.path, exc_info=exc)
    metadata = view.request_past() if fault.metadata is None else fault.metadata
    return rendering.error(fault.status, fault.message, details=fault.details, metadata=metadata, headers=fault.headers)


def fault_of(exc: Exception, view: Any) -> Fault:
    """Return what ``exc`` means to a client of ``view``."""
    if isinstance(exc, StoreError):
        return _store_fault(exc)
    if isinstance(exc, APIException):
        return Fault(exc.status_code, str(exc.detail), headers=_headers(exc, view))
    return Fault(500, "Internal server error")


def _store_fault(exc: StoreError) -> Fault:
    if isinstance(exc, DependenciesMissing):
        missing = {replica: {"has": has, "needs": needs} for replica, (has, needs) in exc.missing.items()}
        return Fault(503, _NOT_REACHED, {"missing": missing}, {"Retry-After": str(exc.retry_after_s)})
    if isinstance(exc, NotServing):
        return Fault(503, exc.reason)
    if isinstance(exc, (TooManyWatchers, TooManyAckWaits)):
        return Fault(503, "Too many requests wait already; try again later", headers={"Retry-After": "1"})
    if isinstance(exc, PreconditionFailed):
        headers = {} if exc.etag is None else {"ETag": exc.etag}
        return Fault(412, "Precondition failed", headers=headers, metadata=exc.metadata)
    if isinstance(exc, OutOfMemory):
        return Fault(507, "Out of memory: delete something, or ask for a higher KV_MAX_MEMORY")
    return Fault(500, "Internal server error")


_NOT_REACHED = "Causal dependencies not satisfied; try again later"


def _headers(exc: APIException, view: Any) -> dict[str, str]:
    headers = {}
    if isinstance(exc, MethodNotAllowed):
        headers["Allow"] = ", ".join(view.allowed_methods)
    if auth_header := getattr(exc, "auth_header", None):  # Set by DRF's handle_exception for a 401.
        headers["WWW-Authenticate"] = auth_header
    return headers
