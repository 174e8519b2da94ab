"""``CausalMiddleware``: every user reads their own writes, whichever web process and replica serve the next request.

The middleware gives each request a causal history of its own. The history starts with what the browser's last response
had seen, and the new token goes back with the response: in a signed cookie, and in a header if one is configured. The
caches and sessions of ``causeway_client.django`` use the history by themselves.

Put it first in ``MIDDLEWARE``: what other middleware writes after the view, such as the session, then belongs to it.

Settings:

``CAUSEWAY_TOKEN_COOKIE``: name of the cookie ("causeway"); None: no cookie.
``CAUSEWAY_TOKEN_HEADER``: name of a header, such as "X-Causeway-Token", for clients without cookies (None).

Limits. A token longer than ``MAX_TOKEN_CHARACTERS`` is not sent, and a warning is logged; three replicas take about 250
characters. What a streaming response writes while it is sent is not in the token. If two requests of one browser run at
the same time, the cookie of the later response replaces the other one, so a write of the other request may be missing
in it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core import signing
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from .. import tokens
from .clusters import Histories, all_clusters, histories_of_request

SALT: Final = "causeway_client.django.middleware"

MAX_TOKEN_CHARACTERS: Final = 3800
"""Browsers keep cookies of 4,096 bytes, name and attributes included."""

ID_CHARACTERS: Final = 8

logger = logging.getLogger("causeway_client.django")

Respond = Callable[[HttpRequest], Any]


class CausalMiddleware:
    """See the module's docstring."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Respond) -> None:
        self._get_response = get_response
        self._cookie: str | None = getattr(settings, "CAUSEWAY_TOKEN_COOKIE", "causeway")
        self._header: str | None = getattr(settings, "CAUSEWAY_TOKEN_HEADER", None)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve a request within its own history."""
        if self._is_async:
            return self._acall(request)
        histories, token = self._histories(request)
        with histories_of_request(histories):
            response: HttpResponseBase = self._get_response(request)
        return self._with_token(response, histories, token)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        histories, token = self._histories(request)
        with histories_of_request(histories):
            response: HttpResponseBase = await self._get_response(request)
        return self._with_token(response, histories, token)

    def _histories(self, request: HttpRequest) -> tuple[Histories, str]:
        """Return the histories of a request, and the token that it carries. A token that is not ours counts as none."""
        token = self._received(request)
        parts = {part[:ID_CHARACTERS]: part[ID_CHARACTERS:] for part in token.split("~")} if token else {}
        histories: Histories = {}
        for cluster in all_clusters():
            try:
                metadata = tokens.decode(parts.get(cluster.id, ""))
            except ValueError:
                metadata = {}
            histories[cluster.id] = cluster.fork(metadata)
        return histories, token

    def _received(self, request: HttpRequest) -> str:
        signed = request.headers.get(self._header) if self._header else None
        if signed is None and self._cookie is not None:
            signed = request.COOKIES.get(self._cookie)
        try:
            return signing.Signer(salt=SALT).unsign(signed) if signed else ""
        except signing.BadSignature:
            return ""

    def _with_token(self, response: HttpResponseBase, histories: Histories, received: str) -> HttpResponseBase:
        """Add the token to the response, unless the client sent the same token."""
        seen = {id_: core.token() for id_, core in histories.items()}
        token = "~".join(id_ + text for id_, text in sorted(seen.items()) if text)
        if not token or token == received:
            return response
        signed = signing.Signer(salt=SALT).sign(token)
        if len(signed) > MAX_TOKEN_CHARACTERS:
            logger.warning("a causal token has %d characters, and is not sent", len(signed))
            return response
        if self._cookie is not None:
            response.set_cookie(
                self._cookie,
                signed,
                max_age=settings.SESSION_COOKIE_AGE,
                path=settings.SESSION_COOKIE_PATH,
                domain=settings.SESSION_COOKIE_DOMAIN,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=True,
                samesite=settings.SESSION_COOKIE_SAMESITE,  # type: ignore[arg-type]  # the stubs are narrower than the setting
            )
        if self._header:
            response.headers[self._header] = signed
        return response
