"""How one replica's HTTP is called, by peers and by commands: with proof both ways, or with a token.

With a key (``KV_CLUSTER_SECRET``), each request proves it and each reply has to (replication/proof.py). What changes
anything is sent only to who has proven the secret before: a stranger who has taken over a member's address gets a
greeting, and no data. Without one, replicas of a cluster that asks for tokens present a token of theirs.

By which name: the Host header has to name whom the other side knows as a member, and a certificate is verified for
a name. The rule, decided anew for each exchange:

* An address that ``VIEW`` or the register tells is its own name. Its replica is called so, or an operator says so.
* An address that only a lookup (``KV_VIEW_DNS``) has told is called by the name that was looked up. What the replica
  there calls itself is not known before it has answered.
* Whoever is refused under one name (400, or a certificate for another one) tries the next one the next time.
  Else a replica that has just been told of a lookup's name would be refused by all that have not, and serve empty.

A way never makes do with less: an address that only a lookup has told is verified by the name that was looked up and
by no other, for whoever can forge answers of a name service can name an address that he has a certificate for.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter

from replication.address import join_address, split_address
from replication.errors import NotTrusted
from replication.proof import ANY_RECEIVER, HEADER, SAFE_METHODS, ResponseSender, sign_request, verify_response

GREETING_PATH: Final = "/healthz"
"""Costs nothing to answer, and is there whatever state a replica is in."""

MAX_QUOTED_BYTES: Final = 300
"""How much of what a stranger says goes into an error, and so into the log."""

MAX_PREPARED: Final = 32
"""Requests that a caller keeps ready: exchange and snapshot for each peer; a status with a query comes once."""


@dataclass(frozen=True, slots=True)
class PeerClientSettings:
    """How to reach replicas. Times are seconds.

    ``timeout_s``: for connecting, and again for each wait for bytes: short, because a peer that does not answer is
    asked again at the next sync. ``scheme``: http or https; ``verify``: a CA bundle's path, or True for the system's.
    ``key``: of the cluster's secret (``proof.derive_key``), empty for none; ``token``: of the API, empty for none.
    ``server_name``: ``name:port`` that stands in the Host header and in certificates, in place of the
    address; empty: the address itself. ``host``: what stands in the Host header in place of either; empty: the same.
    """

    timeout_s: float = 1.0
    scheme: str = "http"
    verify: str | bool = True
    key: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    server_name: str = ""
    host_header: str = ""


class Endpoints:
    """By which names replicas may be called, each a tuple of settings: the right one first, then those to try instead.

    ``lookup``: the ``name:port`` that is looked up. That name is known to replicas that look it up themselves;
    ``localhost`` every replica answers to, whatever it is called (kvsite/hosts.py), so it is the last one to try.
    """

    def __init__(self, settings: PeerClientSettings, lookup: str = "") -> None:
        self.address_only: tuple[PeerClientSettings, ...] = (settings,)
        """For an address that no lookup tells."""
        self.address_first: tuple[PeerClientSettings, ...] = self.address_only
        """For one that a lookup tells, and ``VIEW`` or the register too."""
        self.lookup_only: tuple[PeerClientSettings, ...] = self.address_only
        """For one that nothing but a lookup tells."""
        if lookup:
            by_lookup = replace(settings, server_name=lookup)
            by_any = replace(by_lookup, host_header=join_address("localhost", split_address(lookup)[1]))
            self.lookup_only = (by_lookup, by_any)
            self.address_first = (settings, by_lookup, by_any)


@dataclass(frozen=True, slots=True)
class Response:
    """A reply; proven where there is a key."""

    status: int
    body: bytes


class _Named(HTTPAdapter):
    """Connections of which the certificate has to be for ``host``, whatever address they go to."""

    def __init__(self, host: str) -> None:
        self._host = host
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Hand the name to urllib3, which sends it (SNI) and checks the certificate against it."""
        super().init_poolmanager(*args, **options, server_hostname=self._host)


class PeerClient:
    """Connections of one thread to replicas.

    Raises ``NotTrusted`` where a reply lacks its proof, or refuses ours; ``requests.RequestException`` as it comes.
    """

    def __init__(self, settings: PeerClientSettings) -> None:
        self._settings = settings
        self._requests: dict[tuple[str, str], requests.PreparedRequest] = {}
        self._known: dict[str, tuple[str, int]] = {}  # Address -> its replica id, and its clock less ours in us.
        self._http = requests.Session()
        self._http.trust_env = False  # No proxy from the environment stands between replicas.
        self._http.verify = settings.verify
        self._http.headers["Accept-Encoding"] = "identity"  # Nothing that unpacks to more than was sent.
        if settings.token:
            self._http.headers["Authorization"] = f"Bearer {settings.token}"
        if host := settings.host_header or settings.server_name:
            self._http.headers["Host"] = host
        if settings.server_name:
            self._http.mount("https://", _Named(split_address(settings.server_name)[0]))

    def request(self, method: str, address: str, path: str, body: bytes = b"", media_type: str = "") -> Response:
        """Ask the replica at ``address`` and return what it answers, errors included."""
        if not self._settings.key:
            return self._send(method, address, path, body, {"Content-Type": media_type} if media_type else {})[0]
        with ExitStack() as undo:
            # Where this fails, whoever answers there next is to be greeted first.
            undo.callback(self._known.pop, address, None)
            if address not in self._known and method not in SAFE_METHODS:
                self._prove("GET", address, GREETING_PATH, b"", "")
            answer = self._prove(method, address, path, body, media_type)
            if answer.status == requests.codes.forbidden:
                # It has the secret, so believe it: it has a new incarnation, or the clocks differ. Now both are known.
                answer = self._prove(method, address, path, body, media_type)
            undo.pop_all()
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _prove(self, method: str, address: str, path: str, body: bytes, media_type: str) -> Response:
        """Send a request with proof and check that of its reply, from which the sender's id and clock are learnt."""
        to, offset_us = self._known.get(address, (ANY_RECEIVER, 0))
        key, nonce, now_us = self._settings.key, secrets.token_hex(16), time.time_ns() // 1000
        headers = {HEADER: sign_request(key, method, path, body, to=to, now_us=now_us + offset_us, nonce=nonce)}
        if media_type:
            headers["Content-Type"] = media_type
        answer, proof = self._send(method, address, path, body, headers)
        known = verify_response(key, proof, nonce, answer.status, answer.body)
        if known is None:
            raise NotTrusted(f"{address} does not prove that it has our KV_CLUSTER_SECRET{_said(answer)}")
        self._learn(address, known, now_us)
        return answer

    def _learn(self, address: str, known: ResponseSender, sent_us: int) -> None:
        self._known[address] = (known.replica, known.time_us - sent_us)

    def _send(self, method: str, address: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[Response, str]:
        url = f"{self._settings.scheme}://{address}{path}"
        request = self._prepared(method, url).copy()
        request.headers.update(headers)
        if body:
            request.prepare_body(body, None)
        # Past the session, which would look for cookies, redirects and hooks: there are none between replicas.
        adapter = self._http.get_adapter(url)
        response = adapter.send(request, timeout=self._settings.timeout_s, verify=self._settings.verify)
        return Response(response.status_code, response.content), response.headers.get(HEADER, "")

    def _prepared(self, method: str, url: str) -> requests.PreparedRequest:
        """Return the request without body: to make it takes a tenth of an exchange, and those to a peer are alike."""
        request = self._requests.get((method, url))
        if request is None:
            if len(self._requests) >= MAX_PREPARED:
                self._requests.clear()
            request = self._requests[method, url] = self._http.prepare_request(requests.Request(method, url))
        return request


def _said(answer: Response) -> str:
    text = answer.body.decode("utf-8", "replace")
    return f"; it answers {answer.status}: {text[:MAX_QUOTED_BYTES]!r}"
