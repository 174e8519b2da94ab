"""Which ``Host`` headers are answered (SPEC 5): the guard against DNS rebinding.

A web page cannot read from another origin, but it can let its own name resolve to 127.0.0.1 and then *is* the same
origin. What it cannot do is change the Host header, which goes on naming the page's host. So only requests are
answered whose Host names a member, the name that leads to all of them (``KV_VIEW_DNS``), localhost, a loopback address,
or what ``KV_ALLOWED_HOSTS`` adds. The port is not looked at: it says nothing about who resolves the name, and port
mappings change it.

Django's own check (ALLOWED_HOSTS, CommonMiddleware) is not used: it refuses names with an underscore, which
container networks hand out, and knows no members that come and go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator

from django.http import HttpRequest, HttpResponse

from kvsite.config import Config, current
from kvsite.errors import json_error
from replication.address import host_of_header, split_address

Handler = Callable[[HttpRequest], HttpResponse]

MAX_REMEMBERED = 1024
"""Headers found good that are remembered, so that the check costs one set lookup a request."""


def is_loopback(host: str) -> bool:
    """Return whether ``host`` means this machine to whoever sent it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HostMiddleware:
    """Answer 400 to requests whose Host header names nobody here; one without a Host comes from no browser."""

    def __init__(
        self, get_response: Handler, config: Config | None = None, members: Callable[[], Iterable[str]] | None = None
    ) -> None:
        config = config or current()
        self._get_response = get_response
        self._members = members or _bound_members
        self._fixed = frozenset(
            {
                *config.allowed_hosts,
                *(split_address(address)[0] for address in (config.address, *config.seeds, config.view_dns) if address),
            }
        )
        self._remembered: set[str] = {""}

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass the request on, or refuse it."""
        header = request.META.get("HTTP_HOST", "")
        if header in self._remembered or self._allows(header):
            return self._get_response(request)
        return json_error(400, "Host header names no member of this cluster; see KV_ALLOWED_HOSTS")

    def _allows(self, header: str) -> bool:
        host = host_of_header(header)
        if host is None or not (host in self._fixed or is_loopback(host) or host in self._member_hosts()):
            return False
        if len(self._remembered) < MAX_REMEMBERED:
            self._remembered.add(header)
        return True

    def _member_hosts(self) -> Iterator[str]:
        return (split_address(address)[0] for address in self._members())


def _bound_members() -> Iterable[str]:
    """Return the addresses of the members that this process's node knows; none before it is put together."""
    from replication.api.context import node  # noqa: PLC0415  # bound after the middleware is loaded

    try:
        return node().members()
    except RuntimeError:
        return ()
