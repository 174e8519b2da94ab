"""The hostile inputs: bytes to send on one connection, and what to do with the connection then."""

from __future__ import annotations

import base64
import json
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from replication.proof import ANY_RECEIVER, HEADER, derive_key, sign_request
from store.clock import INCARNATION_RANDOM_BITS, replica_id

ROUTES: Final = (
    "/",
    "/kvs",
    "/kvs/",
    "/kvs/h/a",
    "/changes",
    "/view",
    "/replication/exchange",
    "/replication/snapshot",
    "/replication/status",
    "/replication/explain/h/a",
    "/metrics",
    "/healthz",
    "/readyz",
    "/schema/",
    "/docs/",
    "/admin/",
    "/admin/login/",
    "/admin/logout/",
    "/admin/replica/a:1/",
    "/admin/static/../settings.py",
    "/nothing",
)
METHODS: Final = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 300)
STATES: Final = (
    b"\x02",
    b"\x02" + msgspec.msgpack.encode([["a"], [[0, 1, 1, 2**63, False, None]]]),
    b"\x02" + msgspec.msgpack.encode([["a"], [[7, 1, 1, 1, False, None]]]),
    b"\x03" + msgspec.msgpack.encode([["a"], [[0, 1, 1, 0, False, None]], [[0, 1, ["x", 1.5, {}]]]]),
    b"\x04" + msgspec.msgpack.encode([["a"], [[0, 1, 1, 0, False, None]], [[0, 1, ["f"], 5, [b"not JSON"]]]]),
    b"\x04" + msgspec.msgpack.encode([["a"], [[0, 1, 1, 0, False, None]], [[0, 1, ["f", "g"], 5, [b"1"]]]]),
    b"\x02" + msgspec.msgpack.encode([["a"], [[0, 9, 3, 5, True, [0, 2]]], [], [[0, 2**40]], [2**61, 0]]),
)
"""Values of kinds that merge, most of them malformed (store/merging.py)."""

TEXTS: Final = (
    "",
    "0bad",
    "a:1/../../admin/logout?x=",
    "user:pass@a:1",
    "\x1b[31mred",
    "\0\0\0",
    "<script>",
    "é\u202e\U0001f600",
    "a" * 5000,
    "%00%ff%2f..",
    "-1",
    "1e999",
    "NaN",
)
OCTETS: Final = "application/octet-stream"
NUMBERS: Final = (0, -1, 1, 2**31, 2**53 - 1, 2**53, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 0.5, -0.0, 1e308)


_key: Final = cache(derive_key)
"""To derive a key is slow on purpose."""


class Target(NamedTuple):
    """A replica: its address and id, and the ids of all replicas.

    ``secret``, ``token``: credentials that an input may carry; empty if there are none.
    """

    address: str
    replica_id: str
    replica_ids: Sequence[str]
    secret: str
    token: str


class Input(NamedTuple):
    """Bytes for one connection. ``stalls``: keep the connection open and send nothing more, read nothing.

    ``is_incomplete``: say by closing one direction that nothing more follows, so that the replica need not wait.
    ``kind``: what it is, for reports.
    """

    kind: str
    content: bytes
    stalls: bool = False
    is_incomplete: bool = False


def random_input(rng: random.Random, target: Target) -> Input:
    """Return one input for ``target``."""
    kinds: Sequence[Callable[[random.Random, Target], Input]] = (
        malformed_http,
        wrong_request,
        wrong_request,
        changed_message,
        invented_message,
        feed_request,
        unread_stream,
        stall,
        hang_up,
    )
    return rng.choice(kinds)(rng, target)


def malformed_http(rng: random.Random, target: Target) -> Input:
    """Return a request that breaks the syntax of HTTP, or a body that breaks its own framing."""
    host = f"Host: {target.address}\r\n"
    chunked = (
        f"PUT /kvs/h/broken HTTP/1.1\r\n{host}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    sized = f"PUT /kvs/h/broken HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: "
    if rng.random() < 0.3:
        chunked, sized = (each.replace("application/json", OCTETS) for each in (chunked, sized))
    content = rng.choice(
        (
            rng.randbytes(rng.randrange(1, 2000)),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET  HTTP/1.1\r\n\r\n",
            b"GET /kvs HTTP/1.1\r\n\r\n",
            f"GET /kvs HTTP/1.1\r\n{host}{host}\r\n".encode(),
            f"GET /{'a' * rng.choice((3000, 70_000))} HTTP/1.1\r\n{host}\r\n".encode(),
            f"GET /kvs HTTP/1.1\r\n{host}".encode() + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
            f"GET /kvs HTTP/1.1\r\n{host}".encode() + b"".join(b"X%d: y\r\n" % n for n in range(300)) + b"\r\n",
            f"GET /kvs HTTP/1.1\r\n{host}".encode() + b"X\x00\x01: \xff\xfe\r\n\r\n",
            chunked.encode() + b'zz\r\n{"value":1}\r\n0\r\n\r\n',
            chunked.encode() + b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
            chunked.encode() + b"b\r\n{",
            chunked.encode() + b'b\r\n{"value":1}\r\n',
            chunked.replace("PUT", "DELETE").encode() + b"zz\r\n",
            f"{sized}-1\r\n\r\n{{}}".encode(),
            f"{sized}99999999999999999999\r\n\r\n{{}}".encode(),
            f'{sized}500\r\n\r\n{{"value":1}}'.encode(),
            f'{sized}11\r\nTransfer-Encoding: chunked\r\n\r\n{{"value":1}}'.encode(),
            f'{sized}11\r\nContent-Length: 3\r\n\r\n{{"value":1}}'.encode(),
        )
    )
    return Input("malformed HTTP", content, is_incomplete=True)


def wrong_request(rng: random.Random, target: Target) -> Input:
    """Return a request that HTTP allows, to any route, with content that is wrong, extreme or valid."""
    path = rng.choice(ROUTES)
    if rng.random() < 0.3:
        path += quote(rng.choice(TEXTS))
    if rng.random() < 0.4:
        names = ("limit", "wait", "prefix", "after", "since", "values", "causal-metadata", "w", "ttl", "conflicts")
        path += "?" + "&".join(f"{rng.choice(names)}={quote(_text(rng, target))}" for _ in range(rng.randrange(1, 4)))
    body = _body(rng, target) if rng.random() < 0.7 else b""
    headers = {"Host": rng.choice((target.address, target.address, target.address, "evil.example", "[::1", ""))}
    if body:
        headers["Content-Type"] = rng.choice(
            ("application/json", OCTETS, "text/plain", "application/msgpack", "a/b; charset=x")
        )
    if rng.random() < 0.2:
        headers["Accept"] = OCTETS + rng.choice(("", ";q=0.1, */*", f";q={rng.choice(TEXTS[9:])}", f", {'a/b,' * 500}"))
    for name in (
        "If-Match",
        "If-None-Match",
        "X-Causal-Metadata",
        "Accept",
        "Authorization",
        "Cookie",
        "Origin",
        "Last-Event-ID",
    ):
        if rng.random() < 0.15:
            headers[name] = _text(rng, target).replace("\r", "").replace("\n", "").replace("\0", "")
    return Input("request", _request(rng, target, rng.choice(METHODS), path, body, headers))


def changed_message(rng: random.Random, target: Target) -> Input:
    """Return a message of a replica, some bytes of which were changed, removed or repeated."""
    body = bytearray(msgspec.msgpack.encode(_exchange(rng, target)))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(body))
        match rng.randrange(3):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                del body[at : at + rng.randrange(1, 9)]
            case _:
                body[at:at] = body[at : at + rng.randrange(1, 9)]
        if not body:
            body = bytearray(b"\xc0")
    return _message(rng, target, "changed message", bytes(body))


def invented_message(rng: random.Random, target: Target) -> Input:
    """Return a well-formed message with content that no replica sends."""
    if rng.random() < 0.2:
        fields = {
            "sender": _replica_id(rng, target),
            "snapshot": rng.choice(TEXTS),
            "piece": rng.choice(NUMBERS),
        }
        return _message(rng, target, "snapshot request", _packed(fields), "/replication/snapshot")
    return _message(rng, target, "invented message", _packed(_exchange(rng, target)))


def feed_request(rng: random.Random, target: Target) -> Input:
    """Return a poll of the change feed with a token that no replica has made."""
    prefix, since = _feed(rng, target)
    path = f"/changes?prefix={quote(prefix)}&since={quote(since)}&wait={rng.choice(('0', '0.2', '-1', '1e9', 'x'))}"
    return Input("feed", _request(rng, target, rng.choice(("GET", "GET", "HEAD")), path, b"", {"Host": target.address}))


def unread_stream(rng: random.Random, target: Target) -> Input:
    """Return a request for an event stream that nobody reads, with a token or without."""
    prefix, since = _feed(rng, target)
    headers = {"Host": target.address, "Accept": "text/event-stream"}
    if rng.random() < 0.6:
        headers["Last-Event-ID"] = since.replace("\r", "").replace("\n", "").replace("\0", "")
    path = f"/changes?prefix={quote(prefix)}"
    return Input("unread stream", _request(rng, target, "GET", path, b"", headers), stalls=True)


def stall(rng: random.Random, target: Target) -> Input:
    """Return the beginning of a request that never ends, or a request whose response nobody reads."""
    start = f"{rng.choice(('GET', 'PUT', 'POST'))} {rng.choice(ROUTES)} HTTP/1.1\r\nHost: {target.address}\r\n"
    content = rng.choice(
        (
            "",
            start[: rng.randrange(1, len(start))],
            start + "Content-Length: 500000\r\n\r\n" + '{"value":"abc',
            start + "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
            start + "Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
            f"GET /kvs?values=true&limit=1000 HTTP/1.1\r\nHost: {target.address}\r\n\r\n" * 20,
            f'GET /kvs/h/a?wait=20 HTTP/1.1\r\nHost: {target.address}\r\nX-Causal-Metadata: {{"n@1":9}}\r\n\r\n',
        )
    )
    return Input("stall", content.encode(), stalls=True)


def hang_up(rng: random.Random, target: Target) -> Input:
    """Return a part of a valid request; the connection closes after it."""
    whole = _request(rng, target, "PUT", "/kvs/h/a", b'{"value": 1, "w": "all"}', {"Host": target.address})
    return Input("hang-up", whole[: rng.randrange(len(whole))], is_incomplete=True)


# -- parts -------------------------------------------------------------------------------------------------------------


def _request(
    rng: random.Random, target: Target, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> bytes:
    """Return the bytes of a request. Half of them carry the credentials that there are."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if target.token and rng.random() < 0.5 and "Authorization" not in headers:
        lines.append(f"Authorization: Bearer {target.token}")
    if target.secret and rng.random() < 0.5:
        lines.append(f"{HEADER}: {_proof(rng, target, method, path, body)}")
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + body


def _proof(rng: random.Random, target: Target, method: str, path: str, body: bytes) -> str:
    """Return a proof of the secret, mostly for the replica that it is sent to."""
    plain_path, _, query = path.partition("?")
    return sign_request(
        _key(target.secret),
        method,
        plain_path,
        query,
        body,
        receiver=rng.choice((*target.replica_ids, target.replica_id, target.replica_id, ANY_RECEIVER)),
        session=f"{rng.getrandbits(128):032x}",
        time_us=time.time_ns() // 1000,
    )


def _message(rng: random.Random, target: Target, kind: str, body: bytes, path: str = "/replication/exchange") -> Input:
    headers = {"Host": target.address, "Content-Type": "application/msgpack"}
    return Input(kind, _request(rng, target, "POST", path, body, headers))


def _packed(fields: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return ``fields`` as MessagePack; numbers that it cannot hold become its largest."""
    try:
        return msgspec.msgpack.encode(fields)
    except OverflowError:
        return msgspec.msgpack.encode(json.loads(json.dumps(fields).replace(str(2**64), str(2**64 - 1))))


def _feed(rng: random.Random, target: Target) -> tuple[str, str]:
    """Return a prefix, and a token of its feed: forged, damaged, or no token at all."""
    prefix = rng.choice(("", "h/", "kept/", *TEXTS))[:500]
    if rng.random() < 0.3:
        return prefix, rng.choice((*TEXTS, "A" * 60_000, base64.urlsafe_b64encode(rng.randbytes(300)).decode()))
    counts = (0, 1, 9, 2**53 - 1)
    ids = [*target.replica_ids, *(_replica_id(rng, target) for _ in range(rng.choice((0, 1, 3))))]
    if rng.random() < 0.1:
        ids += [f"127.0.0.1:{n}@{n:016x}" for n in range(rng.choice((1000, 1100)))]
    clock = {each: rng.choice(counts if rng.random() < 0.05 else counts[1:]) for each in ids}
    since = {each: rng.choice(counts) for each in clock if rng.random() < 0.5}
    fields: list[Any] = [
        rng.choice((prefix, prefix, prefix, prefix, "other")),
        clock,
        rng.choice((since, since, None)),
        rng.choice((0, time.time_ns() // 1000, 2**62 - 1)),
        rng.choice((*target.replica_ids, *target.replica_ids, "", "x" * 400)),
        rng.choice((0, 1, 2**62 - 1)),
        rng.random() < 0.5,
        rng.choice((None, "", "h/a", "\U0010ffff", "k", "k" * rng.choice((60_000, 70_000)))),
        rng.choice((since, {}, None)),
        rng.choice((0, 2**62 - 1)),
    ]
    if rng.random() < 0.3:
        fields[rng.randrange(len(fields))] = rng.choice((*TEXTS, *NUMBERS, [], {"a": -1}))
    packed = _packed(fields)
    raw = zlib.compress(packed if rng.random() < 0.95 else packed + bytes(2_000_000), 1)
    if rng.random() < 0.1:
        raw = raw[: rng.randrange(len(raw))]
    return prefix, base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _exchange(rng: random.Random, target: Target) -> dict[str, Any]:
    """Return the fields of an exchange: most of them valid, up to three of them extreme.

    Its updates have an invented origin: whoever may send messages can also issue updates as a replica does.
    """
    now_us = time.time_ns() // 1000
    times_us = (0, now_us, now_us + 2 * 86_400 * 10**6, 2**62 - 1)
    fields: dict[str, Any] = {
        "sender": rng.choice((*target.replica_ids, _replica_id(rng, target))),
        "heartbeat": rng.choice((1, 2**63 - 1)),
        "time": now_us,
        "membership_digest": rng.choice((0, rng.getrandbits(63))),
        "clock": {},
        "retired_digest": 0,
        "state": rng.choice(("serving", "serving", "serving", "joining", "removed", "leaving")),
    }
    members = (target.address, *(replica_id.partition("@")[0] for replica_id in target.replica_ids))

    def entry() -> list[Any]:
        return [_incarnation(rng), rng.choice(times_us), rng.random() < 0.8]

    extreme: Mapping[str, Callable[[], Any]] = {
        "heard": lambda: {_replica_id(rng, target): [rng.choice((0, 7, 2**63 - 1)), rng.choice(NUMBERS)]},
        "changes": lambda: [rng.choice(NUMBERS), rng.choice((0, 1, *NUMBERS)), {rng.choice((0, 1, 9)): 2**53 - 1}],
        "seen": lambda: rng.choice(NUMBERS),
        "unheard": lambda: list(range(rng.choice((1, 2000)))),
        "contacts": lambda: {rng.choice((0, 1, 9)): [rng.choice((0, 7, 2**63 - 1)), rng.choice(NUMBERS)]},
        "time": lambda: rng.choice(times_us),
        "membership": lambda: {rng.choice((*members, *TEXTS)): rng.choice((entry(), rng.choice(NUMBERS)))},
        "clock": lambda: {_replica_id(rng, target): rng.choice((1, 2**53 - 1)) for _ in range(rng.choice((1, 2000)))},
        "retired": lambda: {_replica_id(rng, target): rng.choice((1, 2**53 - 1, 2**63))},
        "orphaned_pending": lambda: {_replica_id(rng, target): rng.choice((1, 2**53 - 1))},
        "updates": lambda: [_update(rng)],
        "want_all": lambda: True,
        "truncated": lambda: True,
        "more": lambda: True,
        "protocol": lambda: rng.choice(NUMBERS),
        "accepted": lambda: False,
        "state": lambda: rng.choice(TEXTS),
    }
    for name in rng.sample(sorted(extreme), rng.randrange(4)):
        fields[name] = extreme[name]()
    return fields


def _update(rng: random.Random) -> list[Any]:
    origin = f"127.0.0.1:9@{_incarnation(rng):016x}"
    value = rng.choice((b"1", b"not JSON", b"", b"1" * 100_000, *STATES))
    counter, stamp_us = rng.choice((1, 1, 9, *NUMBERS)), rng.choice((1, time.time_ns() // 1000, *NUMBERS))
    return [origin, counter, stamp_us, {}, [["h/" + rng.choice(TEXTS), value]]]


def _incarnation(rng: random.Random) -> int:
    """Return the incarnation of a process that started now or a minute ago, or an extreme one."""
    started_ms = time.time_ns() // 10**6 - rng.choice((0, 60_000))
    return rng.choice((started_ms << INCARNATION_RANDOM_BITS, 0, 1, 2**63 - 1))


def _replica_id(rng: random.Random, target: Target) -> str:
    """Return the id of a replica, an id with an invented incarnation, or a text that is no id."""
    address = rng.choice((target.address, target.address, rng.choice(TEXTS)[:300]))
    invented = replica_id(address, _incarnation(rng))
    return rng.choice((invented, invented, rng.choice(target.replica_ids), rng.choice(TEXTS)))


def _text(rng: random.Random, target: Target) -> str:
    return rng.choice(
        (
            *TEXTS,
            json.dumps({_replica_id(rng, target): rng.choice(NUMBERS)}),
            "{" * 2000,
            ",".join(f'"{n}"' for n in range(70)),
            "application/openmetrics-text; version=abc",
            str(rng.choice(NUMBERS)),
        )
    )


def _body(rng: random.Random, target: Target) -> bytes:
    """Return a body: for a write or a transaction with one wrong field, or no JSON at all."""
    value: Any = rng.choice((1, None, "x", [], {"a": 1}, *NUMBERS, *TEXTS))
    fields: dict[str, Any] = {"value": value, "causal-metadata": {}}
    if rng.random() < 0.2:
        del fields["value"]
        fields["increment"] = rng.choice((1, *NUMBERS))
    name = rng.choice(("value", "ttl", "w", "w-timeout", "causal-metadata", "reads", "writes", "socket-address", "x"))
    name = rng.choice((name, name, "increment", "add", "remove", "set", "unset"))
    fields[name] = rng.choice(
        (
            value,
            ["a", 1, value],
            {"f": value},
            {_replica_id(rng, target): rng.choice(NUMBERS)},
            [{"key": "h/b", "value": 1}, {"key": rng.choice(TEXTS)}],
            ["h/a", rng.choice(TEXTS)],
            "majority",
        )
    )
    text = json.dumps(fields)
    return rng.choice(
        (
            text.encode(),
            text.encode(),
            text[: rng.randrange(1, len(text))].encode(),
            b'{"value":' + b"[" * 5000 + b"]" * 5000 + b"}",
            b'{"value":1,"value":2}',
            b'{"value":"\\ud800"}',
            b"\xff\xfe",
            rng.randbytes(100),
            b'{"value":"' + b"v" * 1_100_000 + b'"}',
        )
    )
