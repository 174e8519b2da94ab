"""Every error that a client can cause says what to send (contract P7): each kind, of each route and method.

The table is made from the routes and from the structs of the bodies, so a new route or field is in it.
tests/store/api/test_bad_input.py applies the same check to each of its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from kvsite.config import Config
from kvsite.fast_path import API_ROUTES, FastPath
from kvsite.guard import Guard
from kvsite.schema import SchemaView
from kvsite.wsgi import Edge
from replication.api.views import AddressBody, PeerView
from store.api import parsing, wording
from store.api.base import ApiView
from store.api.routing import Route
from store.api_tokens import ApiToken
from tests.store.api.test_bad_input import Served, served
from tests.support.api import LIMITS, Api, Response, _django, api
from tests.support.lessons import assert_teaches

__all__ = ["api", "served"]  # fixtures

METHODS = ("GET", "PUT", "POST", "PATCH", "DELETE")
ROUTES = [*API_ROUTES, Route("schema/", SchemaView, name="schema")]
OPERATIONS = [(method, route) for route in ROUTES for method in METHODS]

BODIES: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("GET", "kvs/"): parsing.Body,
    ("PUT", "kvs/"): parsing.PutBody,
    ("POST", "kvs/"): parsing.PutBody,
    ("PATCH", "kvs/"): parsing.PatchBody,
    ("DELETE", "kvs/"): parsing.WriteConcernBody,
    ("GET", "kvs"): parsing.Body,
    ("POST", "kvs"): parsing.TransactionBody,
    ("DELETE", "kvs"): parsing.WriteConcernBody,
    ("GET", "changes"): parsing.Body,
    ("PUT", "view"): AddressBody,
    ("DELETE", "view"): AddressBody,
}
"""The body of each method and route that reads JSON."""

VALID: dict[type[msgspec.Struct], bytes] = {
    parsing.PutBody: b'{"value": 1}',
    parsing.PatchBody: b'{"increment": 1}',
    parsing.TransactionBody: b'{"reads": ["here"]}',
}
"""Bodies that lack nothing."""


def path_of(route: Route) -> str:
    return f"/{route.path}here" if route.takes_rest else f"/{route.path}"


def serves(route: Route, method: str) -> bool:
    return method in route.view._handlers


def name_of(operation: tuple[str, Route]) -> str:
    return f"{operation[0]} {path_of(operation[1])}"


class Fault(NamedTuple):
    """One kind of mistake. ``field``: the field that the error has to name."""

    name: str
    status: int
    raw: bytes | None = None
    content_type: str = "application/json"
    headers: dict[str, str] | None = None
    query: str = ""
    field: str = ""


def wrong_value(field: str) -> Any:
    """Return a value that is wrong for any field but ``value``."""
    return 1 if field in {"add", "remove", "unset", "reads", "writes"} else [[]]


def faults_of_fields(struct: type[msgspec.Struct]) -> Iterator[Fault]:
    for field in struct.__struct_encode_fields__:
        if field != "value":
            body = {"value": 1, field: wrong_value(field)} if struct is parsing.PutBody else {field: wrong_value(field)}
            yield Fault(f"wrong type of {field}", 400, json.dumps(body).encode(), field=field)
        misspelt = {"value": 1, field.upper() + "S": 1}
        yield Fault(f"misspelt {field}", 400, json.dumps(misspelt).encode())
    if struct is parsing.TransactionBody:
        for field in parsing.WriteBody.__struct_encode_fields__:
            if field != "value":
                body = {"writes": [{"key": "k", "value": 1, field: wrong_value(field)}]}
                yield Fault(f"wrong type of {field} in a write", 400, json.dumps(body).encode(), field=field)
        yield Fault("write without a key", 400, b'{"writes": [{"value": 1}]}', field="key")


def faults(method: str, route: Route) -> Iterator[Fault]:
    """Yield every kind of mistake that a request of this method and route can have."""
    if not serves(route, method):
        yield Fault("method", 405, b"{}")
        return
    yield Fault("host", 400, headers={"Host": "evil.example"})
    struct = BODIES.get((method, route.path))
    if struct is not None or issubclass(route.view, PeerView):
        media_type = "application/msgpack" if struct is None else "application/json"
        yield Fault("form", 415, b"value=1", "application/x-www-form-urlencoded")
        yield Fault("text", 415, b'{"value": 1}', "text/plain")
        yield Fault("other media type, long", 415, b"1", "x/" + "y" * 5000)
        for text in (b"{", b"'", b"[1]", b'"a"', b"null", b'{"x": "\xff"}', b'{"zzz": 1}', b"[" * 200):
            yield Fault(f"body {text[:12]!r}", 400, text, media_type)
        yield (
            Fault("body too large", 413, b" " * (LIMITS.max_body_bytes + 1), media_type)
            if struct
            else Fault("no message", 400, b"", media_type)
        )
    if struct is not None:
        yield from faults_of_fields(struct)
    if struct is not None and route.path != "view":
        yield Fault("metadata in the header", 400, headers={"X-Causal-Metadata": "[]"}, field="causal-metadata")
        yield Fault("metadata in the query", 400, query="causal-metadata=x", field="causal-metadata")
        yield Fault("wait", 400, VALID.get(struct, b"{}"), query="wait=x&prefix=a", field="wait")
    if route.takes_rest:
        yield Fault("key no UTF-8", 400, query="\xff")
        yield Fault("key too long", 400, query="long")


def ask(api: Api, method: str, route: Route, fault: Fault) -> Response:
    path = path_of(route)
    if fault.name == "key no UTF-8":
        path, query = f"{path}%FF", ""
    elif fault.name == "key too long":
        path, query = path + "x" * LIMITS.max_key_bytes, ""
    else:
        query = f"?{fault.query}" if fault.query else ""
    return api.ask(method, path + query, raw=fault.raw, content_type=fault.content_type, headers=fault.headers)


@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_each_kind_of_error_says_what_to_send(served: Served, operation: tuple[str, Route]) -> None:
    method, route = operation
    served.api.put("/kvs/here", "before")
    before = served.state()
    kinds = 0
    for fault in faults(method, route):
        response = ask(served.api, method, route, fault)
        assert response.status == fault.status, (fault, response)
        assert_teaches(response)
        assert fault.field in response.body["error"] + response.body["hint"], (fault, response)
        usage = route.view.usage.get(method)
        if fault.status in (405, 415) and usage is not None and usage.example is not None:
            assert response.body["example"] == usage.example
        if fault.status == 415:
            assert "Content-Type: application/" in response.body["error"]
        if fault.status == 405:
            assert response.headers["Allow"] in response.body["hint"]
        kinds += 1
    assert kinds > 0
    assert served.state() == before


def test_every_served_method_says_how_it_is_used() -> None:
    views: list[type[ApiView]] = [route.view for route in ROUTES]
    lacking = [(view.__name__, method) for view in views for method in view._handlers if method not in view.usage]
    assert [each for each in lacking if each[1] != "OPTIONS"] == []


def test_the_bodies_of_the_table_are_those_that_the_routes_read() -> None:
    """A route that takes a body has an example, or needs none; both kinds are in the table."""
    examples = {
        (method, route.path)
        for method, route in OPERATIONS
        if serves(route, method) and route.view.usage[method].example is not None
    }
    assert len(examples) == 7
    assert examples < BODIES.keys()


@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_each_example_works_as_it_stands(served: Served, operation: tuple[str, Route]) -> None:
    method, route = operation
    if not serves(route, method) or (example := route.view.usage[method].example) is None:
        return
    path = "/kvs/new" if method == "PATCH" else path_of(route)
    if method == "DELETE":
        served.api.put("/kvs/here", 1)
        served.api.ask("PUT", "/view", example)
    response = served.api.ask(method, path, example)
    assert response.status in (200, 201), response


def test_every_field_of_every_body_has_a_description() -> None:
    structs: list[type[msgspec.Struct]] = [*BODIES.values(), parsing.WriteBody]
    fields = {field for struct in structs for field in struct.__struct_encode_fields__}
    assert fields - wording.EXPECTED.keys() == {"value"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TTL", "ttl"), ("Value", "value"), ("val", "value"), ("values", "value"), ("w_timeout", "w-timeout"),
        ("wTimeout", "w-timeout"), ("causalMetadata", "causal-metadata"), ("causal_metadata", "causal-metadata"),
        ("metadata", "causal-metadata"), ("x", None), ("", None), ("data", None), ("ttl" * 50_000, None),
    ],
)  # fmt: skip
def test_the_nearest_field_is_named(name: str, meant: str | None) -> None:
    assert wording.nearest(name, parsing.PutBody.__struct_encode_fields__) == meant


def test_a_put_without_a_value_names_what_was_meant(api: Api) -> None:
    response = api.ask("PUT", "/kvs/k", {"Value": 1})
    assert response.body["error"] == "PUT request does not specify a value"
    assert response.body["hint"].startswith('Did you mean "value"? Send an object with "value", which')
    assert response.body["example"] == {"value": "pizza"}


# -- a hint is about what is wrong -------------------------------------------------------------------------------------

DECLARE_JSON = "Send the header Content-Type: application/json"


@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_no_hint_asks_for_a_header_that_the_request_has(api: Api, operation: tuple[str, Route]) -> None:
    method, route = operation
    for fault in faults(method, route):
        if fault.content_type == "application/json":
            response = ask(api, method, route, fault)
            assert DECLARE_JSON not in response.body["hint"], (fault, response)


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded"])
def test_a_request_without_the_header_learns_of_it(api: Api, content_type: str) -> None:
    for method, path in (
        ("PUT", "/kvs/k"),
        ("PATCH", "/kvs/k"),
        ("POST", "/kvs"),
        ("PUT", "/view"),
        ("DELETE", "/view"),
    ):
        response = api.ask(method, path, raw=b"x=1" if content_type else b"", content_type=content_type)
        assert response.status == (415 if content_type else 400)
        assert response.body["hint"].startswith(f"{DECLARE_JSON} (curl --json does) and an object with "), response


BIG = 2**63
ABOUT: list[tuple[str, str, Any, dict[str, str], int, str]] = [
    # numbers
    ("PATCH", "/kvs/sum", {"increment": BIG - 1}, {}, 400, "A smaller increment may fit"),
    ("PATCH", "/kvs/sum", {"increment": BIG}, {}, 400, "from -2^63 to 2^63 - 1"),
    ("PATCH", "/kvs/k", {"add": [BIG * 4]}, {}, 400, "as a string"),
    ("PATCH", "/kvs/k", {"remove": [-BIG * 4]}, {}, 400, "as a string"),
    ("PATCH", "/kvs/k", {"set": {"f": BIG * 4}}, {}, 400, "as a string"),
    ("PUT", "/kvs/k", {"value": [BIG * 4]}, {}, 400, "as a string"),
    ("PUT", "/kvs/k", b'{"value": 1e999}', {}, 400, "as a string"),
    ("POST", "/kvs", {"writes": [{"key": "k", "value": BIG * 4}]}, {}, 400, "as a string"),
    # the body
    ("PUT", "/kvs/k", [1], {}, 400, 'Send an object with "value"'),
    ("PUT", "/kvs/k", {"value": 1, "causal-metadata": {"a": -1}}, {}, 400, "of the latest response unchanged"),
    ("PUT", "/kvs/k", {"value": 1, "causal-metadata": 1}, {}, 400, "of the latest response unchanged"),
    ("PUT", "/kvs/k", {"value": 1, "ttl": "x"}, {}, 400, "/schema/"),
    ("PATCH", "/kvs/k", {"add": ["a"], "remove": ["a"]}, {}, 400, "one of the two only"),
    ("PATCH", "/kvs/k", {}, {}, 400, "Send an object with one operation"),
    ("PATCH", "/kvs/k", {"increment": 1, "add": ["a"]}, {}, 400, "Send an object with one operation"),
    ("POST", "/kvs", {}, {}, 400, 'Send an object with "reads"'),
    ("POST", "/kvs", {"reads": ["k"] * 2000}, {}, 400, "several transactions"),
    ("POST", "/kvs", {"writes": [{"key": "k"}]}, {}, 400, "Examples of writes"),
    ("POST", "/kvs", {"writes": [{"key": "k", "value": 1, "delete": True}]}, {}, 400, "Examples of writes"),
    ("POST", "/kvs", {"writes": [{"key": "k", "delete": True, "ttl": 1}]}, {}, 400, "leave ttl out"),
    ("POST", "/kvs", {"writes": [{"key": "k", "increment": 1}] * 2}, {}, 400, "one write only"),
    ("PUT", "/view", {"socket-address": "x"}, {}, 400, "host:port"),
    ("PUT", "/view", {"address": "x:1"}, {}, 400, 'Send an object with "socket-address"'),
    # the query
    ("PUT", "/kvs/k?wait=abc", {"value": 1}, {}, 400, "?wait=5"),
    ("PUT", "/kvs/k?ttl=0", {"value": 1}, {}, 400, "?ttl=60"),
    ("PATCH", "/kvs/k?w=none", {"increment": 1}, {}, 400, "?w=majority"),
    ("PATCH", "/kvs/k?w-timeout=x", {"increment": 1}, {}, 400, "?w-timeout=5"),
    ("POST", "/kvs?wait=61", {"reads": ["k"]}, {}, 400, "?wait=5"),
    ("POST", "/kvs?%FF=1", {"reads": ["k"]}, {}, 400, "percent-encode"),
    ("POST", "/kvs?" + "a=1&" * 40, {"reads": ["k"]}, {}, 400, "/schema/"),
    ("PUT", "/kvs/k?causal-metadata[x]=1", {"value": 1}, {}, 400, "one parameter"),
    ("GET", "/kvs?limit=0", None, {}, 400, "?limit=1000"),
    ("GET", "/kvs?values=1", None, {}, 400, "?values=true"),
    ("GET", "/replication/status?history=x", None, {}, 400, "?history=hour"),
    ("GET", "/schema/?format=x", None, {}, 400, "?format=yaml"),
    # headers
    ("PUT", "/kvs/k", {"value": 1}, {"If-Match": "x"}, 400, "with its quotes"),
    ("PUT", "/kvs/k", {"value": 1}, {"If-Match": '"a",' * 70 + '"a"'}, 400, "with its quotes"),
    ("PUT", "/kvs/k", {"value": 1}, {"If-None-Match": '"a"'}, 400, "send If-Match"),
    ("GET", "/kvs/k", None, {"Accept": "application/octet-stream;q=x"}, 400, "q=0.5"),
    ("PUT", "/kvs/k", {"value": 1}, {"X-Causal-Metadata": "x"}, 400, "of the latest response unchanged"),
    # what the replica holds
    ("PATCH", "/kvs/plain", {"increment": 1}, {}, 409, "replace it with PUT"),
    ("PATCH", "/kvs/k", {"remove": ["a"]}, {}, 404, "create no key"),
    ("PUT", "/kvs/plain", {"value": 1}, {"If-None-Match": "*"}, 412, "Read the key again"),
]  # fmt: skip


@pytest.mark.parametrize("case", ABOUT, ids=lambda case: f"{case[0]} {case[1][:30]} {str(case[2])[:30]}")
def test_each_hint_is_about_what_is_wrong(served: Served, case: tuple[str, str, Any, dict[str, str], int, str]) -> None:
    method, path, body, headers, status, hint = case
    api = served.api
    api.ask("PATCH", "/kvs/sum", {"increment": 1})
    api.put("/kvs/plain", 1)
    before = served.state()
    raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    response = api.ask(method, path, raw=raw, headers=headers)
    assert response.status == status, response
    assert_teaches(response)
    assert hint in response.body["hint"], response
    assert DECLARE_JSON not in response.body["hint"]
    assert served.state() == before


@pytest.mark.parametrize(
    "text",
    [r"\ud800", r"\udfff", r"\ud800x", r"\uD83D\n", r"\ud800\ud800", r"\ude00\ud83d", r"\ud83d\ude00\udbff"],
)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/kvs/k", '{"value": "%s"}'),
        ("PUT", "/kvs/k", '{"%s": 1}'),
        ("PATCH", "/kvs/k", '{"add": ["%s"]}'),
        ("PATCH", "/kvs/k", '{"set": {"%s": 1}}'),
        ("POST", "/kvs", '{"reads": ["%s"]}'),
    ],
)
def test_half_of_a_character_is_named(api: Api, method: str, path: str, body: str, text: str) -> None:
    response = api.ask(method, path, raw=(body % text).encode())
    assert (response.status, response.body["error"]) == (400, wording.HALF_A_CHARACTER)
    assert r"\ud83d\ude00" in response.body["hint"]
    assert_teaches(response)


@pytest.mark.parametrize(
    "body", [r'{"value": "\ud83d\ude00"', r'{"value": "\\ud800"', '{"value": "', r'{"value": "\ud800']
)
def test_a_body_that_is_cut_off_is_called_so(api: Api, body: str) -> None:
    response = api.ask("PUT", "/kvs/k", raw=body.encode())
    assert response.body["error"] == "Body is not valid JSON: Input data was truncated"
    assert response.body["hint"] == wording.JSON_HINT


def test_a_whole_character_in_escapes_is_accepted(api: Api) -> None:
    assert api.ask("PUT", "/kvs/k", raw=rb'{"value": "\ud83d\ude00"}').status == 201


FIXED = [
    ("PUT", "/kvs/k", b"{}", "PUT request does not specify a value"),
    ("PUT", "/kvs/" + "x" * 600, b'{"value": 1}', "Key is too long"),
    ("PATCH", "/kvs/k", b'{"remove": ["a"]}', "Key does not exist"),
    ("DELETE", "/view", b'{"socket-address": "127.0.0.1:1"}', "View has no such replica"),
    ("PATCH", "/kvs/here", b'{"increment": 1}', "Key holds a plain value, not a counter"),
]


@pytest.mark.parametrize(("method", "path", "raw", "error"), FIXED)
def test_texts_of_the_contract_stay_and_the_hint_is_beside_them(
    api: Api, method: str, path: str, raw: bytes, error: str
) -> None:
    api.put("/kvs/here", 1)
    response = api.ask(method, path, raw=raw)
    assert response.body["error"] == error
    assert_teaches(response)


def test_an_absent_key_is_an_answer_and_has_no_hint(api: Api) -> None:
    for method in ("GET", "DELETE"):
        assert api.ask(method, "/kvs/k").body == {"error": "Key does not exist", "causal-metadata": {}}


def test_conditions_that_do_not_hold_say_how_to_go_on(api: Api) -> None:
    api.put("/kvs/here", 1)
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"other"'}):
        response = api.ask("PUT", "/kvs/here", {"value": 1}, headers=headers)
        assert response.status == 412
        assert_teaches(response)
        assert "example" not in response.body


def test_a_get_that_cannot_be_bytes_says_what_to_accept(api: Api) -> None:
    api.put("/kvs/here", 1)
    for path in ("/kvs/here", "/kvs/here?siblings=true"):
        response = api.ask("GET", path, headers={"Accept": "application/octet-stream"})
        assert response.status == 406
        assert "Accept: application/json" in response.body["hint"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [("/KVS/k", "/kvs/KEY"), ("/kv/k", "/kvs/KEY"), ("/view/", "/view"), ("/views", "/view"), ("/status", ""),
     ("/replication", "/replication/status"), ("/metrics/", "/metrics"), ("/" + "x" * 9000, ""),
     ("/admin/none", "/admin/"), ("/kv", "/kvs")],
)  # fmt: skip
def test_an_unknown_path_lists_the_paths(api: Api, path: str, meant: str) -> None:
    response = api.ask("GET", path)
    assert response.status == 404
    assert_teaches(response)
    assert "/kvs/KEY" in response.body["hint"]
    if meant:
        assert response.body["hint"].startswith(f"Did you mean {meant}? ")


# -- the edge ----------------------------------------------------------------------------------------------------------

TOKENS = (
    ApiToken("app", "token-that-writes", "write"),
    ApiToken("look", "token-that-reads", "read"),
    ApiToken("team", "token-of-a-team", "write", ("team/",)),
)
SECURED = Config(cluster_secret="a secret of this cluster", api_tokens=TOKENS)
WITH_TOKENS = Config(api_tokens=TOKENS)
READ = {"Authorization": "Bearer token-that-reads"}
TEAM = {"Authorization": "Bearer token-of-a-team"}

DENIED: list[tuple[str, Config, str, str, dict[str, str], int, str]] = [
    ("no token", SECURED, "GET", "/kvs/k", {}, 401, "Authorization: Bearer"),
    ("unknown token", SECURED, "GET", "/kvs/k", {"Authorization": "Bearer x"}, 401, "Authorization: Bearer"),
    ("read token", SECURED, "PUT", "/kvs/k", READ, 403, "may write"),
    ("read token in a transaction", SECURED, "POST", "/kvs", READ, 403, "may write"),
    ("other key", SECURED, "GET", "/kvs/k", TEAM, 403, "?prefix="),
    ("other keys in a transaction", SECURED, "POST", "/kvs", TEAM, 403, "?prefix="),
    ("path for all keys", SECURED, "GET", "/new", TEAM, 403, "without prefixes"),
    ("closed dashboard", SECURED, "GET", "/admin/", {}, 403, "KV_ADMIN_PASSWORD"),
    ("no proof", SECURED, "PUT", "/view", READ, 403, "join_view"),
    ("bad proof", SECURED, "PUT", "/view", {"X-Causeway-Proof": "1 x"}, 403, "join_view"),
    ("proof without a secret", WITH_TOKENS, "PUT", "/view", {"X-Causeway-Proof": "1 x"}, 403, "Unset"),
    ("view without a secret", WITH_TOKENS, "PUT", "/view", {"Authorization": "Bearer token-that-writes"}, 403, "Start"),
    ("other origin", Config(), "PUT", "/kvs/k", {"Origin": "http://evil.example"}, 403, "KV_CORS_ORIGINS"),
    ("other host", Config(), "GET", "/kvs/k", {"Host": "evil.example"}, 400, "KV_ALLOWED_HOSTS"),
]


@pytest.mark.parametrize("case", DENIED, ids=lambda case: case[0])
def test_each_denial_says_what_to_send(api: Api, case: tuple[str, Config, str, str, dict[str, str], int, str]) -> None:
    _, config, method, path, headers, status, hint = case
    api.use(config=config)
    api._application = Edge(FastPath(_django()), api.context, Guard.for_config(config, api.context.node.id))
    body = {"writes": [{"key": "k", "value": 1}]}
    response = api.ask(method, path, body, headers=headers)
    assert response.status == status, response
    assert_teaches(response)
    assert hint in response.body["hint"]


@pytest.mark.parametrize("path", ["/kvs/k", "/kvs", "/view"])
@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"{broken", wording.JSON_HINT),
        (b'{"value": 1', wording.JSON_HINT),
        (b"{'value': 1}", wording.JSON_HINT),
        (b'{"value": "\xff"}', wording.UTF8_HINT),
        (b'{"value": ' + b"[" * 200 + b"]" * 200 + b"}", "Send a value with fewer levels, or write it as a string."),
    ],
)
def test_the_hint_for_a_broken_body_is_about_the_body(api: Api, path: str, body: bytes, hint: str) -> None:
    """Its header was right."""
    response = api.ask("POST" if path == "/kvs" else "PUT", path, raw=body)
    assert (response.status, response.body["hint"]) == (400, hint)
    assert response.body["example"]
