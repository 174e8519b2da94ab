"""Error responses: maps every exception that a handler raises to a status and a JSON body.

There are three kinds of exceptions:

    client errors    DRF's ``APIException``, raised by parsing and by HTTP checks    4xx with an exact message
    store errors     ``store.errors.StoreError``, facts about the replica's state    412, 503 or 507
    bugs             anything else                                                   500, logged with a traceback

A 4xx says what to send (store/api/usage.py): ``hint`` and, if the request takes a body, ``example``.

An error response of /kvs repeats the request's ``causal-metadata`` if it could be read. So a client that always keeps
the metadata of the latest response does not lose its history when a request fails.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rest_framework.exceptions import APIException, MethodNotAllowed, UnsupportedMediaType

from store.api import rendering
from store.api.exports import MAX_EXPORTS, TooManyExports
from store.api.large_responses import TooManyLargeResponses
from store.api.response import ApiResponse
from store.api.usage import ELSEWHERE, WrongForm, hint_of
from store.engine import ABSENT_ETAG
from store.errors import (
    BadPatch,
    DependenciesMissing,
    KeyAbsent,
    NotServing,
    OutOfMemory,
    PreconditionFailed,
    ResponseTooLarge,
    StoreError,
    TooManySearches,
    ValueTooLarge,
    WrongKind,
)

if TYPE_CHECKING:
    from store.api.base import ApiView

logger = logging.getLogger(__name__)


TOO_LARGE: Final = (
    "Send or ask for less at a time, for example in several values or requests. The limits are settings of the replica."
)
CHANGED: Final = "Read the key again, decide again, and send the ETag that the key has now (it is in this response)."
CREATES_NOTHING: Final = "remove, unset and ttl create no key. Create it with PUT, or with increment, add or set."
SUM_HINT: Final = "A smaller increment may fit: the sum, which GET returns, has to be from -2^63 to 2^63 - 1."
OTHER_KIND: Final = "GET shows the type of what the key holds. PATCH it as that type, or replace it with PUT."


class TooLarge(APIException):
    """The body, or a value in it, is larger than its limit."""

    status_code = 413
    default_detail = "Request is too large"
    default_code = "too_large"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.add_note(TOO_LARGE)


class ApiError(NamedTuple):
    """Content of an error response.

    ``details``: further members of the body. ``metadata``: None repeats the request's causal metadata.
    ``hint``: what to send. ``needs_usage``: whether the usage of the request belongs to it.
    """

    status: int
    message: str
    details: Mapping[str, Any] = {}
    headers: Mapping[str, str] = {}
    metadata: Mapping[str, int] | None = None
    hint: str = ""
    needs_usage: bool = False


def response_for(exc: Exception, view: ApiView, *, repeat_metadata: bool = True) -> ApiResponse:
    """Return the response for ``exc``, which a handler of ``view`` raised."""
    error = _api_error(exc, view)
    if error.status == 500:
        logger.error("Unexpected fault at %s %r", view.request.method, view.request.path, exc_info=exc)
    metadata = view.request_past() if error.metadata is None and repeat_metadata else error.metadata
    details = {**error.details, **_lesson(error, view)} if 400 <= error.status < 500 else error.details
    return rendering.error(error.status, error.message, details=details, metadata=metadata, headers=error.headers)


_ABOUT_THE_REQUEST: Final = frozenset({400, 405, 415})
"""Statuses of requests that are wrong by themselves, whatever the replica holds."""


def _lesson(error: ApiError, view: ApiView) -> dict[str, Any]:
    """Return the members of an error response that say what to send."""
    usage = view.usage.get(view.request.method, ELSEWHERE)
    hint = error.hint
    if error.needs_usage:
        hint = f"{hint} {usage.hint_for(declares_json=view.request.media_type == rendering.JSON)}".strip()
    lesson: dict[str, Any] = {"hint": hint or ELSEWHERE.hint}
    if usage.example is not None and error.status in _ABOUT_THE_REQUEST:
        lesson["example"] = usage.example
    return lesson


def _api_error(exc: Exception, view: ApiView) -> ApiError:
    for kind, message in _BUSY.items():
        if isinstance(exc, kind):
            return ApiError(503, message, headers={"Retry-After": "1"})
    if isinstance(exc, StoreError):
        return _store_error(exc)
    if isinstance(exc, MethodNotAllowed):
        return ApiError(exc.status_code, str(exc.detail), headers={"Allow": view.allow}, hint=_allowed(view))
    if isinstance(exc, APIException):
        needs_usage = isinstance(exc, WrongForm | UnsupportedMediaType)
        return ApiError(exc.status_code, str(exc.detail), hint=hint_of(exc), needs_usage=needs_usage)
    return ApiError(500, "Internal server error")


def _allowed(view: ApiView) -> str:
    """Return the hint for a method that no handler serves."""
    usage = view.usage.get(view.request.method)
    return f"{usage.hint if usage else 'Use another method.'} This path takes {view.allow}."


_BUSY: Final[Mapping[type[Exception], str]] = {
    TooManySearches: "Too many requests search old changes; try again later",
    TooManyExports: f"{MAX_EXPORTS} exports are in progress, and more may not be; try again later",
    TooManyLargeResponses: "Too many large responses are in progress; try again later",
}
"""Exceptions of requests for which there is no room at the moment."""


def _store_error(exc: StoreError) -> ApiError:
    error = ApiError(500, "Internal server error")
    match exc:
        case DependenciesMissing():
            missing = {replica: {"has": has, "needs": needs} for replica, (has, needs) in exc.missing.items()}
            error = ApiError(503, _NOT_REACHED, {"missing": missing}, {"Retry-After": str(exc.retry_after_s)})
        case NotServing():
            error = ApiError(503, exc.reason)
        case PreconditionFailed():
            error = ApiError(412, str(exc), {"key": exc.key}, {"ETag": exc.etag}, exc.metadata, CHANGED)
        case KeyAbsent():
            error = ApiError(404, str(exc), {"key": exc.key}, {"ETag": ABSENT_ETAG}, exc.metadata, CREATES_NOTHING)
        case WrongKind():
            error = ApiError(409, str(exc), {"key": exc.key}, {"ETag": exc.etag}, exc.metadata, OTHER_KIND)
        case BadPatch():
            error = ApiError(400, str(exc), hint=SUM_HINT)
        case ResponseTooLarge() | ValueTooLarge():
            error = ApiError(413, str(exc), hint=TOO_LARGE)
        case OutOfMemory():
            error = ApiError(507, "Out of memory: delete something, or ask for a higher KV_MAX_MEMORY")
    return error


_NOT_REACHED = "Causal dependencies not satisfied; try again later"
