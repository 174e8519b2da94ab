"""Proof that the sender of a request or response has the cluster's secret (``KV_CLUSTER_SECRET``). Pure.

Theory of operation
-------------------
A request carries the header ``X-Causeway-Proof: 2 <receiver> <session> <time> <digest> <mac>``. The MAC (HMAC-SHA256)
covers the method, the path, the query and the other fields, each by itself. The digest (SHA-256) is that of the body,
so a receiver can reject a stranger before it reads the body. A response carries ``2 <sender> <time> <mac>``. Its MAC
covers the MAC of the request, the status and the body, so a response proves as much as a request and cannot be replayed
either.

Three fields make a recorded request useless:

* Receiver: the replica id, incarnation included. So the request is useless at another replica, and at the same one
  after a restart, which forgets the sessions. Reads name their receiver too.
* Session and time: a session is a random number that a sender chooses when it first contacts a receiver. The times of
  a session's requests only rise: a receiver remembers the highest one and rejects a request that is not above it.
* Time: it has to be within ``window_s`` of the receiver's clock. So a receiver can forget a session that has been
  silent for that long.

A receiver remembers one number per session, however many requests a session has, and at most ``MAX_SESSIONS`` sessions.
Beyond that it forgets those with the lowest times, and rejects requests of unknown sessions up to the highest time that
it has forgotten. So no number of requests and no width of the window fills its memory or makes it reject current
requests.

A sender learns the receiver's id and clock from the *greeting*: ``GET /healthz`` for the receiver ``-``. Only this
request may leave its receiver open. It is public, changes nothing and is not remembered: a recorded one yields what it
yielded before, with the receiver's id and time.

A clock that is wrong, even by hours, does not exclude a replica: the sender uses the receiver's clock, which it learns
from each response. A request that is rejected for its time, or because the receiver has a new incarnation, still proves
the secret. So the rejection is a response with proof, which contains the receiver's id and time; the sender uses both
from then on. A request with a wrong MAC is rejected without proof.

The proof does not encrypt: TLS does that.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

HEADER: Final = "X-Causeway-Proof"
VERSION: Final = "2"

GREETING_METHOD: Final = "GET"
GREETING_PATH: Final = "/healthz"
"""The greeting. Cheap, public, and answered in every state of a replica."""

ANY_RECEIVER: Final = "-"
"""Stands for the receiver in a greeting."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods of requests that only read."""

MAX_SESSIONS: Final = 10_000
"""Sessions remembered at most, about 250 bytes each. A peer needs one per incarnation and connection failure, a command
one."""

_REQUEST: Final = re.compile(r"2 (\S{1,300}) ([0-9a-f]{32}) ([0-9]{1,17}) ([0-9a-f]{64}) ([0-9a-f]{64})")
_RESPONSE: Final = re.compile(r"2 (\S{1,300}) ([0-9]{1,17}) ([0-9a-f]{64})")


class RequestProof(NamedTuple):
    """The fields of a request's header, not verified yet. ``time_us``: the sender's time, Unix microseconds."""

    receiver: str
    session: str
    time_us: int
    digest: str
    mac: str


class ResponseSender(NamedTuple):
    """The verified sender of a response: its replica id and its clock in Unix microseconds."""

    replica: str
    time_us: int


@lru_cache(maxsize=8)  # Deliberately slow, and a process has few secrets.
def derive_key(secret: str) -> bytes:
    """Return the key for ``secret``, 32 bytes.

    Slow on purpose (about 50 ms): anybody who has recorded a MAC can try secrets against it.
    """
    return hashlib.scrypt(secret.encode(), salt=b"causeway cluster proof 1", n=2**14, r=8, p=1, dklen=32)


def sign_request(
    key: bytes, method: str, path: str, query: str, body: bytes, *, receiver: str, session: str, time_us: int
) -> str:
    """Return the header for a request.

    ``receiver``: a replica id, or ``ANY_RECEIVER`` in a greeting. ``session``: 32 random hex digits. ``time_us``: by
    the receiver's clock; above those of the session's earlier requests.
    """
    digest = hashlib.sha256(body).hexdigest()
    mac = _mac(key, "request", (method, path, query, receiver, session, str(time_us), digest))
    return f"{VERSION} {receiver} {session} {time_us} {digest} {mac}"


def parse_request_proof(header: str) -> RequestProof | None:
    """Return the fields of a request's header; None if it is malformed or of another version."""
    match = _REQUEST.fullmatch(header)
    if match is None:
        return None
    receiver, session, time_us, digest, mac = match.groups()
    return RequestProof(receiver, session, int(time_us), digest, mac)


def mac_of(header: str) -> str:
    """Return the MAC in the header of a request that was signed here: ``verify_response`` needs it."""
    return header.rpartition(" ")[2]


def _has_valid_mac(key: bytes, proof: RequestProof, method: str, path: str, query: str) -> bool:
    """Return whether ``proof`` was made with ``key`` for this request. Takes constant time."""
    fields = (method, path, query, proof.receiver, proof.session, str(proof.time_us), proof.digest)
    return hmac.compare_digest(_mac(key, "request", fields), proof.mac)


def sign_response(key: bytes, request_mac: str, status: int, body: bytes, *, sender: str, now_us: int) -> str:
    """Return the header for the response to the request that had ``request_mac``. ``sender``: own replica id."""
    digest = hashlib.sha256(body).hexdigest()
    mac = _mac(key, "reply", (request_mac, str(status), sender, str(now_us), digest))
    return f"{VERSION} {sender} {now_us} {mac}"


def verify_response(key: bytes, header: str, request_mac: str, status: int, body: bytes) -> ResponseSender | None:
    """Return the sender of a response; None if ``header`` was not made with ``key`` for this request and response."""
    match = _RESPONSE.fullmatch(header)
    if match is None:
        return None
    sender, time_us, mac = match.groups()
    expected = _mac(key, "reply", (request_mac, str(status), sender, time_us, hashlib.sha256(body).hexdigest()))
    return ResponseSender(sender, int(time_us)) if hmac.compare_digest(expected, mac) else None


class ProofCheck(NamedTuple):
    """Result of verifying a request's proof.

    ``rejection``: why the request is rejected; empty if it is accepted.
    ``mac``: empty if the proof was not made with one of our keys. Then the response must not be signed.
    ``digest``: the SHA-256 that the body has to have. ``key``: the key that made the proof; it also signs the response.
    """

    rejection: str
    mac: str = ""
    digest: str = ""
    key: bytes = b""


class ProofVerifier:
    """Verifies the proofs of requests to one replica, and remembers their sessions. Not thread-safe.

    ``keys``: a proof with any of them is accepted, so that the secret can be changed while the cluster runs.
    ``window_s``: how far a request's time may be from the receiver's, in either direction.
    """

    def __init__(self, keys: Iterable[bytes], window_s: float, max_sessions: int = MAX_SESSIONS) -> None:
        self._keys = tuple(keys)
        self._window_us = round(window_s * 1_000_000)
        self._max_sessions = max_sessions
        self._highest_us: dict[str, int] = {}
        """Session -> time of its latest accepted request; at most ``max_sessions`` sessions."""
        self._forgotten_us = 0
        """The highest time of a forgotten session. Requests of unknown sessions have to be later."""

    def verify(self, header: str, method: str, path: str, query: str, *, own_id: str, now_us: int) -> ProofCheck:
        """Verify the proof of a request. If it is accepted, the same proof is rejected from then on.

        ``own_id``: the receiver's replica id. ``now_us``: the receiver's clock.
        """
        proof = parse_request_proof(header)
        if proof is None:
            return ProofCheck(f"the proof is malformed or not of version {VERSION}")
        for key in self._keys:
            if _has_valid_mac(key, proof, method, path, query):
                is_greeting = (method, path, query) == (GREETING_METHOD, GREETING_PATH, "")
                rejection = self._reject(proof, own_id, now_us, may_greet=is_greeting)
                return ProofCheck(rejection, proof.mac, proof.digest, key)
        return ProofCheck("the proof was made with another KV_CLUSTER_SECRET or for another request")

    def _reject(self, proof: RequestProof, own_id: str, now_us: int, *, may_greet: bool) -> str:
        """Return why a request with a valid MAC is rejected; empty if it is accepted."""
        ahead_us = proof.time_us - now_us
        if abs(ahead_us) > self._window_us:
            relation = "ahead of" if ahead_us > 0 else "behind"
            return (
                f"the sender's clock is {abs(ahead_us) / 1e6:.0f} s {relation} this replica's: one of the two is "
                f"wrong, or this is a recorded request (at most {self._window_us / 1e6:g} s are allowed)"
            )
        if may_greet and proof.receiver == ANY_RECEIVER:
            return ""
        if proof.receiver != own_id:
            return "the request is meant for another replica or for an earlier incarnation of this one"
        if proof.time_us <= self._highest_us.get(proof.session, self._forgotten_us):
            return "this request, or a later one of its session, was received before"
        if proof.session not in self._highest_us and len(self._highest_us) >= self._max_sessions:
            self._forget_sessions(now_us)
        self._highest_us[proof.session] = proof.time_us
        return ""

    def _forget_sessions(self, now_us: int) -> None:
        """Forget the sessions whose requests are too old to be accepted; if they are few, a quarter of all."""
        by_time = sorted(self._highest_us, key=self._highest_us.__getitem__)
        expired = sum(time_us < now_us - self._window_us for time_us in self._highest_us.values())
        for session in by_time[: max(expired, len(by_time) // 4, 1)]:
            self._forgotten_us = max(self._forgotten_us, self._highest_us.pop(session))


def _mac(key: bytes, purpose: str, fields: Iterable[str]) -> str:
    """Return the MAC of ``fields`` in hex. Each is preceded by its length, so different lists never look alike."""
    mac = hmac.new(key, f"causeway {purpose} {VERSION}".encode(), hashlib.sha256)
    for field in fields:
        encoded = field.encode("utf-8", "surrogateescape")
        mac.update(len(encoded).to_bytes(8, "big"))
        mac.update(encoded)
    return mac.hexdigest()
