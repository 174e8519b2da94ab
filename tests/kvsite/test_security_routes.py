"""Access rules (contract 5), as a table of all routes in the URL configuration.

The first test fails for a route that is not in ``ROUTES``: a new route must state its access rule here.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.urls import URLPattern, URLResolver, get_resolver

from kvsite.config import Config
from kvsite.dashboard.throttle import throttle
from kvsite.denied_responses import RequestDenied
from kvsite.fast_path import FastPath
from kvsite.guard import Guard
from kvsite.wsgi import Edge
from replication.proof import ANY_RECEIVER, HEADER, derive_key, mac_of, sign_request, verify_response
from store.api_tokens import ApiToken
from tests.support.api import Api, api, make_context
from tests.support.fake_node import FakeNode

__all__ = ["api"]  # a fixture

SECRET, OTHER_SECRET = "the secret of this cluster", "the secret of another cluster"
READ, WRITE, UNKNOWN = "token-that-reads", "token-that-writes", "token-of-nobody"
PASSWORD = "password-of-the-dashboard"
TOKENS = (ApiToken("app", WRITE, "write"), ApiToken("look", READ, "read"))
ID = "127.0.0.1:21500@0123456789abcdef"
KEY, OTHER_KEY = derive_key(SECRET), derive_key(OTHER_SECRET)
METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "POST", "DELETE", "PATCH")
SAFE = METHODS[:3]
NOW_US = 1_700_000_000_000_000


class Route(NamedTuple):
    """``kind``: ``public``, ``dashboard``, ``login``, ``static``, ``api`` (needs a token),
    ``view`` (changes need proof) or ``peer``.
    """

    path: str
    kind: str


ROUTES = {
    "changes": Route("/changes", "api"),
    "export": Route("/export", "api"),
    "kvs": Route("/kvs", "api"),
    "^kvs/(?P<rest>(?s:.*))$": Route("/kvs/some/key", "api"),
    "view": Route("/view", "view"),
    "replication/exchange": Route("/replication/exchange", "peer"),
    "replication/snapshot": Route("/replication/snapshot", "peer"),
    "replication/status": Route("/replication/status", "peer"),
    "^replication/explain/(?P<rest>(?s:.*))$": Route("/replication/explain/key", "peer"),
    "metrics": Route("/metrics", "api"),
    "schema/": Route("/schema/", "api"),
    "docs/": Route("/docs/", "api"),
    "healthz": Route("/healthz", "public"),
    "readyz": Route("/readyz", "public"),
    "docs": Route("/docs", "api"),
    "": Route("/", "api"),
    "admin": Route("/admin", "api"),
    "admin/": Route("/admin/", "dashboard"),
    "admin/overview/": Route("/admin/overview/", "dashboard"),
    "admin/replica/<str:address>/": Route("/admin/replica/127.0.0.1:21500/", "dashboard"),
    "admin/replica/<str:address>/now/": Route("/admin/replica/127.0.0.1:21500/now/", "dashboard"),
    "admin/keys/": Route("/admin/keys/?prefix=some", "dashboard"),
    "admin/keys/key/": Route("/admin/keys/key/?key=some/key", "dashboard"),
    "admin/keys/raw/": Route("/admin/keys/raw/?key=some/key", "dashboard"),
    "admin/update/": Route(f"/admin/update/?update={ID}:1", "dashboard"),
    "admin/schema/": Route("/admin/schema/", "dashboard"),
    "admin/metrics/": Route("/admin/metrics/", "dashboard"),
    "admin/spacetime/": Route("/admin/spacetime/", "dashboard"),
    "admin/spacetime/now/": Route("/admin/spacetime/now/", "dashboard"),
    "admin/login/": Route("/admin/login/", "login"),
    "admin/logout/": Route("/admin/logout/", "dashboard"),
    "admin/jsi18n/": Route("/admin/jsi18n/", "dashboard"),
    "^admin/static/(?P<path>.+)$": Route("/admin/static/admin/css/base.css", "static"),
}


def walk(patterns: list[URLPattern | URLResolver], prefix: str = "") -> Iterator[str]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from walk(pattern.url_patterns, route)
        else:
            yield route


FOUND = sorted(set(walk(get_resolver().url_patterns)))


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])


class RecordingNode:
    """A fake node that records the names of the methods that are called."""

    def __init__(self) -> None:
        self.id = ID
        self.inspector = self  # Calls of the inspector are recorded like those of the node.
        self.reached: list[str] = []
        self._node = FakeNode()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._node, name)
        if not callable(attribute):
            return attribute

        def record_and_call(*args: Any, **options: Any) -> Any:
            self.reached.append(name)
            return attribute(*args, **options)

        return record_and_call


class Site:
    """The whole site behind its edge, configured by ``config``. The guard's clock does not move."""

    def __init__(self, api: Api, **config: Any) -> None:
        self.api = api
        self.node = RecordingNode()
        self.config = Config(**config)
        guarded = self.config.cluster_secret or self.config.api_tokens
        guard = Guard(self.config, ID, lambda: NOW_US) if guarded else None
        context = make_context(api.engine, node=self.node, config=self.config)
        self.edge = Edge(FastPath(WSGIHandler()), context, guard)

    def ask(self, method: str, target: str, body: bytes = b"", /, **headers: str) -> Response:
        path, _, query = target.partition("?")
        return self.ask_raw(method, path, query, body, **headers)

    def ask_raw(self, method: str, path: str, query: str, body: bytes = b"", /, **headers: str) -> Response:
        started: list[Any] = []
        media = "application/msgpack" if path.startswith("/replication/") else "application/json"
        media = headers.pop("content_type", media)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "21500",
            "REMOTE_ADDR": "192.0.2.9",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": media if body else "",
            "wsgi.input": io.BytesIO(body),
            "wsgi.url_scheme": "http",
            "HTTP_HOST": "localhost",
            **{f"HTTP_{name.upper()}": text for name, text in headers.items()},
        }
        chunks = self.edge(environ, lambda *args: started.extend(args))
        content = b"".join(chunks)
        getattr(chunks, "close", lambda: None)()
        return Response(int(started[0][:3]), dict(started[1]), content)

    def changes(self) -> list[Any]:
        """Return what requests without credentials must not change: the store, and calls of the node that change it."""
        reads = {"view", "members", "status", "explain"}
        return [self.api.state(), [name for name in self.node.reached if name not in reads]]


@pytest.fixture
def site(api: Api) -> Any:
    return lambda **config: Site(api, **config)


SECURED: dict[str, Any] = {"cluster_secret": SECRET, "api_tokens": TOKENS, "admin_password": PASSWORD}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def proof(
    method: str,
    target: str,
    body: bytes = b"",
    *,
    key: bytes = KEY,
    to: str = ID,
    at_us: int = NOW_US,
    n: list[int] = [0],  # noqa: B006  # a counter shared by all tests
) -> dict[str, str]:
    n[0] += 1
    path, _, query = target.partition("?")
    session = f"{n[0]:032x}"
    return {
        "x_causeway_proof": sign_request(key, method, path, query, body, receiver=to, session=session, time_us=at_us)
    }


BODY = (
    b'{"value": "stolen", "causal-metadata": {}, "socket-address": "b:1", "writes": [{"key": "k", "value": "stolen"}]}'
)


def test_every_route_is_in_the_table() -> None:
    missing = [route for route in FOUND if route not in ROUTES]
    assert not missing, f"state the access rule of {missing} in ROUTES"
    assert not [route for route in ROUTES if route not in FOUND], "ROUTES names a route that does not exist"


def wrong_credentials(method: str, path: str) -> dict[str, dict[str, str]]:
    """Return headers that a sender without the secrets could send, by description."""
    hour_us = 3_600_000_000
    return {
        "nothing": {},
        "unknown token": bearer(UNKNOWN),
        "half a token": bearer(WRITE[:-1]),
        "token in another scheme": {"authorization": f"Basic {WRITE}"},
        "secret as token": bearer(SECRET),
        "password as token": bearer(PASSWORD),
        "name as token": bearer("app"),
        "empty token": bearer(""),
        "token beyond ASCII": bearer("\xff\xfe" * 20),
        "garbage as proof": {"x_causeway_proof": "1 garbage"},
        "another secret": proof(method, path, BODY, key=OTHER_KEY),
        "proof of another method": proof("TRACE", path, BODY),
        "proof of another path": proof(method, "/elsewhere", BODY),
        "proof of another body": proof(method, path, b"other"),
        "proof from an hour ago": proof(method, path, BODY, at_us=NOW_US - hour_us),
        "proof for an hour ahead": proof(method, path, BODY, at_us=NOW_US + hour_us),
        "proof for another replica": proof(method, path, BODY, to="127.0.0.1:1@0123456789abcdef"),
        "forged session": {"cookie": "sessionid=e30:1abcde:AAAAAAAAAAAAAAAAAAAA; csrftoken=x"},
        "token and a bad proof": {**bearer(WRITE), **proof(method, path, BODY, key=OTHER_KEY)},
    }


@pytest.mark.parametrize("route", FOUND)
def test_without_credentials_nothing_is_revealed_or_changed(
    site: Any, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kind = ROUTES[route]
    secured: Site = site(**SECURED)
    monkeypatch.setattr("kvsite.dashboard.auth.current", lambda: secured.config)
    monkeypatch.setattr("kvsite.dashboard.site.current", lambda: secured.config)
    secured.api.put("/kvs/some/key", "a value to hide")
    before = secured.changes()
    for method in METHODS:
        for what, headers in wrong_credentials(method, path).items():
            response = secured.ask(method, path, BODY, **headers)
            context = f"{method} {path} with {what}: {response}"
            assert secured.changes() == before, context
            assert b"a value to hide" not in response.body, context
            assert ID.encode() not in response.body, context
            for secret in (SECRET, READ, WRITE, PASSWORD):
                assert secret not in f"{response.headers}{response.body!r}", context
            if kind == "login" and method in SAFE and HEADER_KEY not in headers:
                assert response.status == 200, context
            elif kind in {"dashboard", "login"}:
                assert response.status in {302, 403, 405, 413, 429}, context
            elif kind == "static":
                served = 200 if method in {"GET", "HEAD"} else 405
                assert response.status == (403 if HEADER_KEY in headers else served), context
            elif kind == "public":
                assert response.status in ({200, 204, 405} if HEADER_KEY not in headers else {403}), context
            else:
                needs_proof = kind in {"view", "peer"} and method not in SAFE
                assert response.status == (403 if needs_proof or HEADER_KEY in headers else 401), context
                assert ("WWW-Authenticate" in response.headers) == (response.status == 401), context
                assert response.headers["Content-Type"] == "application/json"
                assert "error" in json.loads(response.body), context
            if what not in {"proof from an hour ago", "proof for an hour ahead", "proof for another replica"}:
                # The others prove the secret. Their rejection may reveal the time to a member, and nothing else.
                assert HEADER not in response.headers, context


HEADER_KEY = "x_causeway_proof"


@pytest.mark.parametrize("route", FOUND)
def test_a_token_permits_only_its_access(site: Any, route: str) -> None:
    path, kind = ROUTES[route]
    if kind in {"dashboard", "login", "public", "static"}:
        return
    secured: Site = site(**SECURED)
    for method in METHODS:
        for token, writes in ((READ, False), (WRITE, True)):
            response = secured.ask(method, path, b"{}" if path != "/replication/exchange" else b"", **bearer(token))
            if kind in {"view", "peer"} and method not in SAFE:
                assert response.status == 403, (method, path, token)
                assert "KV_CLUSTER_SECRET" in response.error
            elif method in SAFE or writes:
                assert response.status not in {401, 403}, (method, path, token, response)
            elif (method, path) != ("POST", "/kvs"):
                assert (response.status, response.error) == (403, "Token 'look' may only read")


@pytest.mark.parametrize("route", FOUND)
def test_a_proof_permits_everything_once(site: Any, route: str) -> None:
    path, kind = ROUTES[route]
    if kind in {"dashboard", "login", "static"}:
        return  # They have their own login.
    secured: Site = site(**SECURED)
    for method in METHODS:
        headers = proof(method, path)
        mac = mac_of(headers[HEADER_KEY])
        first, again = secured.ask(method, path, **headers), secured.ask(method, path, **headers)
        assert first.status not in {401, 403}, (method, first)
        if method != "HEAD":
            assert verify_response(KEY, first.headers[HEADER], mac, first.status, first.body) == (ID, NOW_US)
        assert again.status == 403
        assert "received before" in again.error


@pytest.mark.parametrize("route", FOUND)
def test_a_proof_without_a_receiver_admits_the_greeting_only(site: Any, route: str) -> None:
    path, _ = ROUTES[route]
    secured: Site = site(**SECURED)
    for method in METHODS:
        reply = secured.ask(method, path, **proof(method, path, to=ANY_RECEIVER))
        assert reply.status == (200 if (method, path) == ("GET", "/healthz") else 403), (method, path)


def test_a_proof_for_a_query_does_not_admit_a_key_that_looks_like_it(site: Any) -> None:
    secured: Site = site(**SECURED)
    headers = proof("GET", "/kvs/a?x=1")
    assert secured.ask("GET", "/kvs/a?x=1", **headers).status == 404
    again = proof("GET", "/kvs/a?x=1")
    environ_path = "/kvs/a?x=1"  # what the server passes for /kvs/a%3Fx=1
    reply = secured.ask_raw("GET", environ_path, "", **again)
    assert (reply.status, HEADER in reply.headers) == (403, False)


BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def log_in(secured: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make ``secured`` the site of this process. Return the cookie of a login."""
    for module in ("dashboard.auth", "dashboard.site", "docs_page"):
        monkeypatch.setattr(f"kvsite.{module}.current", lambda: secured.config)
    throttle.reset("192.0.2.9")
    form = urlencode({"username": "admin", "password": PASSWORD, "csrfmiddlewaretoken": "c" * 32}).encode()
    environ = {"cookie": f"csrftoken={'c' * 32}", "content_type": "application/x-www-form-urlencoded"}
    reply = secured.ask_raw("POST", "/admin/login/", "", form, **environ)
    assert reply.status == 302, reply
    name, _, value = reply.headers["Set-Cookie"].strip().partition(";")[0].partition("=")
    assert name == "sessionid"
    return {"cookie": f"sessionid={value}"}


def test_the_login_of_the_dashboard_opens_the_pages_outside_of_it(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secured: Site = site(**SECURED)
    login = log_in(secured, monkeypatch)
    page = secured.ask("GET", "/docs/", **BROWSER, **login)
    assert page.status == 200
    assert b'data-document="/admin/schema/"' in page.body
    assert b"Authorize" in page.body
    assert json.loads(secured.ask("GET", "/admin/schema/", **login).body)["openapi"].startswith("3.")
    for path, target in (("/", "/admin/"), ("/admin", "/admin/"), ("/docs", "/docs/")):
        reply = secured.ask("GET", path, **BROWSER, **login)
        assert (reply.status, reply.headers["Location"]) == (302, target)
    for path in ("/kvs", "/view", "/metrics", "/schema/", "/replication/status"):
        assert secured.ask("GET", path, **BROWSER, **login).status == 401, "a login is no token"


def test_a_browser_without_a_login_is_sent_to_it(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secured: Site = site(**SECURED)
    log_in(secured, monkeypatch)
    for path in ("/docs/", "/"):
        for cookie in ({}, {"cookie": "sessionid=e30:1abcde:AAAAAAAAAAAAAAAAAAAA"}):
            reply = secured.ask("GET", path, **BROWSER, **cookie)
            assert (reply.status, reply.headers["Location"]) == (302, f"/admin/login/?next={path}")
    for path in ("/docs/", "/"):
        assert secured.ask("GET", path, accept="*/*").status == 401
        assert secured.ask("POST", path, **BROWSER).status == 401


def test_without_a_password_the_pages_are_as_open_as_the_dashboard(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secured: Site = site(cluster_secret=SECRET, api_tokens=TOKENS)
    for module in ("dashboard.auth", "dashboard.site", "docs_page"):
        monkeypatch.setattr(f"kvsite.{module}.current", lambda: secured.config)
    assert secured.ask("GET", "/docs/", **BROWSER).status == 200
    assert secured.ask("GET", "/", **BROWSER).status == 302
    assert secured.ask("GET", "/docs/").status == 401


def test_a_transaction_that_only_reads_is_a_read(site: Any) -> None:
    secured: Site = site(api_tokens=TOKENS)
    assert secured.ask("POST", "/kvs", b'{"reads": ["a"]}', **bearer(READ)).status == 200
    assert secured.ask("POST", "/kvs", b'{"reads": ["a"], "writes": []}', **bearer(READ)).status == 200
    before = secured.changes()
    for body in (
        b'{"writes": [{"key": "a", "value": 1}]}',
        b'{"reads": ["a"], "writes": [{"key": "a", "delete": true}]}',
    ):
        rejected = secured.ask("POST", "/kvs", body, **bearer(READ))
        assert (rejected.status, rejected.error) == (403, "Token 'look' may only read")
    assert secured.changes() == before
    assert secured.ask("POST", "/kvs", b'{"writes": [{"key": "a", "value": 1}]}', **bearer(WRITE)).status == 200


def test_with_only_tokens_nobody_adds_a_peer_or_acts_as_one(site: Any) -> None:
    secured: Site = site(api_tokens=TOKENS)
    for method, path in (("POST", "/replication/exchange"), ("POST", "/replication/snapshot"), ("PUT", "/view")):
        body = b'{"socket-address": "b:1"}' if path == "/view" else b"\x93"
        assert secured.ask(method, path, body).status == 401
        assert secured.ask(method, path, body, **bearer(READ)).status == 403
        refused = secured.ask(method, path, body, **bearer(WRITE))
        assert (refused.status, "needs KV_CLUSTER_SECRET" in refused.error) == (403, True)
        assert secured.changes() == [secured.api.state(), []]
        wrong = secured.ask(method, path, body, **bearer(WRITE), **proof(method, path, body))
        assert "no KV_CLUSTER_SECRET" in wrong.error
    assert secured.ask("DELETE", "/view", b'{"socket-address": "b:1"}').status == 401
    assert secured.ask("DELETE", "/view", b'{"socket-address": "b:1"}', **bearer(WRITE)).status == 404


def test_with_only_a_secret_the_api_is_open_and_view_changes_need_proof(site: Any) -> None:
    secured: Site = site(cluster_secret=SECRET)
    assert secured.ask("PUT", "/kvs/a", b'{"value": 1}').status == 201
    assert secured.ask("GET", "/view").status == 200
    assert secured.ask("GET", "/replication/status").status == 200
    for method in ("PUT", "DELETE"):
        assert secured.ask(method, "/view", b'{"socket-address": "b:1"}').status == 403
    assert secured.ask("POST", "/replication/exchange", b"x").status == 403
    assert {"add_member", "remove_member", "exchange"}.isdisjoint(secured.node.reached)


def test_an_error_of_a_view_is_signed_too(site: Any) -> None:
    secured: Site = site(cluster_secret=SECRET)
    headers = proof("POST", "/replication/exchange", b"bad")
    reply = secured.ask("POST", "/replication/exchange", b"bad", **headers)
    assert reply.status == 400
    mac = mac_of(headers[HEADER_KEY])
    assert verify_response(KEY, reply.headers[HEADER], mac, 400, reply.body) is not None


def test_a_changed_body_and_an_unlimited_body_are_rejected(site: Any) -> None:
    secured: Site = site(cluster_secret=SECRET)
    changed = secured.ask("POST", "/replication/exchange", b"evil", **proof("POST", "/replication/exchange", b"\x93"))
    assert (changed.status, HEADER in changed.headers) == (403, False)
    headers = proof("POST", "/replication/exchange", b"\x93")
    for length in ("99999999999999", "-1", "abc"):
        assert secured.ask("POST", "/replication/exchange", b"\x93", **headers).status in {200, 403}
        environ: dict[str, Any] = {"CONTENT_LENGTH": length, "wsgi.input": None}
        guard = secured.edge._guard
        assert guard is not None
        with pytest.raises(RequestDenied, match="too large"):
            guard.check_body(environ, SimpleNamespace(sign=None, digest=""))  # type: ignore[arg-type]


def test_a_replayed_request_gets_a_signed_rejection_with_the_time_only(site: Any) -> None:
    secured: Site = site(**SECURED)
    stale = proof("GET", "/replication/status", to=ANY_RECEIVER, at_us=NOW_US - 60_000_000)
    reply = secured.ask("GET", "/replication/status", **stale)
    assert reply.status == 403
    assert "60 s behind" in reply.error
    mac = mac_of(stale[HEADER_KEY])
    assert verify_response(KEY, reply.headers[HEADER], mac, 403, reply.body) == (ID, NOW_US)


def test_rejections_are_logged_without_secrets_at_a_limited_rate(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    secured: Site = site(**SECURED)
    with caplog.at_level(logging.DEBUG):
        for _ in range(50):
            for headers in wrong_credentials("GET", "/kvs/a").values():
                secured.ask("GET", "/kvs/a", **headers)
            secured.ask("PUT", "/view", BODY, **bearer(WRITE))
    lines = [record.getMessage() for record in caplog.records if record.name == "causeway.guard"]
    assert 3 <= len(lines) <= 12
    assert all("192.0.2.9" in line for line in lines)
    assert any("clock" in line for line in lines)
    for secret in (SECRET, READ, WRITE, PASSWORD, UNKNOWN, KEY.hex()):
        assert secret not in caplog.text


def test_without_secrets_there_is_no_guard(site: Any) -> None:
    opened: Site = site()
    assert opened.edge._guard is None
    assert opened.config.is_open
    assert opened.ask("PUT", "/kvs/a", b'{"value": 1}').status == 201


def test_a_token_lookup_is_fast_among_many(site: Any) -> None:
    tokens = tuple(ApiToken(f"n{n}", f"token-number-{n}", "read") for n in range(2000))
    secured: Site = site(api_tokens=(*TOKENS, *tokens))
    guard = secured.edge._guard
    assert guard is not None
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/kvs/a", "HTTP_AUTHORIZATION": f"Bearer {WRITE}"}
    began = time.perf_counter()
    for _ in range(1000):
        guard.authorize(environ)
    assert time.perf_counter() - began < 0.5  # 500 us each on a busy machine; about 3 us are usual
