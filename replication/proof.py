"""Proof that whoever sent a request, or answered it, has the cluster's secret (``KV_CLUSTER_SECRET``).

Pure: keys, messages, the time and nonces come in; headers and verdicts go out.

Theory of operation
-------------------
A request carries one header, ``X-Causeway-Proof: 1 <to> <time> <nonce> <digest> <mac>``. The MAC (HMAC-SHA256) covers
method, path with query, and the other fields; the digest (SHA-256) covers the body, so that a receiver can refuse a
stranger before it reads what he sends. A reply carries ``1 <from> <time> <mac>``, and its MAC covers the request's
nonce, the status and the body: a reply is as good as a request, and none can be played back either.

What makes a recorded request worthless:

* the nonce: a receiver takes each one once. It remembers them for as long as their time is acceptable;
* the time: within ``window_s`` of the receiver's, which bounds what there is to remember;
* ``to``: the receiver's replica id, incarnation included. A request that changes anything has to name it, so it is
  worth nothing at another replica, nor at this one after a restart, when the nonces are forgotten. One that only reads
  may name nobody (``-``): that is how a sender gets to know the id.

Clocks that are off, even by hours, cut nobody off. A request that is refused for its time, or because the receiver has
a new incarnation, still proves the secret; so the refusal is a proven reply, it tells the receiver's id and time, and
the sender reckons with those from then on. A stranger, whose MAC is wrong, gets a refusal without proof.

This is proof, not secrecy: whoever can read the wire reads the data. That is what TLS is for.
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
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

MAX_NONCES: Final = 1_000_000
"""Nonces remembered at most (some 100 bytes each). Only holders of the secret can fill it; then they have to wait."""

_REQUEST: Final = re.compile(r"1 (\S{1,300}) ([0-9]{1,17}) ([0-9a-f]{32}) ([0-9a-f]{64}) ([0-9a-f]{64})")
_REPLY: Final = re.compile(r"1 (\S{1,300}) ([0-9]{1,17}) ([0-9a-f]{64})")


class RequestProof(NamedTuple):
    """What a request's header says; nothing of it is proven yet. ``time_us``: the sender's, as Unix time."""

    to: str
    time_us: int
    nonce: str
    digest: str
    mac: str


class ResponseSender(NamedTuple):
    """What a proven reply tells of its sender: its replica id, and its time in microseconds."""

    replica: str
    time_us: int


def derive_key(secret: str) -> bytes:
    """Return the key that ``secret`` stands for. Stretched (some 50 ms): a recorded MAC invites to try secrets."""
    return hashlib.scrypt(secret.encode(), salt=b"causeway cluster proof 1", n=2**14, r=8, p=1, dklen=32)


def sign_request(key: bytes, method: str, target: str, body: bytes, *, to: str, now_us: int, nonce: str) -> str:
    """Return the header for a request. ``target``: path and query; ``nonce``: 32 random hex digits, never reused."""
    digest = hashlib.sha256(body).hexdigest()
    mac = _mac(key, "request", (method, target, to, str(now_us), nonce, digest))
    return f"{VERSION} {to} {now_us} {nonce} {digest} {mac}"


def parse_request_proof(header: str) -> RequestProof | None:
    """Return what a request's header says; None where it is none of this version."""
    match = _REQUEST.fullmatch(header)
    if match is None:
        return None
    to, time_us, nonce, digest, mac = match.groups()
    return RequestProof(to, int(time_us), nonce, digest, mac)


def has_valid_mac(key: bytes, proof: RequestProof, method: str, target: str) -> bool:
    """Return whether whoever made ``proof`` has ``key``; in constant time."""
    fields = (method, target, proof.to, str(proof.time_us), proof.nonce, proof.digest)
    return hmac.compare_digest(_mac(key, "request", fields), proof.mac)


def sign_response(key: bytes, nonce: str, status: int, body: bytes, *, sender: str, now_us: int) -> str:
    """Return the header for the reply to the request that had ``nonce``."""
    digest = hashlib.sha256(body).hexdigest()
    mac = _mac(key, "reply", (nonce, str(status), sender, str(now_us), digest))
    return f"{VERSION} {sender} {now_us} {mac}"


def verify_response(key: bytes, header: str, nonce: str, status: int, body: bytes) -> ResponseSender | None:
    """Return who replied and its time; None where the header does not prove that it has ``key`` and means this."""
    match = _REPLY.fullmatch(header)
    if match is None:
        return None
    sender, time_us, mac = match.groups()
    expected = _mac(key, "reply", (nonce, str(status), sender, time_us, hashlib.sha256(body).hexdigest()))
    return ResponseSender(sender, int(time_us)) if hmac.compare_digest(expected, mac) else None


class ProofCheck(NamedTuple):
    """What to make of a request. ``refusal``: why not, empty where it may come in.

    ``nonce`` is empty where no secret is proven: then the reply must not be signed. ``key``: the one to sign it with.
    """

    rejection: str
    nonce: str = ""
    digest: str = ""
    key: bytes = b""


class ProofVerifier:
    """Judges requests at one replica. Not thread-safe.

    ``keys``: any of them will do, so that a secret can be changed while the cluster runs; ``window_s``: how far a
    request's time may be off.
    """

    def __init__(self, keys: Iterable[bytes], window_s: float, max_nonces: int = MAX_NONCES) -> None:
        self._keys = tuple(keys)
        self._window_us = round(window_s * 1_000_000)
        self._max_nonces = max_nonces
        # A nonce's time is acceptable for at most two windows. Two generations, each as long, remember it through.
        self._young: set[str] = set()
        self._old: set[str] = set()
        self._turned_us = 0

    def verify(self, header: str, method: str, target: str, *, own_id: str, now_us: int) -> ProofCheck:
        """Return what to make of a request; its nonce is used up where it may come in."""
        proof = parse_request_proof(header)
        if proof is None:
            return ProofCheck("the proof is none of version 1")
        for key in self._keys:
            if has_valid_mac(key, proof, method, target):
                return ProofCheck(self._refusal(proof, method, own_id, now_us), proof.nonce, proof.digest, key)
        return ProofCheck("the proof is of another KV_CLUSTER_SECRET, or of another request")

    def _refusal(self, proof: RequestProof, method: str, own_id: str, now_us: int) -> str:
        ahead_us = proof.time_us - now_us
        if abs(ahead_us) > self._window_us:
            behind = "ahead of" if ahead_us > 0 else "behind"
            return (
                f"the sender's clock is {abs(ahead_us) / 1e6:.0f} s {behind} this replica's: one of the two is wrong, "
                f"or this is a recorded request ({self._window_us / 1e6:g} s are allowed)"
            )
        if proof.to != own_id and (proof.to != ANY_RECEIVER or method not in SAFE_METHODS):
            return "it is meant for another replica, or for an earlier incarnation of this one"
        return self._use_up(proof.nonce, now_us)

    def _use_up(self, nonce: str, now_us: int) -> str:
        if now_us - self._turned_us > 2 * self._window_us:
            # Longer ago than two generations: what is old is of no use any more, whichever set it is in.
            stale = now_us - self._turned_us > 4 * self._window_us
            self._old, self._young, self._turned_us = set() if stale else self._young, set(), now_us
        if nonce in self._young or nonce in self._old:
            return "this request was received before"
        if len(self._young) + len(self._old) >= self._max_nonces:
            return "too many requests with proof at once; try again later"
        self._young.add(nonce)
        return ""


def _mac(key: bytes, what: str, fields: Iterable[str]) -> str:
    """Each field goes in with its length: no two lists of fields look alike."""
    mac = hmac.new(key, f"causeway {what} {VERSION}".encode(), hashlib.sha256)
    for field in fields:
        encoded = field.encode("utf-8", "surrogateescape")
        mac.update(len(encoded).to_bytes(8, "big"))
        mac.update(encoded)
    return mac.hexdigest()
