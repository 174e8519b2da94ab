"""``export``: both sessions against fake replicas, and the check of an export without I/O.

Every test with ``session`` runs with ``Session`` and with ``AsyncSession``.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from typing import Any

import pytest

from causeway_client import (
    BadExport,
    DependenciesMissing,
    ExportedKey,
    ExportedVersion,
    NotAllowed,
    Session,
    Unavailable,
    export,
)
from causeway_client.export import ExportCheck
from tests.support.fake_replicas import (
    FakeReplica,
    Handler,
    Responder,
    close_connection,
    found,
    json_response,
    no_response,
    truncated_response,
    unavailable,
)
from tests.support.fake_sessions import OpenSession, replicas, session
from tests.support.waiting import wait_until

__all__ = ["replicas", "session"]


def line(body: Any) -> bytes:
    return json.dumps(body).encode() + b"\n"


def key_line(key: str, value: Any = 1, **facts: Any) -> bytes:
    return line({"key": key, "versions": [{"value": value, "timestamp": 5, **facts}]})


def lines_of(*keys: bytes, **facts: Any) -> list[bytes]:
    """Return the lines of a complete export."""
    lines = [line({"causeway-export": 1, "keys": len(keys), "causal-metadata": {}} | facts), *keys]
    checksum = hashlib.sha256(b"".join(lines)).hexdigest()
    return [*lines, line({"count": len(keys), "sha256": checksum})]


ABC = lines_of(key_line("a"), key_line("b"), key_line("c"))


def chunks(*parts: bytes, pause_s: float = 0.0) -> Responder:
    """Send parts of a body; an empty one ends it. ``pause_s``: before each."""

    def send(handler: Handler) -> None:
        for part in parts:
            time.sleep(pause_s)
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    return send


def stream(*parts: bytes, end: Responder | None = None) -> Responder:
    """Send a 200 with these parts. ``end``: what to do then, instead of ending the body."""

    def send(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        chunks(*parts)(handler)
        (end or chunks(b""))(handler)

    return send


def keys_of(exported: Any) -> list[str]:
    return [each.key for each in exported]


# ---- what an export yields


def test_an_export_yields_every_key_with_its_versions(replicas: list[FakeReplica], session: OpenSession) -> None:
    sibling = {"value": 8, "timestamp": 8}
    a = replicas[0]
    a.respond_with(
        stream(
            *lines_of(
                key_line("p/ü", {"n": None}),
                key_line("p/b", "/w==", encoding="base64"),
                key_line("p/c", 7, type="counter", expires=1795394960.5),
                line({"key": "p/s", "versions": [{"value": 9, "timestamp": 9}, sibling]}),
            )
        )
    )
    with session(a, token="secret") as s:
        exported = list(s.export("p/", wait_s=3))
    assert exported == [
        ExportedKey("p/ü", (ExportedVersion({"n": None}, 5, None, "json"),)),
        ExportedKey("p/b", (ExportedVersion(b"\xff", 5, None, "bytes"),)),
        ExportedKey("p/c", (ExportedVersion(7, 5, 1795394960.5, "counter"),)),
        ExportedKey("p/s", (ExportedVersion(9, 9, None, "json"), ExportedVersion(8, 8, None, "json"))),
    ]
    assert [each.value for each in exported] == [{"n": None}, b"\xff", 7, 9]
    request = a.requests[0]
    assert (request.method, request.path) == ("GET", "/export?prefix=p%2F&wait=3")
    assert request.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_lines_may_be_cut_anywhere(replicas: list[FakeReplica], session: OpenSession, size: int) -> None:
    data = b"".join(ABC)
    replicas[0].respond_with(stream(*(data[at : at + size] for at in range(0, len(data), size))))
    with session(replicas[0]) as s:
        assert keys_of(s.export()) == ["a", "b", "c"]
    assert replicas[0].requests[0].path == "/export"


def test_an_export_without_keys(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(stream(*lines_of()))
    with session(replicas[0]) as s:
        assert list(s.export()) == []
    assert len(replicas[0].requests) == 1


def test_keys_arrive_while_the_replica_is_sending(replicas: list[FakeReplica], session: OpenSession) -> None:
    """Nothing waits for the end, so memory does not grow with the export."""
    reached = threading.Event()

    def rest(handler: Handler) -> None:
        assert reached.wait(10)
        chunks(ABC[-1], b"")(handler)

    replicas[0].respond_with(stream(*ABC[:-1], end=rest))
    with session(replicas[0], timeout_s=10) as s:
        exported = s.export()
        assert [next(exported).key, next(exported).key] == ["a", "b"]
        reached.set()
        assert keys_of(exported) == ["c"]


def test_an_export_follows_the_session_and_the_session_follows_it(
    replicas: list[FakeReplica], session: OpenSession
) -> None:
    a = replicas[0]
    facts = {"causal-metadata": {"a@1": 4, "b@1": 2}, "lost": {"c@1": [1, 3]}}
    a.respond_with(stream(*lines_of(key_line("k"), **facts)), found(1))
    with session(a, metadata={"a@1": 3, "c@1": 3}) as s:
        assert keys_of(s.export()) == ["k"]
        assert s.metadata == {"a@1": 4, "b@1": 2}
        assert s.lost == {"c@1": (1, 3)}
        s.get("k")
    assert [seen.body["causal-metadata"] for seen in a.requests] == [{"a@1": 3, "c@1": 3}, {"a@1": 4, "b@1": 2}]


# ---- which replica


BEFORE_THE_FIRST_KEY: list[Responder] = [
    close_connection,
    truncated_response,
    no_response(0.7),
    json_response(500, {"error": "fault"}),
    json_response(503, {"error": "2 exports are in progress, and more may not be; try again later"}, Retry_After="1"),
    json_response(200, {"value": 1}),
    stream(),
    stream(b"<html>\n", b"</html>\n"),
    stream(*ABC[:1], end=close_connection),
    stream(*ABC[:2], end=close_connection),
    stream(*ABC[:2]),
    stream(*ABC[:1], line({"error": "clients changed more"})),
    stream(*ABC[:1], end=no_response(0.7)),
    stream(*lines_of(line({"key": "a"}), key_line("b"))),
    stream(*lines_of(line({"key": "a", "versions": []}), key_line("b"))),
    stream(*lines_of(line({"key": "a", "versions": "x"}), key_line("b"))),
    stream(*lines_of(b"[]\n", key_line("b"))),
    stream(*lines_of(key_line("a", "abc", encoding="base64"), key_line("b"))),
]


@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_KEY)
def test_another_replica_takes_over_before_the_first_key(
    replicas: list[FakeReplica], session: OpenSession, fault: Responder
) -> None:
    a, b, _ = replicas
    a.respond_with(fault)
    b.respond_with(stream(*ABC))
    with session(a, b, timeout_s=20, attempt_timeout_s=2) as s:
        assert keys_of(s.export()) == ["a", "b", "c"]
        assert s.replica == b.url
    assert (len(a.requests), len(b.requests)) == (1, 1)


def test_a_replica_that_sends_the_first_key_byte_by_byte_does_not_hold_an_export(
    replicas: list[FakeReplica], session: OpenSession
) -> None:
    a, b, _ = replicas
    a.respond_with(stream(*ABC[:1], end=chunks(*[b" "] * 300, pause_s=0.05)))
    b.respond_with(stream(*ABC))
    began_s = time.monotonic()
    with session(a, b, timeout_s=20, attempt_timeout_s=1) as s:
        assert keys_of(s.export()) == ["a", "b", "c"]
    assert time.monotonic() - began_s < 10


def test_without_a_replica_an_export_raises_as_a_read_does(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(unavailable("9", missing={"a@1": {"has": 0, "needs": 1}}))
    b.respond_with(stream(*ABC[:1], line({"error": "clients changed more"})))
    with session(a, b, timeout_s=0.7) as s:
        with pytest.raises(DependenciesMissing, match="could not be completed: clients changed more") as caught:
            next(s.export())
        assert caught.value.missing == {"a@1": {"has": 0, "needs": 1}}
        a.respond_with(json_response(403, {"error": "not that prefix"}))
        s.stick_to(a.url)
        with pytest.raises(NotAllowed):
            next(s.export())
        a.respond_with(unavailable("9"))
        with pytest.raises(Unavailable):
            next(s.export())


# ---- incomplete and damaged exports


def damaged() -> list[bytes]:
    return [*ABC[:3], key_line("c", 2), ABC[-1]]


AFTER_THE_FIRST_KEY: list[tuple[Responder, str]] = [
    (close_connection, "the connection broke"),
    (chunks(ABC[3], b""), "it ends after 3 of 3 keys"),
    (chunks(b'{"key"', b""), "it ends in the middle"),
    (chunks(line({"error": "clients changed more"}), b""), "could not be completed: clients changed"),
    (chunks(key_line("c", 2), ABC[-1], b""), "is damaged"),
    (chunks(ABC[-1], b""), "is damaged"),
    (chunks(*ABC[3:], b"\n", b""), "a line is not that of a key"),
    (chunks(b"]\n", ABC[-1], b""), "a line is not that of a key"),
]


@pytest.mark.parametrize(("fault", "says"), AFTER_THE_FIRST_KEY)
def test_an_export_that_is_not_complete_raises_at_its_end(
    replicas: list[FakeReplica], session: OpenSession, fault: Responder, says: str
) -> None:
    a, b, _ = replicas
    has_first = threading.Event()

    def go_on(handler: Handler) -> None:
        assert has_first.wait(10)
        fault(handler)

    a.respond_with(stream(*ABC[:3], end=go_on))
    b.respond_with(stream(*ABC))
    with session(a, b, timeout_s=20, attempt_timeout_s=10) as s:
        exported = s.export()
        assert next(exported).key == "a"
        has_first.set()
        with pytest.raises(BadExport, match=says) as caught:
            list(exported)
        assert list(exported) == []
    assert caught.value.replica == a.url
    assert str(caught.value) == f"{a.url}: {caught.value.reason}"
    assert b.requests == [], "another replica would send another snapshot"


def test_after_the_first_key_each_part_may_take_the_timeout_of_the_session(
    replicas: list[FakeReplica], session: OpenSession
) -> None:
    """Not that of an attempt: nothing else could take its place."""
    a = replicas[0]
    a.respond_with(stream(*ABC[:3], end=chunks(b"".join(ABC[3:]), b"", pause_s=1.2)))
    with session(a, timeout_s=20, attempt_timeout_s=1) as s:
        assert keys_of(s.export()) == ["a", "b", "c"]
    a.respond_with(stream(*ABC[:3], end=no_response(5)))
    with session(a, timeout_s=2, attempt_timeout_s=2) as s:
        exported = s.export()
        assert next(exported).key == "a"
        with pytest.raises(BadExport, match="no response in time after 1 of 3 keys"):
            next(exported)


def test_an_iterator_that_is_closed_frees_the_place_at_the_replica(
    replicas: list[FakeReplica], session: OpenSession
) -> None:
    closed = threading.Event()

    def until_closed(handler: Handler) -> None:
        try:
            while True:
                handler.wfile.write(b"1\r\n \r\n")
                time.sleep(0.005)
        except OSError:
            handler.close_connection = True
            closed.set()

    a = replicas[0]
    a.respond_with(stream(*ABC[:3], end=until_closed), found(1))
    with session(a, timeout_s=10, attempt_timeout_s=10) as s:
        with s.fork() as child:  # The two share connections, so these stay open.
            exported = child.export()
            assert next(exported).key == "a"
            assert not closed.is_set()
            if isinstance(child, Session):  # That of an AsyncSession is closed at the end of the block.
                exported.close()
        wait_until(closed.is_set)
        assert s.get("k").value == 1


# ---- the check


def test_a_line_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_LINE_BYTES", 1000)
    check = ExportCheck("http://a:1")
    check.feed(ABC[0] + b'{"key":"')
    for _ in range(3):
        check.feed(b"x" * 300)
    with pytest.raises(BadExport, match=r"http://a:1: a line is longer than 1000 bytes"):
        check.feed(b"x" * 300)


def test_the_reason_of_a_replica_is_cut() -> None:
    check = ExportCheck()
    check.feed(ABC[0] + line({"error": "x" * 10_000}))
    with pytest.raises(BadExport) as caught:
        check.end()
    assert len(str(caught.value)) < 400
