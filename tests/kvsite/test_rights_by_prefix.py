"""Rights by prefix (contract 5): a token reads, changes and learns nothing of keys outside its prefixes.

The first tests walk all routes of the URL configuration, as tests/kvsite/test_security_routes.py does. A route that is
not in ``ATTACKS`` fails them: a new route must state there how a token could try to reach foreign keys through it.
"""

from __future__ import annotations

import io
import json
import re
import time
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import pytest
from django.core.handlers.wsgi import WSGIHandler

from kvsite.config import Config
from kvsite.fast_path import FastPath
from kvsite.guard import Guard
from kvsite.server import build
from kvsite.wsgi import Edge
from store.api_tokens import ApiToken, first_write_token, parse_api_tokens
from store.engine import Change, Increment, Patch
from store.errors import StoreError
from store.versions import Update, Write
from tests.kvsite.test_security_routes import FOUND
from tests.support.api import PEER_ID

MARKER: Final = "qZx7"
"""Part of every foreign key but one, and of every foreign value."""

KNOWN: Final = "team-b/known"
"""A foreign key whose name the attacker knows. Responses that repeat the request may contain it."""

OWN, OWN_READ, ALL = "token-of-team-a", "token-of-readers", "token-for-everything"
TOKENS: Final = (
    ApiToken("a", OWN, "write", ("team-a/", "é|")),
    ApiToken("a-look", OWN_READ, "read", ("team-a/",)),
    ApiToken("all", ALL, "write"),
)
FOREIGN: Final = (
    f"team-b/{MARKER}", f"{MARKER}", f"team-ab{MARKER}", f"Team-a/{MARKER}", f"team-a{MARKER}", f"e\u0301|{MARKER}",
    f" team-a/{MARKER}", f"team-a%2F{MARKER}", f"team-b/{MARKER}/set", f"team-b/{MARKER}/bytes", KNOWN,
)  # fmt: skip
METHODS: Final = ("GET", "HEAD", "OPTIONS", "PUT", "POST", "DELETE", "PATCH", "get")
SECURED: Final[dict[str, Any]] = {
    "cluster_secret": "the secret of this cluster",
    "api_tokens": TOKENS,
    "admin_password": "password-of-the-dashboard",
}


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """A real replica behind its edge, with keys of others in every place from which one could leak."""

    def __init__(self, **config: Any) -> None:
        made = Config(**(config or SECURED))
        self.context = build(made, pytest.fail)
        self.engine = self.context.engine
        self.store = self.engine._store
        self.store.not_serving_reason = None
        self.edge = Edge(FastPath(WSGIHandler()), self.context, Guard.for_config(made, self.context.node.id))
        self._fill()

    def _fill(self) -> None:
        value = json.dumps(f"value {MARKER}").encode()
        for key in FOREIGN:
            self.engine.write(Change(key, value), {})
        self.engine.write(Change(f"team-b/{MARKER}/counter", None, patch=Patch(Increment(1), True, 1000)), {})
        self.engine.write(Change(f"team-b/{MARKER}/gone", value), {})
        self.engine.write(Change(f"team-b/{MARKER}/gone", None), {})
        self.engine.write(Change("team-a/own", b'"mine"'), {})
        # A sibling, then updates that wait for their causal past.
        self._receive(1, {}, f"team-b/{MARKER}", KNOWN)
        self._receive(2, {"127.0.0.1:9@0000000000000001": 1}, f"team-b/{MARKER}/pending", "team-a/pending")
        self._receive(3, {"127.0.0.1:9@0000000000000001": 2}, f"team-b/{MARKER}/pending")

    def _receive(self, counter: int, deps: dict[str, int], *keys: str) -> None:
        writes = tuple(Write(key, f'"{MARKER}"'.encode()) for key in keys)
        with self.engine.lock:
            update = Update(PEER_ID, counter, 2**50 + counter, deps, writes)
            self.store.receive([update], self.engine._now())

    def ask(self, method: str, target: str, body: Any = None, /, token: str | None = OWN, **headers: str) -> Response:
        path, _, query = target.partition("?")
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        credentials = {"HTTP_AUTHORIZATION": f"Bearer {token}"} if token else {}
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8090",
            "REMOTE_ADDR": "192.0.2.9",
            "CONTENT_LENGTH": str(len(sent)),
            "CONTENT_TYPE": "application/json" if sent else "",
            "wsgi.input": io.BytesIO(sent),
            "wsgi.url_scheme": "http",
            "HTTP_HOST": "localhost",
            **credentials,
            **{f"HTTP_{name.upper()}": text for name, text in headers.items()},
        }
        started: list[Any] = []
        chunks = self.edge(environ, lambda *args: started.extend(args))
        content = next(iter(chunks), b"") if "event-stream" in str(started) else b"".join(chunks)
        getattr(chunks, "close", lambda: None)()
        return Response(int(started[0][:3]), dict(started[1]), content)

    def state(self) -> Any:
        """Return what a rejected request must not change, and how often the engine was asked."""
        store, table = self.store, self.context.node.replica.membership.table
        data = dict(store.clock), dict(store.delete_clock), store.table.copy(), store.clock_changes
        return data, dict(table.entries), dict(self.engine.counts)

    def feed_token(self, prefix: str) -> str:
        return str(self.ask("GET", f"/changes?prefix={quote(prefix)}", token=ALL).json["next"])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    for module in ("auth", "site"):
        monkeypatch.setattr(f"kvsite.dashboard.{module}.current", lambda: Config(**SECURED))
    return Site()


def keyed(path: str) -> list[str]:
    """Return requests for every foreign key in the path."""
    queries = ("", "?siblings=true", "?wait=30", "?prefix=team-a/")
    paths = [path + quote(key) for key in (*FOREIGN, f"team-b/{MARKER}/absent", f"team-b/{MARKER}/pending")]
    return [
        *paths,
        *(paths[0] + query for query in queries),
        path,
        path + "%FF",
        path + "team-a",
        path + "..%2Fteam-a/",
    ]


WIDER: Final = ("", "prefix=", "prefix=team-a", "prefix=team-", f"prefix=team-b/{MARKER}", "prefix=team-a/&prefix=t",
                "prefix=Team-a/", "prefix=%20team-a/", "prefix=team-a%252F", "prefix=%C3%A9", "Prefix=team-a/",
                f"after=team-b/&prefix=team-b/{MARKER}")  # fmt: skip
"""Queries that ask for more than the prefixes of the token."""

OPTIONS: Final = ("&values=true&meta=true&count=true", "&conflicts=true&values=true", "&reverse=true&wait=30")


class Attack(NamedTuple):
    """Requests that try to reach foreign keys through one route.

    ``is_refused``: each gets 403, whatever its method. Otherwise some are answered, without foreign keys.
    """

    targets: list[str]
    is_refused: bool


def without_keys(*targets: str) -> Attack:
    return Attack(list(targets), is_refused=False)


ATTACKS: Final = {
    "changes": Attack([*(f"/changes?{q}" for q in WIDER), f"/changes?{WIDER[4]}&wait=30"], is_refused=True),
    "export": Attack([*(f"/export?{q}" for q in WIDER), f"/export?{WIDER[4]}&wait=30"], is_refused=True),
    "kvs": Attack([*(f"/kvs?{q}" for q in WIDER), *(f"/kvs?{WIDER[4]}{more}" for more in OPTIONS)], is_refused=True),
    "^kvs/(?P<rest>(?s:.*))$": Attack(keyed("/kvs/"), is_refused=True),
    "^replication/explain/(?P<rest>(?s:.*))$": Attack(keyed("/replication/explain/"), is_refused=True),
    "replication/exchange": Attack(["/replication/exchange"], is_refused=True),
    "replication/snapshot": Attack(["/replication/snapshot"], is_refused=True),
    "view": without_keys("/view"),
    "replication/status": without_keys("/replication/status", "/replication/status?recent=200&history=true"),
    "metrics": without_keys("/metrics"),
    "schema/": without_keys("/schema/", "/schema/?format=yaml"),
    "docs/": without_keys("/docs/"),
    "docs": without_keys("/docs"),
    "admin": without_keys("/admin"),
    "admin/keys/raw/": without_keys(f"/admin/keys/raw/?key={KNOWN}"),
    "admin/update/": without_keys(f"/admin/update/?update={PEER_ID}:1", f"/admin/update/?update={PEER_ID}:2"),
    "admin/schema/": without_keys("/admin/schema/"),
    "admin/metrics/": without_keys("/admin/metrics/"),
    "healthz": without_keys("/healthz"),
    "readyz": without_keys("/readyz"),
    "": without_keys("/"),
    "admin/": without_keys("/admin/"),
    "admin/overview/": without_keys("/admin/overview/"),
    "admin/replica/<str:address>/": without_keys("/admin/replica/127.0.0.1:8090/"),
    "admin/replica/<str:address>/now/": without_keys("/admin/replica/127.0.0.1:8090/now/"),
    "admin/keys/": without_keys("/admin/keys/", "/admin/keys/?prefix=team-b/", "/admin/keys/?conflicts=true"),
    "admin/keys/key/": without_keys(f"/admin/keys/key/?key={KNOWN}"),
    "admin/spacetime/": without_keys("/admin/spacetime/"),
    "admin/spacetime/now/": without_keys("/admin/spacetime/now/"),
    "admin/login/": without_keys("/admin/login/"),
    "admin/logout/": without_keys("/admin/logout/"),
    "admin/jsi18n/": without_keys("/admin/jsi18n/"),
    "^admin/static/(?P<path>.+)$": without_keys("/admin/static/admin/css/base.css"),
}

BODIES: Final[tuple[Any, ...]] = (
    None,
    {"value": "stolen"},
    {"increment": 1},
    {"reads": [f"team-b/{MARKER}"]},
    {"reads": ["team-a/own", KNOWN], "writes": [{"key": "team-a/own", "value": "changed"}]},
    {"writes": [{"key": KNOWN, "value": "stolen", "if-none-match": "*"}]},
    {"writes": [{"key": "team-a/own", "value": "changed"}, {"key": f"team-b/{MARKER}", "delete": True}]},
    {"writes": [{"key": f"team-b/{MARKER}/counter", "add": ["x"]}]},
    {"reads": ["team-b/"], "causal-metadata": {"127.0.0.1:9@0000000000000001": 9}},
    {"socket-address": "127.0.0.1:9999"},
)
HEADERS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"if_none_match": '*, "absent"', "accept": "application/octet-stream"},
    {"if_match": '"wrong"', "accept": "text/event-stream"},
    {"accept": "text/html,*/*", "cookie": "sessionid=e30:1abcde:AAAAAAAAAAAAAAAAAAAA"},
    {"x_causal_metadata": '{"127.0.0.1:9@0000000000000001":9}', "x_request_id": "r"},
)


def test_every_route_is_in_the_table() -> None:
    missing = [route for route in FOUND if route not in ATTACKS]
    assert not missing, f"state in ATTACKS how a token could reach foreign keys through {missing}"
    assert not [route for route in ATTACKS if route not in FOUND], "ATTACKS names a route that does not exist"


def assert_hidden(response: Response, context: object) -> None:
    assert MARKER not in f"{response.headers}", context
    assert MARKER.encode() not in response.body, context
    assert MARKER.encode().hex().encode() not in response.body, context


@pytest.mark.parametrize("route", sorted(ATTACKS))
def test_a_token_for_another_prefix_learns_and_changes_nothing(site: Site, route: str) -> None:
    targets, is_refused = ATTACKS[route]
    before = site.state()
    began_s = time.monotonic()
    for target in targets:
        for method in METHODS:
            if method == "OPTIONS" and target.partition("?")[0] in {"/kvs", "/changes", "/export"}:
                continue  # The allowed methods, whatever the query.
            for token in (OWN, OWN_READ):
                # All pairs of bodies and headers would be many requests. Each body and each header meets each target.
                bodies = BODIES[:5] if target.startswith("/admin/") else BODIES  # No page reads JSON.
                for i, body in enumerate(bodies):
                    headers = HEADERS[i % len(HEADERS)]
                    response = site.ask(method, target, body, token=token, **headers)
                    context = (method, target, token, body, headers, response)
                    assert_hidden(response, context)
                    assert response.status < 500, context
                    if is_refused and not _is_answered(method, target, body):
                        assert response.status == 403, context
    assert site.state() == before
    assert time.monotonic() - began_s < 25, "a rejected request must not wait"


def _is_answered(method: str, target: str, body: Any) -> bool:
    """Return whether a request to a route of keys is wrong in itself: 400, 405 or 415 for every token."""
    path = target.partition("?")[0]
    read = {"GET", "HEAD"}
    served = {"/kvs": {*read, "POST", "DELETE"}, "/changes": read, "/export": read}.get(path)
    if served is None:
        return False
    if method.upper() not in served:
        return True
    is_transaction = path == "/kvs" and method == "POST"
    known = {"causal-metadata"} | ({"reads", "writes"} if is_transaction else set())
    return (body is None and is_transaction) or not set(body or {}) <= known


@pytest.mark.parametrize("target", ["/kvs", "/changes", "/export"])
def test_the_options_of_a_route_name_its_methods_only(site: Site, target: str) -> None:
    response = site.ask("OPTIONS", f"{target}?prefix=team-b/")
    assert (response.status, response.body) == (204, b"")
    assert_hidden(response, response)


def test_the_answer_is_the_same_whether_a_foreign_key_exists_or_not(site: Site) -> None:
    for method in METHODS:
        for path in ("/kvs/", "/replication/explain/"):
            for headers in HEADERS:
                for query in ("", "?wait=30&siblings=true"):
                    answers = []
                    for key in (f"team-b/{MARKER}", f"team-b/{MARKER}/absent", f"team-b/{MARKER}/pending"):
                        answer = site.ask(method, f"{path}{key}{query}", {"value": 1}, **headers)
                        del answer.headers["X-Request-ID"]
                        answers.append(answer)
                    assert answers[0] == answers[1] == answers[2], (method, path, headers)
                    assert answers[0].status == 403


@pytest.mark.parametrize("prefix", ["", "team-b/"])
def test_a_token_of_another_feed_reveals_nothing(site: Site, prefix: str) -> None:
    since = site.feed_token(prefix)
    for target in (f"/changes?prefix=team-a/&since={since}", f"/changes?prefix={prefix}&since={since}"):
        for accept in ("application/json", "text/event-stream"):
            response = site.ask("GET", target, accept=accept)
            assert response.status in {400, 403}
            assert_hidden(response, response)


# --- what a token with prefixes may do --------------------------------------------------------------------------------


def test_a_token_serves_its_own_keys_in_every_way(site: Site) -> None:
    assert site.ask("PUT", "/kvs/team-a/x", {"value": 1}).status == 201
    assert site.ask("PUT", "/kvs/team-a%2Fx", {"value": 2}).json["result"] == "replaced"
    assert site.ask("PATCH", "/kvs/team-a/n", {"increment": 2}).status == 201
    assert site.ask("GET", "/kvs/team-a/x?siblings=true").json["value"] == 2
    assert site.ask("GET", "/kvs/team-a/x", if_none_match="*").status == 304
    assert site.ask("PUT", "/kvs/%C3%A9%7Ckey", {"value": 3}).status == 201
    assert site.ask("PUT", "/kvs/team-a/%25FF", {"value": 4}).status == 201
    listed = site.ask("GET", "/kvs?prefix=team-a/&values=true&count=true&meta=true").json
    assert listed["keys"] == ["team-a/%FF", "team-a/n", "team-a/own", "team-a/x"]
    assert listed["count"] == 4
    assert site.ask("GET", "/kvs?prefix=team-a/o").json["keys"] == ["team-a/own"]
    done = site.ask("POST", "/kvs", {"reads": ["team-a/x", "é|key"], "writes": [{"key": "team-a/y", "value": 5}]})
    assert (done.status, done.json["values"]) == (200, {"team-a/x": 2, "é|key": 3})
    changes = site.ask("GET", "/changes?prefix=team-a/").json
    assert [each["key"] for each in changes["changes"]] == [
        "team-a/%FF",
        "team-a/n",
        "team-a/own",
        "team-a/x",
        "team-a/y",
    ]
    followed = site.ask("GET", f"/changes?prefix=team-a/&since={changes['next']}").json
    assert (followed["changes"], followed["more"]) == ([], False)
    exported = site.ask("GET", "/export?prefix=team-a/")
    lines = [json.loads(line) for line in exported.body.splitlines()]
    assert [line["key"] for line in lines[1:-1]] == ["team-a/%FF", "team-a/n", "team-a/own", "team-a/x", "team-a/y"]
    assert lines[0]["keys"] == 5
    assert_hidden(exported, exported)
    explained = site.ask("GET", "/replication/explain/team-a/pending").json
    assert len(explained["pending"]) == 1
    assert site.ask("DELETE", "/kvs/team-a/y").status == 200
    assert site.ask("DELETE", "/kvs?prefix=team-a/").json["deleted"] == 4
    assert site.ask("GET", "/kvs/team-a/x").status == 404
    assert site.ask("GET", f"/kvs/team-b/{MARKER}", token=ALL).status == 200


def test_a_read_token_with_prefixes_reads_only(site: Site) -> None:
    assert site.ask("GET", "/kvs/team-a/own", token=OWN_READ).json["value"] == "mine"
    assert site.ask("POST", "/kvs", {"reads": ["team-a/own"]}, token=OWN_READ).status == 200
    before = site.state()[0]
    writes = {"writes": [{"key": "team-a/own", "value": 1}]}
    for method, target in (("PUT", "/kvs/team-a/own"), ("DELETE", "/kvs?prefix=team-a/"), ("POST", "/kvs")):
        response = site.ask(method, target, writes if method == "POST" else {"value": 1}, token=OWN_READ)
        assert (response.status, response.json["error"]) == (403, "Token 'a-look' may only read")
    assert site.state()[0] == before


def test_the_status_names_the_token_s_own_keys_only(site: Site) -> None:
    target = "/replication/status?recent=200"
    whole, own = site.ask("GET", target, token=ALL).json, site.ask("GET", target).json
    assert [update["keys"] for update in whole["pending"]] == [
        [f"team-b/{MARKER}/pending", "team-a/pending"],
        [f"team-b/{MARKER}/pending"],
    ]
    assert [update["keys"] for update in own["pending"]] == [["team-a/pending"], []]
    assert [update["dot"] for update in own["pending"]] == [update["dot"] for update in whole["pending"]]
    assert {update["key"] for update in own["recent"]} == {None, "team-a/own"}
    assert MARKER in str([update["key"] for update in whole["recent"]])
    assert own["keys"] == whole["keys"]


def test_totals_are_not_secret(site: Site) -> None:
    assert site.ask("GET", "/metrics").status == site.ask("GET", "/schema/").status == 200
    assert site.ask("GET", "/view").json == site.ask("GET", "/view", token=ALL).json


def test_the_error_names_the_prefixes_of_the_token_and_says_what_to_send(site: Site) -> None:
    for method, target, body in (("GET", "/kvs/b", None), ("GET", "/kvs", None), ("POST", "/kvs", {"reads": ["b"]})):
        response = site.ask(method, target, body)
        assert response.json["error"] == "Token 'a' is only for keys that begin with 'team-a/' or 'é|'"
        assert "?prefix=" in response.json["hint"]


# --- the view, peers and the dashboard --------------------------------------------------------------------------------


def test_a_token_with_prefixes_never_changes_the_view() -> None:
    with_secret, without = Site(), Site(api_tokens=TOKENS)
    for site in (with_secret, without):
        for method in ("PUT", "DELETE"):
            response = site.ask(method, "/view", {"socket-address": "127.0.0.1:9999"})
            assert response.status == 403
    assert "without prefixes" in without.ask("DELETE", "/view", {"socket-address": "127.0.0.1:9999"}).json["hint"]
    assert without.ask("DELETE", "/view", {"socket-address": "127.0.0.1:9999"}, token=ALL).status == 404


def test_a_new_path_is_closed_to_tokens_with_prefixes(site: Site) -> None:
    for path in ("/new/route", "/kvsx", "/kvs//../view", "/replication/", "/admins"):
        response = site.ask("GET", path)
        assert response.status == 403, path
        assert b"team-a/" in response.body


def test_without_a_password_the_dashboard_is_closed_while_tokens_have_prefixes() -> None:
    site = Site(api_tokens=TOKENS)
    for path in ("/admin/", "/admin/keys/", f"/admin/keys/key/?key={KNOWN}", "/admin/spacetime/now/", "/admin/login/",
                 f"/admin/update/?update={PEER_ID}:1", f"/admin/keys/raw/?key={KNOWN}"):  # fmt: skip
        for token in (None, OWN, ALL):
            response = site.ask("GET", path, token=token)
            assert response.status == 403, path
            assert "KV_ADMIN_PASSWORD" in response.json["hint"]
            assert_hidden(response, response)
    for path in ("/docs/", "/admin/schema/", "/admin/static/admin/css/base.css"):  # The first one uses the others.
        assert site.ask("GET", path, token=None, accept="text/html").status == 200
    assert any("nobody may see the dashboard" in warning for warning in Config(api_tokens=TOKENS).security_warnings)
    open_to_all = Site(api_tokens=(ApiToken("all", ALL, "write"),))
    assert open_to_all.ask("GET", "/admin/keys/", token=None).status == 200


# --- KV_API_TOKENS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:12345678:read", ("12345678", "read", ())),
        ("a:12345678:write:team-a/", ("12345678", "write", ("team-a/",))),
        ("a:12345678:write:x|y/|z", ("12345678", "write", ("x", "y/", "z"))),
        ("a:12345678:write:user:", ("12345678", "write", ("user:",))),
        ("a:12345678:read:a:read:|b:write", ("12345678", "read", ("a:read:", "b:write"))),
        ("a:1234:5678:read:p", ("1234:5678", "read", ("p",))),
        ("a:12345678:write:é|%2F|x y|x|x", ("12345678", "write", ("é", "%2F", "x y", "x"))),
    ],
)
def test_prefixes_are_parsed_as_text(text: str, expected: tuple[str, str, tuple[str, ...]]) -> None:
    (token,) = parse_api_tokens(text)
    assert (token.token, token.access, token.prefixes) == expected
    assert token.token not in repr(token)


@pytest.mark.parametrize(
    "text", ["a:12345678:write:", "a:12345678:write:x|", "a:12345678:write:|x", "a:12345678:read:a||b"]
)
def test_an_empty_prefix_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"entry 1 has an empty prefix; .* leave out the colon"):
        parse_api_tokens(text)


@pytest.mark.parametrize(
    "text", ["a:12345678:write:\udcff", "a:1234567:read:p", "a:12345678:rw:p", "a:read:p", "a::read"]
)
def test_other_wrong_entries_are_errors_without_their_text(text: str) -> None:
    with pytest.raises(ValueError, match="entry 1") as raised:
        parse_api_tokens(text)
    assert not re.search("1234|rw", str(raised.value))


def test_commands_prefer_a_token_without_prefixes() -> None:
    assert first_write_token(TOKENS) == ALL
    assert first_write_token(TOKENS[:2]) == OWN
    assert first_write_token(TOKENS[1:2]) == ""


def test_many_long_prefixes_make_a_short_error() -> None:
    token = ApiToken("a", "12345678", "read", tuple(f"{n}{'p' * 500}" for n in range(1000)))
    assert len(token.scope) < 400
    assert token.scope.endswith(" or 997 more")
    assert ApiToken("a", "12345678", "read", ("x",)).scope == "'x'"


def test_the_engine_is_not_asked_for_foreign_keys(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show that the tests above would notice a request that reaches the engine."""
    before = site.state()
    with pytest.raises(StoreError):
        site.engine.get(KNOWN, {"127.0.0.1:9@0000000000000001": 9}, wait_s=0)
    assert site.state() != before
