"""The check of the ``Host`` header: protection against DNS rebinding (contract 5).

A web page cannot read responses of another origin. But its own host name can resolve to 127.0.0.1, and then this
replica has the page's origin. The page cannot change the Host header, which contains that host name. So a request is
served only if its Host is the address of a member, the name that ``KV_VIEW_DNS`` resolves, localhost, an IP address, or
in ``KV_ALLOWED_HOSTS``. An IP address is safe: the page then came from that address, not from a name that resolves to
it. The port is ignored: it does not show who controls the name, and port mappings change it.

Django's own check (``ALLOWED_HOSTS`` and ``CommonMiddleware``) is not used: it rejects names with an underscore, which
container networks assign, and it does not know that members join and leave.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from kvsite.config import Config
from store.address import host_of_header, is_canonical, split_address

MAX_REMEMBERED = 1024
"""Limit of the remembered allowed headers; at the limit all are forgotten. Remembering them makes the check one set
lookup per request."""


def cannot_be_rebound(host: str) -> bool:
    """Return whether ``host`` is an IP address, or a name that always means the sender's own machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class HostCheck:
    """Decides which Host headers are served.

    ``members``: returns the addresses of the members at that moment. A member that has left stays allowed if its header
    was seen while it belonged.
    """

    def __init__(self, config: Config, members: Callable[[], Iterable[str]]) -> None:
        self._members = members
        configured = (config.address, *config.seeds, config.view_dns)
        self._fixed = frozenset(
            {*config.allowed_hosts, *(split_address(address)[0] for address in configured if address)}
        )
        # A request without a Host header does not come from a browser.
        self._remembered: set[str] = {""}

    def allows(self, header: str) -> bool:
        """Return whether requests with this Host header are served. An absent header counts as empty."""
        return header in self._remembered or self._is_known(header)

    def _is_known(self, header: str) -> bool:
        host = host_of_header(header)
        if host is None or not (host in self._fixed or cannot_be_rebound(host) or self._is_member(host)):
            return False
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered = {""}
        self._remembered.add(header)
        return True

    def _is_member(self, host: str) -> bool:
        members = self._members()
        return any(is_canonical(address) and split_address(address)[0] == host for address in members)
