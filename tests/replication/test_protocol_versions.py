"""Neighbouring versions of the protocol work together, and only they do (replication/messages.py, "Versions").

A replica of another version is played by one of this version whose messages are rewritten on the wire: a later one adds
fields everywhere and says a higher number; an earlier one leaves out what it would not know. What it *reads* is judged
by its number alone.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import msgspec
import pytest

from replication import composer, messages, snapshots
from replication.api.metrics import registry_of
from replication.errors import BadMessage
from replication.messages import (
    DEFAULT_PROTOCOL,
    PROTOCOL,
    Exchange,
    LastHeard,
    MarkerForm,
    MembershipEntry,
    SnapshotPiece,
    SnapshotRequest,
    decode,
    encode,
)
from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.peer_thread import PeerThread
from replication.replica import Replica
from replication.transport import Transport
from store.causal import CausalStore
from store.engine import Engine, read_clocks
from store.versions import Change, Update, Version, Write
from tests.support.api import Api
from tests.support.wire import Wire, address, run

Tree = dict[str, Any]
Message = Exchange | SnapshotRequest | SnapshotPiece

GOLDEN = Path(__file__).parent / "data" / "protocol-1.txt"


# -- replicas of other versions ----------------------------------------------------------------------------------------


def later(tree: Tree) -> Tree:
    """Rewrite a message as a later version might send it: something new in every place that can grow."""
    tree = copy.deepcopy(tree) | {"invented": {"of": ["a", "later", "version"]}, "another": 1}
    for update in tree.get("updates", ()):
        update[4] = [[*write, *DEFAULTS[len(write) :], "new"] for write in update[4]]
        update.append({"new": True})
    tree["items"] = [[key, [[*held, "new"] for held in versions]] for key, versions in tree.get("items", ())]
    for group in ("membership", "heard"):
        if tree.get(group):
            tree[group] = {name: [*entry, "new"] for name, entry in tree[group].items()}
    if tree.get("markers"):
        tree["markers"] = [[*marker, "new"] for marker in tree["markers"]]
    return tree


DEFAULTS: list[Any] = ["key", None, [], None]
"""A write's fields, to put new ones after the last."""


def earlier(tree: Tree) -> Tree:
    """Rewrite a message as an earlier version might send it: without what only speeds things up, or came late."""
    return {
        name: value for name, value in tree.items() if name not in ("heard", "orphaned_pending", "want_all", "more")
    }


@dataclass
class Dialect:
    """How a replica speaks: its version, less ours, and what becomes of its messages on their way out."""

    ahead: int
    rewrite: Callable[[Tree], Tree]

    def speak(self, message: Message) -> bytes:
        """Return the bytes that a replica of this version would send."""
        tree = self.rewrite(msgspec.msgpack.decode(encode(message)))
        if not isinstance(message, SnapshotPiece):
            tree["protocol"] = PROTOCOL + self.ahead
        return msgspec.msgpack.encode(tree)


PRESENT = Dialect(0, dict)
LATER = Dialect(1, later)
EARLIER = Dialect(-1, earlier)
NEIGHBOURS = pytest.mark.parametrize("dialect", [LATER, EARLIER], ids=["later", "earlier"])


@dataclass
class MixedWire(Wire):
    """A wire between replicas of different versions; ``dialects``: of those that do not speak the present one."""

    dialects: dict[str, Dialect] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)

    def answer(self, name: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece | None:
        """As Wire's; None as well where one does not understand the other."""
        sender = message.sender.rpartition(":")[0]
        body = self.dialect(sender).speak(message)
        process, now = self[name], self.now(name)
        try:
            if isinstance(message, Exchange):
                request = self.read(name, body, Exchange)
                answered = self.dialect(name).speak(run(process.receive(request, now), now))
                reply: Exchange | SnapshotPiece = self.read(sender, answered, Exchange)
            else:
                asked = self.read(name, body, SnapshotRequest)
                reply = self.read(
                    sender, self.dialect(name).speak(run(process.receive(asked, now), now)), SnapshotPiece
                )
        except BadMessage as exc:
            self.refused[sender, name] = str(exc)
            return None
        return reply

    def dialect(self, name: str) -> Dialect:
        return self.dialects.get(name, PRESENT)

    def read(self, name: str, body: bytes, kind: type[Any]) -> Any:
        """Decode as the version of ``name`` does: by its number."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(messages, "PROTOCOL", PROTOCOL + self.dialect(name).ahead)
            return decode(body, kind)


def state(store: CausalStore) -> tuple[Any, ...]:
    """Return all that a replica holds."""
    return store.table.copy(), dict(store.clock), dict(store.delete_clock), len(store.pending)


# -- neighbours --------------------------------------------------------------------------------------------------------


@NEIGHBOURS
def test_updates_of_all_kinds_go_both_ways_between_neighbouring_versions(dialect: Dialect) -> None:
    wire = MixedWire(dialects={"b": dialect})
    a, b = wire.cluster("a", "b")
    for here, there in (("a", "b"), ("b", "a")):
        past = wire.put(here, f"{here}/1", b"1").metadata
        wire[here].store.transact(["x"], [Change(f"{here}/2", b"2"), Change(f"{here}/3", b"3")], past, wire.now(here))
        wire[here].store.put(Change(f"{here}/4", b"4", ttl_us=10**9), {}, wire.now(here))
        wire.put(here, f"{here}/5", b"5")
        wire.flow(1)
        wire.put(there, f"{here}/5", None)
        wire.put(there, f"{here}/1", b"replaced", past)
    wire.isolate("a")
    wire.put("a", "both", b"one")
    wire.put("b", "both", b"other")
    wire.heal()
    wire.flow(3)
    assert state(a.store) == state(b.store)
    assert not wire.refused
    assert sorted(wire.values("a", "both")) == [b"one", b"other"]
    assert [wire.values("b", f"a/{n}") for n in range(1, 6)] == [[b"replaced"], [b"2"], [b"3"], [b"4"], []]
    assert [wire.values("a", f"b/{n}") for n in range(1, 6)] == [[b"replaced"], [b"2"], [b"3"], [b"4"], []]


@NEIGHBOURS
@pytest.mark.parametrize("joiner", ["present", "other"])
def test_one_that_comes_empty_takes_over_a_snapshot_from_a_neighbouring_version(dialect: Dialect, joiner: str) -> None:
    """It is how a replica is upgraded: it starts empty among others that are of the version before it, or after."""
    wire = MixedWire(dialects={"b" if joiner == "other" else "a": dialect})
    a = wire.start("a")
    wire.flow(4)
    for n in range(300):
        wire.put("a", f"key/{n % 150}", b"%d" % n)
    wire.put("a", "key/0", None)
    wire.flow(2)
    assert a.store.log.count == 0  # Nobody else is in: so the joiner cannot be brought up from the log.
    b = wire.start("b", "a")
    wire.flow(3)
    assert b.state == "serving"
    assert any(event.kind == "snapshot" for event in b.event_log.events)
    assert state(a.store)[:3] == state(b.store)[:3]
    assert not wire.refused


def test_versions_that_are_two_apart_get_each_others_updates_through_one_between() -> None:
    """As in the middle of an upgrade that skipped a version: nothing is lost, and nobody is misunderstood."""
    wire = MixedWire(dialects={"old": EARLIER, "new": LATER})
    names = ("old", "mid", "new")
    for name in names:
        wire.start(name, *names)
    wire.flow(12)
    wire.put("old", "from/old", b"1")
    wire.put("new", "from/new", b"2")
    wire.flow(6)
    for name in names:
        assert wire.state(name) == "serving"
        assert (wire.values(name, "from/old"), wire.values(name, "from/new")) == ([b"1"], [b"2"])
    assert wire.refused.keys() == {("old", "new"), ("new", "old")}
    assert all("is not next to" in why for why in wire.refused.values())


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-2, 2, 2**40])
def test_a_message_of_a_version_two_away_is_refused_by_its_number_whatever_else_it_holds(ahead: int) -> None:
    greeting = Exchange("r1:80@01", 1, 1, 0, {}, 0, "serving", protocol=PROTOCOL + ahead)
    changed_beyond_recognition = {"sender": "r1:80@01", "protocol": PROTOCOL + ahead, "clock": "of another kind"}
    cases: list[tuple[Any, bytes]] = [
        (Exchange, encode(greeting)),
        (Exchange, msgspec.msgpack.encode(changed_beyond_recognition)),
        (SnapshotRequest, encode(SnapshotRequest("r1:80@01", protocol=PROTOCOL + ahead))),
    ]
    for kind, body in cases:
        with pytest.raises(BadMessage, match=f"r1:80@01 speaks protocol {PROTOCOL + ahead}, which is not next to"):
            decode(body, kind)


def test_what_is_no_message_at_all_is_not_taken_for_one_of_another_version() -> None:
    with pytest.raises(BadMessage, match="not a message of this protocol"):
        decode(b"\xc1", Exchange)


@pytest.mark.parametrize("version", [PROTOCOL, PROTOCOL + 1, PROTOCOL + 5])
def test_every_request_and_reply_of_a_later_version_says_so(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only version 1 is left out; else a replica would take any version for its own."""
    for module in (composer, snapshots):
        monkeypatch.setattr(module, "PROTOCOL", version)
    wire = Wire()
    a, b = wire.start("a"), wire.start("b", "a")
    request = wire.begin("b", "a").message
    pulled = snapshots.SnapshotPull(address("a")).request(b.id)
    assert isinstance(request, Exchange)
    for message in (request, run(a.receive(request, wire.now("a")), wire.now("a")), pulled):
        assert msgspec.msgpack.decode(encode(message)).get("protocol", DEFAULT_PROTOCOL) == version
    assert DEFAULT_PROTOCOL == 1


@pytest.fixture
def node() -> Node:
    """A whole replica behind the views, not started: it does what a test lets it do."""
    made = Replica("127.0.0.1:27210", [], now=read_clocks(), rng=Random(1))
    return Node(made, Engine(made.store), PeerClientSettings(), on_fatal=pytest.fail)


def test_a_replica_two_versions_away_gets_a_400_changes_nothing_and_is_told_of(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    made = node.replica
    made.store.put(Change("key", b"1"), {}, read_clocks())
    before = state(made.store), dict(made.membership.table.entries), made.targets(read_clocks())
    stranger = encode(
        Exchange(
            "127.0.0.1:27211@0000000000000007",
            1,
            2**61,  # a time that would push the hybrid clock ahead
            1,
            {"127.0.0.1:27211@0000000000000007": 1},
            0,
            "serving",
            membership={"127.0.0.1:27211": MembershipEntry(7, 2**61, belongs=True)},
            batch=[msgspec.Raw(msgspec.msgpack.encode(Update("127.0.0.1:27211@0000000000000007", 1, 1, {}, ())))],
            protocol=PROTOCOL + 2,
        )
    )
    pull = encode(SnapshotRequest("127.0.0.1:27211@0000000000000007", protocol=PROTOCOL + 2))
    api = Api(made.store, engine=node.engine, node=node)
    client = api._client
    with caplog.at_level(logging.WARNING, "causeway"):
        for path, body in [("exchange", stranger), ("snapshot", pull)] * 3:
            answer = client.generic("POST", f"/replication/{path}", body, "application/msgpack")
            assert answer.status_code == 400
            said = answer.json()["error"]
            assert said == f"127.0.0.1:27211@0000000000000007 speaks protocol 3, which is not next to {PROTOCOL}"
    assert (state(made.store), dict(made.membership.table.entries), made.targets(read_clocks())) == before
    assert made.store.hybrid_clock.lead_us < 10**6
    told = [record.getMessage() for record in caplog.records if record.name == "causeway.replication"]
    assert told == [f"rejected a message: {said}"]  # once, not at each attempt
    assert node.inspector.status()["throughput"]["messages_refused"] == 6
    assert registry_of(api.context).get_sample_value("causeway_messages_refused_total") == 6


@pytest.mark.parametrize("answers", ["400", "a later version"])
def test_one_that_calls_a_replica_two_versions_away_says_so_once_and_goes_on(
    node: Node, answers: str, caplog: pytest.LogCaptureFixture
) -> None:
    reply = encode(Exchange("peer:1@02", 1, 1, 0, {}, 0, "serving", protocol=PROTOCOL + 2))

    class Peer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = (400, b'{"error":"speaks another"}') if answers == "400" else (200, reply)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Peer)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    at = f"127.0.0.1:{server.server_port}"
    transport = Transport(PeerClientSettings())
    peer_thread = PeerThread(at, node._threads, node._context)
    try:
        node.replica.add_replica_from_view(at, read_clocks())
        with caplog.at_level(logging.WARNING, "causeway"):
            for _ in range(3):
                node.replica.peers.at(at).schedule.next_sync_s = 0
                outgoing = node.replica.begin(at, read_clocks())
                assert outgoing is not None
                peer_thread._exchange(transport, outgoing)
    finally:
        server.shutdown()
        server.server_close()
        transport.close()
    told = [record.getMessage() for record in caplog.records]
    expected = {
        "400": f'no exchange: {at} rejects our message: 400 \'{{"error":"speaks another"}}\'',
        "a later version": f"no exchange with {at}: peer:1@02 speaks protocol 3, which is not next to {PROTOCOL}",
    }
    assert told == [expected[answers]]
    assert node.inspector.status()["throughput"]["exchange_failures"] == 3


# -- messages as they were sent ----------------------------------------------------------------------------------------

R1, R2, OLD = "r1.example:8090@3440c43b9e1c2a55", "10.0.0.2:8090@3440c43b9e2d1b66", "r1.example:8090@3440c43b00000001"
CLOCK = {R1: 7, R2: 3}
UPDATES = [
    Update(R1, 5, 1_795_393_368_082_145, {R2: 3}, (Write("fruit/\u00e4pple", b'{"red":true}'),)),
    Update(
        R1,
        6,
        1_795_393_368_082_146,
        {R2: 3, OLD: 41},
        (Write("a", None, ((R1, 2), (R2, 3))), Write("b", b"[1.5,null]", (), 1_795_393_999_000_000)),
    ),
    Update(R1, 7, 1_795_393_368_082_147, {R2: 3, OLD: 42}, ()),
]
VERSIONS = (
    Version(b'"later"', R2, 3, 1_795_393_368_079_400, {R1: 4}, None),
    Version(b"0", R1, 4, 1_795_393_368_079_399, {}, 1_795_393_999_000_000),
)

SENT: dict[str, Message] = {
    "exchange with all that there is": Exchange(
        R1,
        1234,
        1_795_393_368_082_200,
        2**62 + 1,
        CLOCK,
        987_654_321,
        "serving",
        membership={
            "r1.example:8090": MembershipEntry(0x3440C43B9E1C2A55, 1_795_393_000_000_000, belongs=True),
            "[::1]:8091": MembershipEntry(0, 1_795_393_000_000_001, belongs=False),
        },
        retired={OLD: 42},
        heard={R2: LastHeard(99, 250)},
        orphaned_pending={OLD: 44},
        batch=[msgspec.Raw(msgspec.msgpack.encode(update)) for update in UPDATES],
        want_all=True,
        truncated=True,
        more=True,
        accepted=False,
    ),
    "exchange with nothing to tell": Exchange(R2, 1, 0, 0, {}, 0, "joining"),
    "snapshot request, the first": SnapshotRequest(R2),
    "snapshot request, the third": SnapshotRequest(R2, f"{R1}/12"[-64:], 2),
    "snapshot piece, the first": SnapshotPiece(
        R1,
        f"{R1}/12"[-64:],
        0,
        last=False,
        time=1_795_393_368_082_200,
        clock={**CLOCK, OLD: 42},
        delete_clock={R1: 6},
        markers=[MarkerForm(R1, 7, {OLD: 42})],
        items=[("both", VERSIONS), ("b", (Version(b"[1.5,null]", R1, 6, 1, {R2: 3}, 1_795_393_999_000_000),))],
    ),
    "snapshot piece, the last": SnapshotPiece(R1, f"{R1}/12"[-64:], 2, last=True, items=[("z", VERSIONS[1:])]),
}
"""What the recorded messages say, by their names in the file."""


def recorded() -> dict[str, bytes]:
    """Return the messages that were recorded when version 1 was the present one: a name, and hex beneath it."""
    found: dict[str, bytes] = {}
    for block in GOLDEN.read_text().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            found[lines[0]] = bytes.fromhex("".join(lines[1:]))
    return found


@pytest.mark.parametrize("name", SENT)
def test_messages_of_version_1_are_read_as_they_were_meant(name: str) -> None:
    """For as long as version 1 is a neighbour. When it is none any more, this part and the file may go."""
    assert PROTOCOL <= 2, "version 1 is no neighbour any more: remove what was recorded of it"
    meant = SENT[name]
    kind: Any = type(meant)
    read = decode(recorded()[name], kind)
    assert read == meant
    if isinstance(meant, Exchange):
        assert read.updates == (UPDATES if meant.batch else [])
    assert read.protocol == 1 if not isinstance(meant, SnapshotPiece) else True


def test_version_1_is_still_sent_as_it_was_recorded() -> None:
    """What changes on the wire is a new version; in what order fields go is nobody's business."""
    assert recorded().keys() == SENT.keys()
    if PROTOCOL == 1:
        for name, body in recorded().items():
            assert msgspec.msgpack.decode(encode(SENT[name])) == msgspec.msgpack.decode(body), name
