"""The guard: authenticates and authorises requests at the edge (contract 5).

It runs before Django, before any view, and before a body is read. So a new route is protected without further work. The
first rule that applies decides:

1. A valid proof (``X-Causeway-Proof``) of a replica or a command allows everything. An invalid proof gets 403 on every
   path.
2. Everyone may use ``/healthz``, ``/readyz`` and the dashboard (which has its own login). A browser may read the pages
   ``/`` and ``/docs/`` as it reads the dashboard: the view checks the login (kvsite/docs_page.py). The dashboard shows
   every key: if a token has prefixes and the dashboard has no password, nobody may use it.
3. If a cluster secret is set, changes of the view and all messages between replicas need a proof: 403 without.
4. If tokens are set, everything else needs a token: 401 without, 403 for a write with a token that may only read.
   Without a cluster secret, nobody may add a peer or act as one: 403, because tokens are never sent to a peer.
5. A token with prefixes permits only keys that begin with one of them, and only the paths that are listed here: 403.
   The guard checks a key in the path. Views check what the query and the body ask for (store/api/access.py).

Rule 3 comes before rule 4 because a token never replaces a proof: a 401 would suggest that it does. The guard does not
read bodies of unknown senders, not even for their causal metadata, so a 401 does not repeat it.
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
from kvsite.denied_responses import RequestDenied, SignReply
from kvsite.errors import accepts_html
from replication.messages import MAX_MESSAGE_BYTES
from replication.proof import HEADER, SAFE_METHODS, ProofVerifier, derive_key, sign_response
from replication.rate_limit import LogRateLimiter
from store.api.access import NEEDS_WRITE, OUTSIDE, PROVEN, TOKEN, outside, read_only
from store.api.errors import TOO_LARGE
from store.api_tokens import ApiToken

Environ = dict[str, Any]

PROOF: Final = "HTTP_" + HEADER.upper().replace("-", "_")
PUBLIC: Final = frozenset({"/healthz", "/readyz"})
DASHBOARD: Final = "/admin/"
WITHOUT_DATA: Final = ("/admin/static/", "/admin/schema/")
"""Paths below ``DASHBOARD`` that show nothing of the replica. ``/docs/`` uses them."""

PAGES: Final = frozenset({"/", "/admin", "/docs", "/docs/"})
"""Pages outside of the dashboard that its login opens. ``/``, ``/admin`` and ``/docs`` only redirect."""

LOGIN_DECIDES: Final = "causeway.login_decides"
"""WSGI variable: set if the guard has seen no token, so that the login of the dashboard decides about a page."""

TRANSACTIONS: Final = ("POST", "/kvs")
"""Only the body of a transaction shows whether it writes, so the view decides (store/api/access.py)."""

KEY_PATHS: Final = ("/kvs/", "/replication/explain/")
"""Paths that end with a key. They are for tokens that permit the key."""

CHECKED_BY_VIEWS: Final = frozenset({"/kvs", "/changes", "/export", "/replication/status"})
"""Paths whose views ask what a token with prefixes permits."""

WITHOUT_KEYS: Final = PAGES | {"/metrics", "/schema/", "/view"}
"""Paths whose responses name no key. Tokens with prefixes may read them, and write nothing there."""

UNRESTRICTED: Final = "Send a token without prefixes: KV_API_TOKENS has it as name:token:read or name:token:write."

AUTHORIZE: Final = (
    "Send the header Authorization: Bearer TOKEN (curl -H does). TOKEN is the second part of name:token:write in "
    "KV_API_TOKENS of the replica."
)
PROOF_HINT: Final = (
    "Use the commands join_view and leave_view, with the cluster's KV_CLUSTER_SECRET in their environment. Only "
    "replicas and commands prove the secret; a token does not."
)

CHALLENGE: Final = "WWW-Authenticate"
BEARER: Final = 'Bearer realm="causeway"'

logger = logging.getLogger("causeway.guard")


class Authorization(NamedTuple):
    """What the guard found about a request that it allows.

    ``sign``: signs the response; None if the request had no proof. ``digest``: SHA-256 that the body of a request with
    proof must have, in hex.
    """

    sign: SignReply | None = None
    digest: str = ""


WITHOUT_PROOF: Final = Authorization()


class Guard:
    """Applies the rules above. Thread-safe.

    ``own_id``: id of this replica, which a proof must name. ``now_us``: returns Unix time in
    microseconds and must never go back.
    """

    def __init__(self, config: Config, own_id: str, now_us: Callable[[], int] | None = None) -> None:
        self._own_id = own_id
        self._now_us = now_us or steady_clock()
        keys = [derive_key(secret) for secret in (config.cluster_secret, config.cluster_secret_also) if secret]
        self._verifier = ProofVerifier(keys, config.proof_window_s) if keys else None
        self._lock = threading.Lock()
        """Protects the verifier, which remembers sessions."""
        # Look tokens up by digest: the time of the lookup then reveals nothing about a token. A comparison in constant
        # time follows.
        self._tokens = {_digest(token.token.encode()): token for token in config.api_tokens}
        self._is_without_peers = config.is_without_peers
        self._closes_dashboard = config.closes_dashboard
        self._log_rate = LogRateLimiter()

    @staticmethod
    def for_config(config: Config, own_id: str) -> Guard | None:
        """Return a guard; None if neither a cluster secret nor a token is set."""
        return Guard(config, own_id) if config.cluster_secret or config.api_tokens else None

    def authorize(self, environ: Environ) -> Authorization:
        """Check the headers of a request. Raises ``RequestDenied``."""
        try:
            return self._authorize(environ)
        except RequestDenied as denied:
            self._log(environ, denied)
            raise

    def check_body(self, environ: Environ, authorization: Authorization) -> None:
        """Read the body of a request with proof and compare it with the signed digest. Raises ``RequestDenied``.

        Replaces ``wsgi.input`` by the body.
        """
        length = environ.get("CONTENT_LENGTH") or "0"
        if not length.isdigit() or int(length) > MAX_MESSAGE_BYTES:
            raise RequestDenied(413, "Body is too large", sign=authorization.sign, hint=TOO_LARGE)
        body = environ["wsgi.input"].read(int(length)) if int(length) else b""
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), authorization.digest):
            raise RequestDenied(403, "Rejected: the proof is for another body", hint=PROOF_HINT)
        environ["wsgi.input"] = io.BytesIO(body)

    def _authorize(self, environ: Environ) -> Authorization:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if (header := environ.get(PROOF)) is not None:
            return self._authorize_peer(environ, header)
        if path in PUBLIC or path.startswith(DASHBOARD):
            if self._closes_dashboard and path.startswith(DASHBOARD) and not path.startswith(WITHOUT_DATA):
                raise RequestDenied(
                    403,
                    "The dashboard shows every key, and KV_API_TOKENS has tokens that are for some keys only",
                    hint="Start the replica with KV_ADMIN_PASSWORD. The dashboard then asks for it.",
                )
            return WITHOUT_PROOF
        if self._verifier is not None and needs_proof(method, path):
            raise RequestDenied(403, "Rejected: needs proof of KV_CLUSTER_SECRET", hint=PROOF_HINT)
        if self._tokens:
            if path in PAGES and is_browser(environ):
                environ[LOGIN_DECIDES] = True
                return WITHOUT_PROOF
            self._authorize_token(environ, method, path)
            if self._is_without_peers and needs_proof(method, path) and method != "DELETE":
                raise RequestDenied(
                    403,
                    "Rejected: with KV_API_TOKENS, a replica needs KV_CLUSTER_SECRET before it can have peers",
                    hint="Start every replica of the cluster with the same KV_CLUSTER_SECRET.",
                )
        return WITHOUT_PROOF

    def _authorize_peer(self, environ: Environ, header: str) -> Authorization:
        if self._verifier is None:
            raise RequestDenied(
                403,
                "Rejected: this replica has no KV_CLUSTER_SECRET, so it does not belong to the sender's cluster",
                hint=f"Unset KV_CLUSTER_SECRET where the request comes from, or send no {HEADER}.",
            )
        now_us, verifier = self._now_us(), self._verifier
        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        with self._lock:
            check = verifier.verify(header, method, path, query, own_id=self._own_id, now_us=now_us)

        def sign(status: int, body: bytes) -> str:
            now_us = self._now_us()
            return sign_response(check.key, check.mac, status, body, sender=self._own_id, now_us=now_us)

        if check.rejection:
            has_secret = bool(check.mac)
            raise RequestDenied(
                403,
                f"Rejected: {check.rejection}",
                sign=sign if has_secret else None,
                rejected="message" if has_secret else "secret",
                hint=PROOF_HINT,
            )
        environ[PROVEN] = True
        return Authorization(sign, check.digest)

    def _authorize_token(self, environ: Environ, method: str, path: str) -> None:
        scheme, _, presented = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            raise RequestDenied(
                401, "Needs an API token: Authorization: Bearer …", [(CHALLENGE, BEARER)], hint=AUTHORIZE
            )
        token = self._find_token(presented.strip().encode("latin-1", "replace"))
        if token is None:
            challenge = f'{BEARER}, error="invalid_token"'
            raise RequestDenied(401, "Unknown API token", [(CHALLENGE, challenge)], hint=AUTHORIZE)
        if token.access == "read" and method not in SAFE_METHODS and (method, path) != TRANSACTIONS:
            raise RequestDenied(403, read_only(token), hint=NEEDS_WRITE)
        if token.prefixes:
            _check_path(token, method, path)
        environ[TOKEN] = token

    def _find_token(self, presented: bytes) -> ApiToken | None:
        token = self._tokens.get(_digest(presented))
        return token if token is not None and hmac.compare_digest(token.token.encode(), presented) else None

    def _log(self, environ: Environ, denied: RequestDenied) -> None:
        """Log a rejection, at most once a minute for the same source and reason."""
        source, kind = environ.get("REMOTE_ADDR", "?"), str(denied)[:60]
        if self._log_rate.allow(f"{source} {denied.status} {kind}", time.monotonic()):
            logger.warning(
                "rejected %s %.200r from %s: %s", environ["REQUEST_METHOD"], environ["PATH_INFO"], source, denied
            )


def is_browser(environ: Environ) -> bool:
    """Return whether a browser reads a page: the request has no token and accepts HTML, or has a cookie of a login."""
    if environ["REQUEST_METHOD"] not in SAFE_METHODS or "HTTP_AUTHORIZATION" in environ:
        return False
    return accepts_html(environ) or "sessionid=" in environ.get("HTTP_COOKIE", "")


def _check_path(token: ApiToken, method: str, path: str) -> None:
    """Raise ``RequestDenied`` if a token with prefixes does not permit the path, or the key in it."""
    for key_path in KEY_PATHS:
        if path.startswith(key_path):
            try:
                key = path[len(key_path) :].encode("latin-1").decode()
            except UnicodeError:
                key = ""
            if not token.covers(key):
                raise RequestDenied(403, outside(token), hint=OUTSIDE)
            return
    if path in CHECKED_BY_VIEWS or (path in WITHOUT_KEYS and method in SAFE_METHODS):
        return
    # A new path is closed until somebody has decided what it reveals.
    raise RequestDenied(403, f"{outside(token)}, not for this path and method", hint=UNRESTRICTED)


def needs_proof(method: str, path: str) -> bool:
    """Return whether a request needs a proof if a cluster secret is set."""
    return method not in SAFE_METHODS and (path == "/view" or path.startswith(("/view/", "/replication/")))


def steady_clock() -> Callable[[], int]:
    """Return a clock: Unix time in microseconds at the moment of this call, plus the monotonic time since then.

    The wall clock must not be used: if it were set back, recorded requests whose sessions are forgotten would be
    accepted again.
    """
    base_ns = time.time_ns() - time.monotonic_ns()
    return lambda: (base_ns + time.monotonic_ns()) // 1000


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
