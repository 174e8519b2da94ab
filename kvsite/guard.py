"""Who may do what (SPEC 5), decided at the edge: before Django, before a view, before a body is read.

Here and nowhere else, so that a route added tomorrow is behind it too. The rules, first match wins:

1. A proof (``X-Causeway-Proof``) admits a replica, or a command, to everything; a wrong one gets 403, wherever it asks.
2. ``/healthz``, ``/readyz`` and the dashboard are for everybody (the dashboard has its own login).
3. With a cluster secret, whatever changes the view, and all that replicas say to each other, is 403 without proof.
4. With tokens, everything else needs one: 401 without, 403 for a write with one that may only read.

Of two refusals that would both be true the one is told that helps: a token never gets a stranger past rule 3, so that
is a 403. Bodies of strangers are not read: not to find their causal metadata either, which a 401 leaves out.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kvsite.config import Config
from kvsite.denied_responses import SignReply, Turned
from replication.messages import MAX_MESSAGE_BYTES
from replication.proof import HEADER, SAFE_METHODS, ProofVerifier, derive_key, sign_response
from replication.rate_limit import LogRateLimiter
from store.api.access import READ_ONLY
from store.api_tokens import ApiToken

Environ = dict[str, Any]

PROOF: Final = "HTTP_" + HEADER.upper().replace("-", "_")
PUBLIC: Final = frozenset({"/healthz", "/readyz"})
DASHBOARD: Final = "/admin/"
TRANSACTIONS: Final = ("POST", "/kvs")
"""May be a read or a write, which its body says: the view decides (store/api/access.py)."""

CHALLENGE: Final = "WWW-Authenticate"
BEARER: Final = 'Bearer realm="causeway"'

logger = logging.getLogger("causeway.guard")


class Admitted(NamedTuple):
    """The request may come in. ``sign``: for the reply to one with proof; ``digest``: what its body must have."""

    sign: SignReply | None = None
    digest: str = ""


ADMITTED: Final = Admitted()


class Guard:
    """Knows the secrets. ``own_id`` returns this replica's id; ``now_us``: Unix time that never jumps."""

    def __init__(self, config: Config, own_id: Callable[[], str], now_us: Callable[[], int] | None = None) -> None:
        self._own_id = own_id
        self._now_us = now_us or steady_clock()
        keys = [derive_key(secret) for secret in (config.cluster_secret, config.cluster_secret_also) if secret]
        self._verifier = ProofVerifier(keys, config.proof_window_s) if keys else None
        self._lock = threading.Lock()  # The verifier remembers nonces.
        # By digest, so that the time of a look-up tells nothing of a token; the comparison after it is for the rest.
        self._tokens = {_digest(token.token.encode()): token for token in config.api_tokens}
        self._seldom = LogRateLimiter()

    @staticmethod
    def for_config(config: Config, own_id: Callable[[], str]) -> Guard | None:
        """Return a guard where there is something to guard, else None."""
        return Guard(config, own_id) if config.cluster_secret or config.api_tokens else None

    def admit(self, environ: Environ) -> Admitted:
        """Decide whether a request may come in, by its headers alone. Raises ``Turned``."""
        try:
            return self._admit(environ)
        except Turned as turned:
            self._note(environ, turned)
            raise

    def check_body(self, environ: Environ, admitted: Admitted) -> None:
        """Read the body of a request with proof, and hand it on where it is what was signed. Raises ``Turned``."""
        length = environ.get("CONTENT_LENGTH") or "0"
        if not length.isdigit() or int(length) > MAX_MESSAGE_BYTES:
            raise Turned(413, "Body is too large", sign=admitted.sign)
        body = environ["wsgi.input"].read(int(length)) if int(length) else b""
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), admitted.digest):
            raise Turned(403, "Refused: the body is not the one that the proof is for")
        environ["wsgi.input"] = io.BytesIO(body)

    def _admit(self, environ: Environ) -> Admitted:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if (header := environ.get(PROOF)) is not None:
            return self._admit_peer(environ, header)
        if path in PUBLIC or path.startswith(DASHBOARD):
            return ADMITTED
        if self._verifier is not None and needs_proof(method, path):
            raise Turned(403, "Refused: needs proof of KV_CLUSTER_SECRET")
        if self._tokens:
            self._admit_token(environ, method, path)
        return ADMITTED

    def _admit_peer(self, environ: Environ, header: str) -> Admitted:
        if self._verifier is None:
            raise Turned(403, "Refused: this replica has no KV_CLUSTER_SECRET, and belongs to another cluster than you")
        now_us, own_id, verifier = self._now_us(), self._own_id(), self._verifier
        target = environ["PATH_INFO"] + (f"?{query}" if (query := environ.get("QUERY_STRING")) else "")
        with self._lock:
            check = verifier.verify(header, environ["REQUEST_METHOD"], target, own_id=own_id, now_us=now_us)

        def sign(status: int, body: bytes) -> str:
            now_us = self._now_us()
            return sign_response(check.key, check.nonce, status, body, sender=self._own_id(), now_us=now_us)

        if check.rejection:
            raise Turned(403, f"Refused: {check.rejection}", sign=sign if check.nonce else None)
        return Admitted(sign, check.digest)

    def _admit_token(self, environ: Environ, method: str, path: str) -> None:
        scheme, _, presented = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Turned(401, "Needs an API token: Authorization: Bearer …", [(CHALLENGE, BEARER)])
        token = self._token(presented.strip().encode("latin-1", "replace"))
        if token is None:
            raise Turned(401, "Unknown API token", [(CHALLENGE, f'{BEARER}, error="invalid_token"')])
        if token.access == "read" and method not in SAFE_METHODS:
            if (method, path) != TRANSACTIONS:
                raise Turned(403, f"Token {token.name!r} may only read")
            environ[READ_ONLY] = token.name

    def _token(self, presented: bytes) -> ApiToken | None:
        token = self._tokens.get(_digest(presented))
        return token if token is not None and hmac.compare_digest(token.token.encode(), presented) else None

    def _note(self, environ: Environ, turned: Turned) -> None:
        """Log a refusal: who, how and why, but each kind of each source once a minute at most."""
        source, kind = environ.get("REMOTE_ADDR", "?"), str(turned)[:60]
        if self._seldom.allow(f"{source} {turned.status} {kind}", time.monotonic()):
            logger.warning(
                "refused %s %.200r from %s: %s", environ["REQUEST_METHOD"], environ["PATH_INFO"], source, turned
            )


def needs_proof(method: str, path: str) -> bool:
    """Return whether only holders of the cluster's secret may ask this, where there is one."""
    return method not in SAFE_METHODS and (path == "/view" or path.startswith(("/view/", "/replication/")))


def steady_clock() -> Callable[[], int]:
    """Return a clock: Unix time in microseconds as it was when this was called, going on evenly from there.

    If the wall clock were set back, requests recorded since would look fresh again when their nonces are forgotten.
    """
    base_ns = time.time_ns() - time.monotonic_ns()
    return lambda: (base_ns + time.monotonic_ns()) // 1000


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
