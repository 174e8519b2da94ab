"""Proof that the sender of a request or response has the cluster's secret (``KV_CLUSTER_SECRET``). Pure.

Theory of operation
-------------------
A request carries the header ``X-Causeway-Proof: 1 <receiver> <time> <nonce> <digest> <mac>``. The MAC (HMAC-SHA256)
covers the method, the path with its query and the other fields. The digest (SHA-256) is that of the body, so a receiver
can reject a stranger before it reads the body. A response carries ``1 <sender> <time> <mac>``. Its MAC covers the
request's nonce, the status and the body, so a response proves as much as a request and cannot be replayed either.

Three fields make a recorded request useless:

* Nonce: a receiver accepts each nonce once. It remembers a nonce for as long as its time is acceptable.
* Time: it has to be within ``window_s`` of the receiver's clock. This bounds how many nonces there are to remember.
* Receiver: the replica id, incarnation included. A request that changes anything has to name its receiver. So it is
  useless at another replica, and at the same one after a restart, which forgets the nonces. A request that only reads
  may leave the receiver open (``-``); this is how a sender learns the id.

A clock that is wrong, even by hours, does not exclude a replica. A request that is rejected for its time, or because
the receiver has a new incarnation, still proves the secret. So the rejection is a response with proof, which contains
the receiver's id and time; the sender uses both from then on. A request with a wrong MAC is rejected without proof.

The proof does not encrypt: TLS does that.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

HEADER: Final = "X-Causeway-Proof"
VERSION: Final = "1"
ANY_RECEIVER: Final = "-"
"""Stands for the receiver in a request that only reads."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods of requests that only read."""

MAX_NONCES: Final = 1_000_000
"""Nonces remembered at most, about 100 bytes each. Only senders that have the secret can reach this limit; further
requests with proof are rejected until old nonces expire."""

_REQUEST: Final = re.compile(r"1 (\S{1,300}) ([0-9]{1,17}) ([0-9a-f]{32}) ([0-9a-f]{64}) ([0-9a-f]{64})")
_RESPONSE: Final = re.compile(r"1 (\S{1,300}) ([0-9]{1,17}) ([0-9a-f]{64})")


class RequestProof(NamedTuple):
    """The fields of a request's header, not verified yet. ``time_us``: the sender's clock, Unix microseconds."""

    receiver: str
    time_us: int
    nonce: str
    digest: str
    mac: str


class ResponseSender(NamedTuple):
    """The verified sender of a response: its replica id and its clock in Unix microseconds."""

    replica: str
    time_us: int


def derive_key(secret: str) -> bytes:
    """Return the key for ``secret``, 32 bytes.

    Slow on purpose (about 50 ms): anybody who has recorded a MAC can try secrets against it.
    """
    return hashlib.scrypt(secret.encode(), salt=b"causeway cluster proof 1", n=2**14, r=8, p=1, dklen=32)


def sign_request(key: bytes, method: str, target: str, body: bytes, *, receiver: str, now_us: int, nonce: str) -> str:
    """Return the header for a request.

    ``target``: path and query. ``receiver``: a replica id or ``ANY_RECEIVER``. ``nonce``: 32 random hex digits that are
    never used again.
    """
    digest = hashlib.sha256(body).hexdigest()
    mac = _mac(key, "request", (method, target, receiver, str(now_us), nonce, digest))
    return f"{VERSION} {receiver} {now_us} {nonce} {digest} {mac}"


def parse_request_proof(header: str) -> RequestProof | None:
    """Return the fields of a request's header; None if it is malformed or of another version."""
    match = _REQUEST.fullmatch(header)
    if match is None:
        return None
    receiver, time_us, nonce, digest, mac = match.groups()
    return RequestProof(receiver, int(time_us), nonce, digest, mac)


def _has_valid_mac(key: bytes, proof: RequestProof, method: str, target: str) -> bool:
    """Return whether ``proof`` was made with ``key`` for this request. Takes constant time."""
    fields = (method, target, proof.receiver, str(proof.time_us), proof.nonce, proof.digest)
    return hmac.compare_digest(_mac(key, "request", fields), proof.mac)


def sign_response(key: bytes, nonce: str, status: int, body: bytes, *, sender: str, now_us: int) -> str:
    """Return the header for the response to the request that had ``nonce``. ``sender``: own replica id."""
    digest = hashlib.sha256(body).hexdigest()
    mac = _mac(key, "reply", (nonce, str(status), sender, str(now_us), digest))
    return f"{VERSION} {sender} {now_us} {mac}"


def verify_response(key: bytes, header: str, nonce: str, status: int, body: bytes) -> ResponseSender | None:
    """Return the sender of a response; None if ``header`` was not made with ``key`` for this request and response."""
    match = _RESPONSE.fullmatch(header)
    if match is None:
        return None
    sender, time_us, mac = match.groups()
    expected = _mac(key, "reply", (nonce, str(status), sender, time_us, hashlib.sha256(body).hexdigest()))
    return ResponseSender(sender, int(time_us)) if hmac.compare_digest(expected, mac) else None


class ProofCheck(NamedTuple):
    """Result of verifying a request's proof.

    ``rejection``: why the request is rejected; empty if it is accepted.
    ``nonce``: empty if the proof was not made with one of our keys. Then the response must not be signed.
    ``digest``: the SHA-256 that the body has to have. ``key``: the key that made the proof; it also signs the response.
    """

    rejection: str
    nonce: str = ""
    digest: str = ""
    key: bytes = b""


class ProofVerifier:
    """Verifies the proofs of requests to one replica, and remembers their nonces. Not thread-safe.

    ``keys``: a proof with any of them is accepted, so that the secret can be changed while the cluster runs.
    ``window_s``: how far a request's time may be from the receiver's, in either direction.
    """

    def __init__(self, keys: Iterable[bytes], window_s: float, max_nonces: int = MAX_NONCES) -> None:
        self._keys = tuple(keys)
        self._window_us = round(window_s * 1_000_000)
        self._max_nonces = max_nonces
        # A nonce has to be remembered for two windows: its time may be one window ahead, and is accepted until it is
        # one window behind. So two generations are kept. After at least two windows a new one starts and replaces the
        # older of the two.
        self._recent_nonces: set[str] = set()
        self._older_nonces: set[str] = set()
        self._rotated_us = 0

    def verify(self, header: str, method: str, target: str, *, own_id: str, now_us: int) -> ProofCheck:
        """Verify the proof of a request. If it is accepted, its nonce is used up.

        ``target``: path and query. ``own_id``: the receiver's replica id. ``now_us``: the receiver's clock.
        """
        proof = parse_request_proof(header)
        if proof is None:
            return ProofCheck("the proof is malformed or not of version 1")
        for key in self._keys:
            if _has_valid_mac(key, proof, method, target):
                return ProofCheck(self._reject_replay(proof, method, own_id, now_us), proof.nonce, proof.digest, key)
        return ProofCheck("the proof was made with another KV_CLUSTER_SECRET or for another request")

    def _reject_replay(self, proof: RequestProof, method: str, own_id: str, now_us: int) -> str:
        """Return why a request with a valid MAC is rejected; empty if it is accepted."""
        ahead_us = proof.time_us - now_us
        if abs(ahead_us) > self._window_us:
            relation = "ahead of" if ahead_us > 0 else "behind"
            return (
                f"the sender's clock is {abs(ahead_us) / 1e6:.0f} s {relation} this replica's: one of the two is "
                f"wrong, or this is a recorded request (at most {self._window_us / 1e6:g} s are allowed)"
            )
        if proof.receiver != own_id and (proof.receiver != ANY_RECEIVER or method not in SAFE_METHODS):
            return "the request is meant for another replica or for an earlier incarnation of this one"
        return self._use_nonce(proof.nonce, now_us)

    def _use_nonce(self, nonce: str, now_us: int) -> str:
        """Remember ``nonce``. Returns why that is rejected; empty if it is accepted."""
        if now_us - self._rotated_us > 2 * self._window_us:
            # Four windows without a rotation: the recent nonces, too, were added more than two windows ago.
            both_expired = now_us - self._rotated_us > 4 * self._window_us
            self._older_nonces = set() if both_expired else self._recent_nonces
            self._recent_nonces, self._rotated_us = set(), now_us
        if nonce in self._recent_nonces or nonce in self._older_nonces:
            return "this request was received before"
        if len(self._recent_nonces) + len(self._older_nonces) >= self._max_nonces:
            return "too many requests with proof at once; try again later"
        self._recent_nonces.add(nonce)
        return ""


def _mac(key: bytes, purpose: str, fields: Iterable[str]) -> str:
    """Return the MAC of ``fields`` in hex. Each is preceded by its length, so different lists never look alike."""
    mac = hmac.new(key, f"causeway {purpose} {VERSION}".encode(), hashlib.sha256)
    for field in fields:
        encoded = field.encode("utf-8", "surrogateescape")
        mac.update(len(encoded).to_bytes(8, "big"))
        mac.update(encoded)
    return mac.hexdigest()
