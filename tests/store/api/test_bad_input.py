"""Bad input (contract P7): a clear 4xx in JSON, no change, and the replica serves the next request."""

from __future__ import annotations

import io
import json
import random
from typing import Any, NamedTuple

import msgspec
import pytest

from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.replica import Replica
from store.engine import Engine, read_clocks
from tests.support.api import LIMITS, OWN_ID, Api, api
from tests.support.lessons import assert_teaches

__all__ = ["api"]


class Case(NamedTuple):
    """One bad request. ``body`` is sent as JSON, ``raw`` unchanged. ``error``: a part of the expected error text."""

    name: str
    method: str
    path: str
    status: int = 400
    error: str = ""
    body: Any = None
    raw: bytes | None = None
    content_type: str | None = "application/json"
    headers: dict[str, str] | None = None


def put_raw(name: str, raw: bytes, status: int = 400, error: str = "", **more: Any) -> Case:
    return Case(f"body: {name}", "PUT", "/kvs/k", status, error, raw=raw, **more)


def put_value(name: str, value: bytes, status: int = 400, error: str = "") -> Case:
    return Case(f"value: {name}", "PUT", "/kvs/k", status, error, raw=b'{"value": ' + value + b"}")


def put_past(name: str, past: bytes, error: str = "causal-metadata") -> Case:
    return Case(f"past: {name}", "PUT", "/kvs/k", 400, error, raw=b'{"value": 1, "causal-metadata": ' + past + b"}")


def transact(name: str, body: Any, status: int = 400, error: str = "") -> Case:
    return Case(f"transaction: {name}", "POST", "/kvs", status, error, body)


def write(name: str, *writes: Any, status: int = 400, error: str = "") -> Case:
    """A transaction with a valid write before the bad one. Neither may be made."""
    return transact(name, {"writes": [{"key": "good", "value": 1}, *writes]}, status, error)


DEEP = 100_000

BODIES = [
    put_raw("empty object", b"{}", error="PUT request does not specify a value"),
    put_raw("none", b"", error="PUT request does not specify a value"),
    put_raw("value under another name", b'{"Value": 1}', error="PUT request does not specify a value"),
    put_raw(
        "unknown field",
        b'{"value": 1, "TTL": 5}',
        error="unknown field `TTL` (did you mean `ttl`?); allowed are causal-metadata, w,",
    ),
    put_raw("metadata in camel case", b'{"value": 1, "causalMetadata": {}}', error="allowed are causal-metadata"),
    put_raw("white space", b"  ", error="not valid JSON"),
    put_raw("cut off", b'{"value": 1', error="not valid JSON"),
    put_raw("two objects", b'{"value": 1}{"value": 2}', error="not valid JSON"),
    put_raw("single quotes", b"{'value': 1}", error="not valid JSON"),
    put_raw("trailing comma", b'{"value": 1,}', error="not valid JSON"),
    put_raw("comment", b'{"value": 1 /* one */}', error="not valid JSON"),
    put_raw("byte order mark", b'\xef\xbb\xbf{"value": 1}', error="not valid JSON"),
    put_raw("UTF-16", '{"value": 1}'.encode("utf-16")),
    put_raw("Latin-1", '{"value": "ä"}'.encode("latin-1"), error="UTF-8"),
    put_raw("Latin-1 in an unknown field", '{"value": 1, "x": "ä"}'.encode("latin-1"), error="UTF-8"),
    put_raw("encoded surrogate", b'{"value": "\xed\xa0\x80"}', error="UTF-8"),
    put_raw("NUL bytes", b"\0" * 20, error="not valid JSON"),
    put_raw("array", b"[1]", error="Body has to be a JSON object, not"),
    put_raw("string", b'"value"', error="Body has to be a JSON object, not"),
    put_raw("null", b"null", error="Body has to be a JSON object, not"),
    put_raw("number", b"1", error="Body has to be a JSON object, not"),
    put_raw("too large", b'{"value": 1}' + b" " * LIMITS.max_body_bytes, 413, "Body is too large"),
    put_raw("form", b"value=1", 415, content_type="application/x-www-form-urlencoded"),
    put_raw("JSON said to be a form", b'{"value": 1}', 415, content_type="application/x-www-form-urlencoded"),
    put_raw("multipart", b"--x\r\n", 415, content_type="multipart/form-data; boundary=x"),
    put_raw("text", b'{"value": 1}', 415, content_type="text/plain"),
    put_raw("message pack", b"\x81\xa5value\x01", 415, content_type="application/msgpack"),
    put_raw("a broken type", b'{"value": 1}', 415, content_type="json"),
    put_raw("deep nesting in an unknown field", b'{"value": 1, "x": ' + b"[" * DEEP + b"]" * DEEP + b"}", error="deep"),
]

VALUES = [
    put_value("NaN", b"NaN", error="not valid JSON"),
    put_value("Infinity", b"Infinity", error="not valid JSON"),
    put_value("-Infinity", b"[-Infinity]", error="not valid JSON"),
    put_value("beyond a double", b"1e400", error="finite double"),
    put_value("beyond a double, negative, inside", b'{"a": [-1e400]}', error="finite double"),
    put_value("whole number beyond a double", b"1" * 400, error="finite double"),
    put_value("whole number just beyond a double", b"2" + b"0" * 308, error="finite double"),
    put_value(
        "negative whole number beyond a double, inside", b'{"a": [[-' + b"9" * 350 + b"]]}", error="finite double"
    ),
    put_value("number of 5000 digits", b"1" * 5000, error="finite double"),
    put_value("2^64", b"18446744073709551616", error="64-bit integer"),
    put_value("below -2^63", b"-9223372036854775809", error="64-bit integer"),
    put_value("2^70, inside, beside text", b'{"a":"text","b":[1180591620717411303424]}', error="64-bit integer"),
    put_value("101 arrays", b"[" * 101 + b"]" * 101, error="at most 100 levels"),
    put_value("101 objects", b'{"a":' * 101 + b"1" + b"}" * 101, error="at most 100 levels"),
    put_raw("101 levels in an unknown field", b'{"value":1,"x":' + b"[" * 101 + b"]" * 101 + b"}", error="100 levels"),
    put_raw(
        "101 levels beside brackets in strings",
        b'{"value":["]\\"]\\\\","[",' + b"[" * 100 + b"]" * 100 + b"]}",
        error="100 levels",
    ),
    put_value("leading zero", b"01", error="not valid JSON"),
    put_value("plus sign", b"+1", error="not valid JSON"),
    put_value("hexadecimal", b"0x1", error="not valid JSON"),
    put_value("lone high surrogate", b'"\\ud800"', error="not valid JSON"),
    put_value("lone low surrogate", b'"\\udc00 and more"', error="not valid JSON"),
    put_value("lone surrogate in a name", b'{"\\ud800": 1}', error="not valid JSON"),
    put_value("line feed in a string", b'"a\nb"', error="not valid JSON"),
    put_value("deep array", b"[" * DEEP + b"]" * DEEP, error="deep"),
    put_value("deep object", b'{"a":' * DEEP + b"1" + b"}" * DEEP, error="deep"),
    put_value("deep and never closed", b"[" * DEEP, error="deep"),
    put_value("too large", b'"' + b"x" * LIMITS.max_value_bytes + b'"', 413, "Value is too large"),
    put_value("too large once encoded in UTF-8", b'"' + b"\\u20ac" * (LIMITS.max_value_bytes // 3) + b'"', 413),
]

PASTS = [
    put_past("array", b"[]"),
    put_past("string", b'"{}"'),
    put_past("number", b"0"),
    put_past("false", b"false"),
    put_past("negative", b'{"a": -1}'),
    put_past("fraction", b'{"a": 1.5}'),
    put_past("negative with a point", b'{"a": -1.0}'),
    put_past("2^53 with a point", b'{"a": 9007199254740992.0}'),
    put_past("infinity", b'{"a": 1e999}'),
    put_past("text", b'" "'),
    put_past("true", b'{"a": true}'),
    put_past("null counter", b'{"a": null}'),
    put_past("text counter", b'{"a": "1"}'),
    put_past("2^53", b'{"a": 9007199254740992}'),
    put_past("2^64", b'{"a": 18446744073709551616}'),
    put_past("giant", b'{"a": ' + b"9" * 1000 + b"}"),
    put_past("nested", b'{"a": {"b": 1}}'),
    put_past("too many entries", json.dumps({f"r{n}": 0 for n in range(LIMITS.max_clock_entries + 1)}).encode()),
    put_past("lone surrogate", b'{"\\ud800": 1}', error="JSON"),
    put_past("deep", b'{"a": ' * DEEP + b"1" + b"}" * DEEP, error=""),
    *(
        Case(f"past in the header: {past!r}", "GET", "/kvs/k", 400, "metadata", headers={"X-Causal-Metadata": past})
        for past in ("x", "[]", '{"a":-1}', '{"a":1.5}', '{"a":1', '{"a":"\xff"}', '{"\xff":1}', "{}{}", "[" * 9999)
    ),
    *(
        Case(f"past in the query: {text!r}", method, f"/kvs/k?causal-metadata={text}", error="causal-metadata")
        for method, text in [("GET", "["), ("DELETE", "null,"), ("GET", '{"a":true}')]
    ),
    Case("past in the query: no UTF-8", "GET", "/kvs/k?causal-metadata=%FF", error="UTF-8"),
]  # fmt: skip

KEYS = [
    Case("key: empty", "PUT", "/kvs/", error="Key is empty", body={"value": 1}),
    Case("key: empty, read", "GET", "/kvs/", error="Key is empty"),
    Case("key: empty, deleted", "DELETE", "/kvs/", error="Key is empty"),
    Case("key: 513 bytes", "PUT", "/kvs/" + "x" * 513, error="Key is too long", body={"value": 1}),
    Case("key: 257 characters", "PUT", "/kvs/" + "%C3%A4" * 257, error="Key is too long", body={"value": 1}),
    Case("key: 100,000 bytes", "GET", "/kvs/" + "x" * 100_000, error="Key is too long"),
    *(
        Case(f"key: no UTF-8: {method} {path}", method, f"/kvs/{path}", error="UTF-8", body=body)
        for path in ("%FF", "a%80b", "%C3", "%ED%A0%80", "%C0%AF", "%25FF%FF", "%F5%80%80%80")
        for method, body in (("PUT", {"value": 1}), ("GET", None), ("DELETE", None))
    ),
]  # fmt: skip

QUERIES = [
    *(Case(f"query: limit {text}", "GET", f"/kvs?limit={text}", error="limit") for text in
      ("0", "1001", "-1", "x", "1.0", "1e2", "true", "1_0", "%2B5", "9" * 5000)),
    *(Case(f"query: wait {text}", "GET", f"/kvs/k?wait={text}", error="wait") for text in
      ("-1", "61", "x", "1e400", "nan", "inf", "null")),
    *(Case(f"query: siblings {text}", "GET", f"/kvs/k?siblings={text}", error="siblings") for text in ("yes", "1", "")),
    Case("query: values", "GET", "/kvs?values=yes", error="values"),
    Case("query: conflicts", "GET", "/kvs?conflicts=True", error="conflicts"),
    Case("query: prefix is no UTF-8", "GET", "/kvs?prefix=%FF", error="UTF-8"),
    Case("query: after is no UTF-8", "GET", "/kvs?after=a%C3", error="UTF-8"),
    Case("query: too many parameters", "GET", "/kvs?" + "&".join(["a=1"] * 2000), error="parameters"),
]  # fmt: skip

WRITES = [
    *(Case(f"ttl: {ttl}", "PUT", "/kvs/k", error="ttl", raw=f'{{"value": 1, "ttl": {ttl}}}'.encode()) for ttl in
      ("0", "-1", "0.0", "true", '"1"', "[]", "1e11", "1e400")),
    Case("if-match: bare", "PUT", "/kvs/k", error="If-Match", body={"value": 1}, headers={"If-Match": "abc"}),
    Case("if-match: broken", "DELETE", "/kvs/k", error="If-Match", headers={"If-Match": '"a" "b'}),
    Case("if-none-match: bare", "GET", "/kvs/k", error="If-None-Match", headers={"If-None-Match": "abc"}),
    Case("if-none-match: tag", "PUT", "/kvs/k", 400, "If-None-Match", {"value": 1}, headers={"If-None-Match": '"a"'}),
]  # fmt: skip

TRANSACTIONS = [
    transact("no body", None, error="reads or writes"),
    transact("a PUT gone astray", {"value": 1}, error="`value`; allowed are causal-metadata, w,"),
    transact("reads is null", {"reads": None}),
    transact("reads is a string", {"reads": "abc"}),
    transact("reads holds a number", {"reads": [1]}),
    transact("read of an empty key", {"reads": [""]}, error="Key is empty"),
    transact("read of a long key", {"reads": ["ä" * 257]}, error="Key is too long"),
    transact("neither reads nor writes", {}, error="reads or writes"),
    put_raw("unknown field, then invalid JSON", b'{"x": 1, "value": ', error="not valid JSON"),
    put_raw("unknown field, then another value", b'{"x": 1, "value": 1} 2', error="not valid JSON"),
    transact("writes is an object", {"writes": {}}),
    transact("unknown field", {"reads": ["k"], "keys": []}, error="`keys`; allowed are causal-metadata, w,"),
    write("unknown field of a write", {"key": "k", "value": 1, "w": 2}, error="`w`; allowed are key, value, delete"),
    Case("GET: unknown field", "GET", "/kvs/k", 400, "`value`; allowed are causal-metadata", {"value": 1}),
    Case("listing: unknown field", "GET", "/kvs", 400, "`prefix`; allowed are causal-metadata", {"prefix": "a"}),
    Case("DELETE: unknown field", "DELETE", "/kvs/k", 400, "`key`; allowed are causal-metadata, w", {"key": "k"}),
    Case(
        "view: unknown field",
        "PUT",
        "/view",
        400,
        "`address` (did you mean `socket-address`?); allowed",
        {"address": "a:1"},
    ),
    write("write is a string", "k"),
    write("write without a key", {"value": 1}, error="key"),
    write("write with a null key", {"key": None, "value": 1}),
    write("write with an empty key", {"key": "", "value": 1}, error="Key is empty"),
    write("write with a long key", {"key": "x" * 513, "value": 1}, error="Key is too long"),
    write("write without a value", {"key": "k"}, error="A write has a value, or"),
    write("delete is false", {"key": "k", "delete": False}, error="A write has a value, or"),
    write("value and delete", {"key": "k", "value": 1, "delete": True}, error="A write has a value, or"),
    write("delete is 1", {"key": "k", "delete": 1}),
    write("ttl of a delete", {"key": "k", "delete": True, "ttl": 1}, error="ttl"),
    write("ttl of zero", {"key": "k", "value": 1, "ttl": 0}, error="ttl"),
    write("if-match is a number", {"key": "k", "value": 1, "if-match": 1}, error="if-match"),
    write("if-none-match is a tag", {"key": "k", "value": 1, "if-none-match": '"a"'}, error="if-none-match"),
    write(
        "value too large", {"key": "k", "value": "x" * LIMITS.max_value_bytes}, status=413, error="Value is too large"
    ),
    write("number beyond a double", {"key": "k", "value": 10**400}, error="finite double"),
    transact("too many reads", {"reads": [f"k{n}" for n in range(LIMITS.max_batch + 1)]}, error="at most"),
    transact("too many reads of one key", {"reads": ["k"] * (LIMITS.max_batch + 1)}, error="at most"),
    write("too many writes", *({"key": f"k{n}", "value": n} for n in range(LIMITS.max_batch)), error="at most"),
    Case("transaction: lone surrogate in a key", "POST", "/kvs", raw=b'{"writes": [{"key": "\\ud800", "value": 1}]}'),
    Case(
        "transaction: no UTF-8 in a key",
        "POST",
        "/kvs",
        error="UTF-8",
        raw=b'{"writes": [{"key": "\xff", "value": 1}]}',
    ),
]

METHODS = [
    *(Case(f"method: {method} {path}", method, path, 405, "not allowed") for method, path in
      [("TRACE", "/kvs/k"), ("BREW", "/kvs/k"), ("PUT", "/kvs"),
       ("PATCH", "/kvs"), ("INITIAL", "/kvs/k"), ("ASK", "/kvs/k"), ("DISPATCH", "/kvs")]),
    Case("path: none", "GET", "/nothing", 404, "Not found"),
    Case("path: /KVS", "GET", "/KVS/k", 404, "Not found"),
    Case("path: /kvsx", "PUT", "/kvsx", 404, "Not found", body={"value": 1}),
]  # fmt: skip

CASES = [*BODIES, *VALUES, *PASTS, *KEYS, *QUERIES, *WRITES, *TRANSACTIONS, *METHODS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:60])
def test_bad_input_is_a_clear_4xx_that_changes_nothing(api: Api, case: Case) -> None:
    api.put("/kvs/here", "before")
    before = api.state()
    response = api.ask(
        case.method, case.path, case.body, raw=case.raw, content_type=case.content_type, headers=case.headers
    )
    assert response.status == case.status
    assert response.headers["Content-Type"] == "application/json"
    assert isinstance(response.body["error"], str)
    assert case.error in response.body["error"]
    assert response.body["error"]
    assert len(response.body["error"]) < 300
    assert_teaches(response)
    assert api.state() == before
    assert api.get("/kvs/here", {OWN_ID: 1}).body["value"] == "before"


def test_there_are_enough_cases_of_kvs() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("length", ["x", "1e3"])
def test_an_invalid_content_length(api: Api, length: str) -> None:
    before = api.state()
    response = api._client.generic("PUT", "/kvs/k", b'{"value": 1}', "application/json", CONTENT_LENGTH=length)
    assert response.status_code == 400
    assert "Content-Length" in json.loads(response.content)["error"]
    assert api.state() == before


@pytest.mark.parametrize("body", [b'{"value": 1}', b'{"value": ', b""])
def test_a_body_that_ends_early(api: Api, body: bytes) -> None:
    before = api.state()
    cut: dict[str, Any] = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": "100"}
    response = api._client.generic("PUT", "/kvs/k", b"-", "application/json", **cut)
    assert response.status_code == 400
    assert json.loads(response.content)["error"] == "Body ended before its Content-Length"
    assert api.state() == before


def test_a_client_that_disconnects(api: Api) -> None:
    class Gone(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("peer went away")

    before = api.state()
    gone: dict[str, Any] = {"wsgi.input": Gone(), "CONTENT_LENGTH": "100"}
    response = api._client.generic("PUT", "/kvs/k", b"-", "application/json", **gone)
    assert response.status_code == 400
    assert api.state() == before


# --- all other routes, with a whole replica --------------------------------------------------------------------------

MSGPACK = "application/msgpack"
SENDER_ADDRESS = "127.0.0.1:21502"
SENDER = f"{SENDER_ADDRESS}@0000000000abcdef"

GOOD_EXCHANGE: dict[str, Any] = {
    "sender": SENDER,
    "heartbeat": 1,
    "time": 1,
    "membership_digest": 1,
    "clock": {},
    "retired_digest": 0,
    "state": "serving",
}
GOOD_UPDATE: list[Any] = [SENDER, 1, 5, {}, [["k", b"1"]]]


class Served(NamedTuple):
    """A complete node that is not started: only requests change it."""

    api: Api
    node: Node
    fatal: list[str]

    def state(self) -> tuple[Any, ...]:
        replica = self.node.replica
        return (
            *self.api.state(),
            dict(replica.membership.table.entries),
            replica.membership.table.members,
            len(replica.store.pending),
        )


@pytest.fixture
def served() -> Served:
    fatal: list[str] = []
    replica = Replica("127.0.0.1:21503", [], now=read_clocks(), rng=random.Random(1))
    replica.store.not_serving_reason = None
    node = Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=fatal.append)
    # A replica accepts messages only from members.
    node.exchange(msgspec.msgpack.encode({**GOOD_EXCHANGE, "membership": {SENDER_ADDRESS: [0xABCDEF, 1, True]}}))
    return Served(Api(replica.store, engine=node.engine, node=node), node, fatal)


def exchange(name: str, error: Any = "not a message", **fields: Any) -> Case:
    """A valid exchange, changed by ``fields``. None removes a field."""
    message = {field: value for field, value in {**GOOD_EXCHANGE, **fields}.items() if value is not None}
    raw = msgspec.msgpack.encode(message)
    return Case(f"exchange: {name}", "POST", "/replication/exchange", 400, error, raw=raw, content_type=MSGPACK)


def update(name: str, *fields: Any, error: str = "not a message") -> Case:
    """An exchange with one bad update: ``fields`` replace the first fields of a valid one."""
    return exchange(f"update: {name}", error, updates=[[*fields, *GOOD_UPDATE[len(fields) :]]])


def peers(name: str, raw: bytes, status: int = 400, error: str = "", content_type: str | None = MSGPACK) -> list[Case]:
    return [
        Case(f"{path}: {name}", "POST", f"/replication/{path}", status, error, raw=raw, content_type=content_type)
        for path in ("exchange", "snapshot")
    ]


DEEP_MSGPACK = b"\x81\xa6sender" + b"\x91" * DEEP

EXCHANGES = [
    *peers("no body", b""),
    *peers("JSON", json.dumps(GOOD_EXCHANGE).encode()),
    *peers("JSON that says so", json.dumps(GOOD_EXCHANGE).encode(), 415, content_type="application/json"),
    *peers("a form", b"a=b", 415, content_type="application/x-www-form-urlencoded"),
    *peers("null", b"\xc0"),
    *peers("array", b"\x93\x01\x02\x03"),
    *peers("empty object", b"\x80"),
    *peers("deep", DEEP_MSGPACK),
    *peers("cut off", msgspec.msgpack.encode(GOOD_EXCHANGE)[:-3]),
    *peers("two messages", msgspec.msgpack.encode(GOOD_EXCHANGE) * 2),
    *peers("a length of 4 GiB", b"\xdf\xff\xff\xff\xff"),
    *peers("invalid UTF-8", b"\x81\xa6sender\xa2\xff\xff"),
    *peers("random bytes", bytes(range(256))),
    *(exchange(f"no {field}", **{field: None}) for field in GOOD_EXCHANGE),
    exchange("sender is a number", sender=7),
    exchange("sender is empty", sender=""),
    exchange("sender is long", sender="x" * 400),
    exchange("beat is negative", heartbeat=-1),
    exchange("beat is a float", heartbeat=1.5),
    exchange("beat is giant", heartbeat=2**64 - 1),
    exchange("time is giant", time=2**62),
    exchange("state is none", state="asleep"),
    exchange("protocol of the future", "protocol 9", protocol=9),
    exchange("protocol of the past", "protocol -9", protocol=-9),
    exchange("clock is a list", clock=[1]),
    exchange("clock with 0", clock={"a": 0}),
    exchange("clock with a float", clock={"a": 1.0}),
    exchange("clock with a giant", clock={"a": 2**63}),
    exchange("clock with an empty id", clock={"": 1}),
    exchange("register of a number", membership={"a:1": 5}),
    exchange("register with a negative stamp", membership={"a:1": [1, -1, True]}),
    exchange("register with text for a flag", membership={"a:1": [1, 1, "yes"]}),
    exchange("too large a register", "addresses", membership={f"a:{n}": [1, 1, True] for n in range(1100)}),
    exchange("updates is an object", updates={}),
    exchange("want is text", want_all="yes"),
    update("number", 1),
    update("counter 0", SENDER, 0),
    update("negative counter", SENDER, -1),
    update("giant counter", SENDER, 2**63),
    update("negative timestamp", SENDER, 1, -5),
    update("deps is a list", SENDER, 1, 5, []),
    update("deps with 0", SENDER, 1, 5, {"a": 0}),
    update("own origin among deps", SENDER, 1, 5, {SENDER: 1}, error="own origin"),
    update("writes is text", SENDER, 1, 5, {}, "k"),
    update("write without a value", SENDER, 1, 5, {}, [["k"]]),
    update("value is a number", SENDER, 1, 5, {}, [["k", 1]]),
    update("key is a number", SENDER, 1, 5, {}, [[1, b"1"]]),
    update("a key twice", SENDER, 1, 5, {}, [["k", b"1"], ["k", b"2"]], error="twice"),
    update("replaces a number", SENDER, 1, 5, {}, [["k", b"1", 5]]),
    update("expires before 1970", SENDER, 1, 5, {}, [["k", b"1", [], -1]]),
    Case("snapshot: piece is negative", "POST", "/replication/snapshot", 400, "not a message",
         raw=msgspec.msgpack.encode({"sender": SENDER, "piece": -1}), content_type=MSGPACK),
    Case("snapshot: name is long", "POST", "/replication/snapshot", 400, "not a message",
         raw=msgspec.msgpack.encode({"sender": SENDER, "snapshot": "x" * 65}), content_type=MSGPACK),
]  # fmt: skip


def view(name: str, raw: bytes, status: int = 400, error: str = "") -> list[Case]:
    return [Case(f"view: {method} {name}", method, "/view", status, error, raw=raw) for method in ("PUT", "DELETE")]


VIEWS = [
    *view("no body", b"", error="socket-address"),
    *view("empty object", b"{}", error="socket-address"),
    *view("array", b"[]"),
    *view("cut off", b'{"socket-address": "a:1"', error="not valid JSON"),
    *view("deep", b"[" * DEEP),
    *view("null", b'{"socket-address": null}'),
    *view("number", b'{"socket-address": 8090}'),
    *view("UTF-8", b'{"socket-address": "\xff:1"}', error="UTF-8"),
    *view("surrogate", b'{"socket-address": "\\ud800:1"}'),
    *view("too large", b'{"socket-address": "a:1"}' + b" " * LIMITS.max_body_bytes, 413),
    *(case for text in ("", "a", "a:0", "a:65536", "::1:1", "a b:1", "a\\n:1", "http://a:1", "x" * 300 + ":1")
      for case in view(f"address {text[:9]!r}", f'{{"socket-address": "{text}"}}'.encode(), error="socket-address")),
]  # fmt: skip

REST = [
    Case("explain: empty key", "GET", "/replication/explain/", error="Key is empty"),
    Case("explain: long key", "GET", "/replication/explain/" + "x" * 513, error="Key is too long"),
    *(Case(f"explain: no UTF-8 {path}", "GET", f"/replication/explain/{path}", error="UTF-8") for path in
      ("%FF", "a%80b", "%ED%A0%80", "%25FF%FF")),
    *(Case(f"method: {method} {path}", method, path, 405, "not allowed") for method, path in
      [("POST", "/view"), ("PATCH", "/view"), ("GET", "/replication/exchange"), ("PUT", "/replication/snapshot"),
       ("POST", "/replication/status"), ("DELETE", "/replication/explain/a"), ("PUT", "/metrics"), ("POST", "/healthz"),
       ("DELETE", "/readyz"), ("POST", "/schema/"), ("BREW", "/metrics")]),
    Case("path: /replication", "GET", "/replication", 404, "Not found"),
    Case("path: /replication/none", "POST", "/replication/none", 404, "Not found"),
    Case("path: /views", "GET", "/views", 404, "Not found"),
    Case("path: /metrics/", "GET", "/metrics/", 404, "Not found"),
    Case("schema: format", "GET", "/schema/?format=xml", error="format"),
    Case("host: another's", "GET", "/view", 400, "Host", headers={"Host": "evil.example"}),
    Case("host: another's, and a port", "PUT", "/kvs/k", 400, "Host", {"value": 1}, headers={"Host": "evil.example:1"}),
    Case("host: broken", "GET", "/kvs", 400, "Host", headers={"Host": "a b/c"}),
]  # fmt: skip

WS: list[Any] = [0, -1, 1.5, True, "2", "ALL", [], {}, 2**53, 2**64]
W_TIMEOUTS: list[Any] = [-1, 60.5, True, "1", []]
CONCERNED: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/kvs/k", {"value": 1}),
    ("POST", "/kvs/k", {"value": 1}),
    ("DELETE", "/kvs/here", {}),
    ("POST", "/kvs", {"writes": []}),
]

CONCERNS = [
    *(Case(f"w of {method} {path}: {w!r}", method, path, 400, "`w` has to be", {**fields, "w": w})
      for method, path, fields in CONCERNED
      for w in WS),
    *(Case(f"w-timeout of {method} {path}: {s!r}", method, path, 400, "`w-timeout` has to be",
           {**fields, "w": 1, "w-timeout": s})
      for method, path, fields in CONCERNED
      for s in W_TIMEOUTS),
    Case("w-timeout: 1e400", "PUT", "/kvs/k", 400, raw=b'{"value": 1, "w": 1, "w-timeout": 1e400}'),
]  # fmt: skip

OTHERS = [*EXCHANGES, *VIEWS, *REST, *CONCERNS]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name[:60])
def test_bad_input_to_other_routes_is_a_clear_4xx_that_changes_nothing(served: Served, case: Case) -> None:
    api = served.api
    api.put("/kvs/here", "before")
    before = served.state()
    response = api.ask(
        case.method, case.path, case.body, raw=case.raw, content_type=case.content_type, headers=case.headers
    )
    assert response.status == case.status
    assert response.headers["Content-Type"] == "application/json"
    assert case.error in response.body["error"]
    assert 0 < len(response.body["error"]) < 300
    assert_teaches(response)
    assert served.state() == before
    assert not served.fatal
    assert api.get("/kvs/here").body["value"] == "before"
    assert api.ask("GET", "/view").body == {"view": [SENDER_ADDRESS, "127.0.0.1:21503"]}


def test_there_are_enough_cases_of_other_routes() -> None:
    assert len({case.name for case in OTHERS}) == len(OTHERS) >= 100


def test_the_exchange_that_the_cases_modify_is_valid(served: Served) -> None:
    message = {**GOOD_EXCHANGE, "updates": [GOOD_UPDATE]}
    reply = served.api._client.generic("POST", "/replication/exchange", msgspec.msgpack.encode(message), MSGPACK)
    assert reply.status_code == 200
    assert served.api.get("/kvs/k").body["value"] == 1
