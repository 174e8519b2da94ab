"""Replicas of neighbouring protocol versions work together, and of no others (replication/messages.py, "Versions").

The tests simulate a replica of another version by one of this version whose messages are rewritten: a later version
adds fields everywhere and has a higher number; an earlier version leaves out fields. When such a replica *decodes* a
message, only its version number differs.
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
    ClockChanges,
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
from replication.settings import ReplicationSettings
from replication.transport import Transport
from store.causal import CausalStore
from store.engine import Engine, read_clocks
from store.versions import Change, Update, Version, Write
from tests.support.api import Api
from tests.support.wire import Wire, address, run

Tree = dict[str, Any]
Message = Exchange | SnapshotRequest | SnapshotPiece

DATA = Path(__file__).parent / "data"


# -- replicas of other versions ----------------------------------------------------------------------------------------


def later(tree: Tree) -> Tree:
    """Rewrite a message as a later version might send it: with new fields in every place that may get some."""
    tree = copy.deepcopy(tree) | {"invented": {"of": ["a", "later", "version"]}, "another": 1}
    for update in tree.get("updates", ()):
        update[4] = [[*write, *DEFAULTS[len(write) :], "new"] for write in update[4]]
        update.append({"new": True})
    tree["items"] = [[key, [[*version, "new"] for version in versions]] for key, versions in tree.get("items", ())]
    for group in ("membership", "heard", "contacts"):
        if tree.get(group):
            tree[group] = {name: [*entry, "new"] for name, entry in tree[group].items()}
    if tree.get("changes"):
        tree["changes"] = [*tree["changes"], *CHANGES_DEFAULTS[len(tree["changes"]) :], "new"]
    if tree.get("markers"):
        tree["markers"] = [[*marker, "new"] for marker in tree["markers"]]
    return tree


CHANGES_DEFAULTS: list[Any] = [1, 0, {}]
DEFAULTS: list[Any] = ["key", None, [], None]
"""The fields of a write; a new field comes after the last one."""


NEW_FIELDS = ("horizon", "changes", "seen", "unheard", "contacts")
"""The fields of an exchange that version 2 has added."""


def earlier(tree: Tree) -> Tree:
    """Rewrite a message as an earlier version might send it: without some fields that have a default."""
    return {
        name: value
        for name, value in tree.items()
        if name not in ("heard", "orphaned_pending", "want_all", "more", *NEW_FIELDS)
    }


def first(tree: Tree) -> Tree:
    """Rewrite a message as version 1 sends it."""
    return {name: value for name, value in tree.items() if name not in NEW_FIELDS}


@dataclass
class Dialect:
    """The protocol version of a replica. ``ahead``: its version minus ours. ``rewrite``: applied to its messages."""

    ahead: int
    rewrite: Callable[[Tree], Tree]

    def encode(self, message: Message) -> bytes:
        """Return the bytes that a replica of this version sends."""
        tree = self.rewrite(msgspec.msgpack.decode(encode(message)))
        if not isinstance(message, SnapshotPiece):
            tree["protocol"] = PROTOCOL + self.ahead
        return msgspec.msgpack.encode(tree)


PRESENT = Dialect(0, dict)
LATER = Dialect(1, later)
EARLIER = Dialect(-1, earlier)
VERSION_1 = Dialect(1 - PROTOCOL, first)
NEIGHBOURS = pytest.mark.parametrize("dialect", [LATER, EARLIER], ids=["later", "earlier"])


@dataclass
class MixedWire(Wire):
    """A wire between replicas of different versions.

    ``dialects``: name -> version, of the replicas that do not have the present one. ``rejections``: (sender, receiver)
    -> error, of the messages that were rejected.
    """

    dialects: dict[str, Dialect] = field(default_factory=dict)
    rejections: dict[tuple[str, str], str] = field(default_factory=dict)

    def answer(self, name: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece | None:
        """Like ``Wire.answer``. Return None also if one side rejects the version of the other."""
        sender = message.sender.rpartition(":")[0]
        body = self.dialect(sender).encode(message)
        process, now = self[name], self.now(name)
        try:
            if isinstance(message, Exchange):
                exchange = self.decode(name, body, Exchange)
                encoded = self.dialect(name).encode(run(process.receive(exchange, now), now))
                reply: Exchange | SnapshotPiece = self.decode(sender, encoded, Exchange)
            else:
                request = self.decode(name, body, SnapshotRequest)
                reply = self.decode(
                    sender, self.dialect(name).encode(run(process.receive(request, now), now)), SnapshotPiece
                )
        except BadMessage as exc:
            self.rejections[sender, name] = str(exc)
            return None
        return reply

    def dialect(self, name: str) -> Dialect:
        """Return the version of the replica ``name``."""
        return self.dialects.get(name, PRESENT)

    def decode(self, name: str, body: bytes, kind: type[Any]) -> Any:
        """Decode a message as the version of ``name`` does."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(messages, "PROTOCOL", PROTOCOL + self.dialect(name).ahead)
            message = decode(body, kind)
        if kind is Exchange and self.dialect(name).ahead < 0:
            # It ignores what version 2 has added, and takes every sender for one of its own version.
            message = msgspec.structs.replace(message, changes=None, seen=0, unheard=[], contacts={}, protocol=1)
        return message


def state(store: CausalStore) -> tuple[Any, ...]:
    """Return the data of a replica, its clocks, and the number of its pending updates."""
    return store.table.copy(), dict(store.clock), dict(store.delete_clock), len(store.pending)


# -- neighbours --------------------------------------------------------------------------------------------------------


@NEIGHBOURS
def test_neighbouring_versions_exchange_updates_of_all_kinds(dialect: Dialect) -> None:
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
    assert not wire.rejections
    assert sorted(wire.values("a", "both")) == [b"one", b"other"]
    assert [wire.values("b", f"a/{n}") for n in range(1, 6)] == [[b"replaced"], [b"2"], [b"3"], [b"4"], []]
    assert [wire.values("a", f"b/{n}") for n in range(1, 6)] == [[b"replaced"], [b"2"], [b"3"], [b"4"], []]


@NEIGHBOURS
@pytest.mark.parametrize("joiner", ["present", "other"])
def test_a_joiner_pulls_a_snapshot_from_a_neighbouring_version(dialect: Dialect, joiner: str) -> None:
    """An upgraded replica starts empty among replicas of the version before, or of the next one."""
    wire = MixedWire(dialects={"b" if joiner == "other" else "a": dialect})
    a = wire.start("a")
    wire.flow(4)
    for n in range(300):
        wire.put("a", f"key/{n % 150}", b"%d" % n)
    wire.put("a", "key/0", None)
    wire.flow(2)
    assert a.store.log.count == 0  # There is no other member, so the log is trimmed and the joiner needs a snapshot.
    b = wire.start("b", "a")
    wire.flow(3)
    assert b.state == "serving"
    assert any(event.kind == "snapshot" for event in b.event_log.events)
    assert state(a.store)[:3] == state(b.store)[:3]
    assert not wire.rejections


def test_a_peer_of_version_1_gets_whole_clocks_and_reports_of_everybody() -> None:
    """a and c reach each other only through b, which cannot be asked about either of them."""
    wire = MixedWire(dialects={"b": VERSION_1})
    a, b, c = wire.cluster("a", "b", "c")
    wire.issue("a", "x", b"1")
    wire.flow(3.0)
    wire.cut("a", "c")
    for _ in range(60):
        wire.flow(0.1)
        for name in ("a", "b", "c"):
            assert len(wire[name].membership.live(wire.now(name).mono_s)) == 3
    wire.tick(1.0)
    request, reply = wire.exchange("a", "b")
    assert request.clock == reply.clock == {a.id: 1}
    assert {b.id, c.id} <= request.heard.keys()
    assert not request.unheard
    assert not wire.rejections
    wire.crash("b")
    wire.dialects.clear()
    wire.heal()
    wire.start("b", "a")
    wire.flow(3.0)
    request, reply = wire.exchange("a", "b")
    assert request.clock == reply.clock == {}
    assert request.heard == reply.heard == {}


def test_versions_two_apart_get_each_others_updates_through_the_version_between() -> None:
    """This happens during an upgrade that skips a version. Nothing is lost, and no message is misread."""
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
    assert wire.rejections.keys() == {("old", "new"), ("new", "old")}
    assert all("is not next to" in error for error in wire.rejections.values())


# -- the membership table of version 1 ------------------------------------------------------------------------------


def use_table_of_version_1(replica: Replica) -> None:
    """Let ``replica`` keep the entry with the highest (incarnation, stamp, belongs) of each address, as version 1 did.

    It has no horizon, and forgets no removal.
    """
    table = replica.membership.table

    def merge(entries: dict[str, MembershipEntry], _: int = 0) -> dict[str, Any]:
        newer = {
            address: entry
            for address, entry in entries.items()
            if address not in table.entries or rank(entry) > rank(table.entries[address])
        }
        changes = {address: (table.entries.get(address), entry) for address, entry in newer.items()}
        table.entries.update(newer)
        table._derive()
        return changes

    table.merge = merge  # type: ignore[method-assign, assignment]
    replica.membership.forget_removed = lambda now_s: []  # type: ignore[method-assign]


def rank(entry: MembershipEntry) -> tuple[int, int, bool]:
    return entry.incarnation, entry.stamp, entry.belongs


def tables(wire: Wire, *names: str) -> list[dict[str, MembershipEntry]]:
    return [wire[name].membership.table.entries for name in names]


def test_membership_tables_of_version_1_and_2_become_equal() -> None:
    """Also after a removal of which the restarted replica does not know, by a clock that is ahead."""
    wire = MixedWire(dialects={"old": VERSION_1, "old2": VERSION_1})
    names = ("old", "old2", "new", "new2")
    for name in names:
        replica = wire.start(name, *names, skew_s=5.0 if name == "new" else 0.0)
        if name in wire.dialects:
            use_table_of_version_1(replica)
    wire.flow(1.0)
    wire.isolate("old2")
    for by in ("old", "new"):
        assert wire[by].remove_replica_from_view(address("old2"), wire.now(by))
        wire[by].add_replica_from_view("junk:80", wire.now(by))
    wire.crash("old2")
    use_table_of_version_1(wire.start("old2", "old"))
    wire.flow(1.0)
    wire.heal()
    wire.flow(4.0)
    one, *others = tables(wire, *names)
    assert all(other == one for other in others)
    assert len({wire[name].membership.table.digest for name in names}) == 1
    assert not wire.rejections


def test_nothing_is_forgotten_while_a_member_speaks_version_1() -> None:
    """That member would bring each removal again. Once it is upgraded, old removals are forgotten."""
    wire = MixedWire(
        settings=ReplicationSettings(pace_s=0.0, kept_removed=2, forget_after_s=1.0), dialects={"old": VERSION_1}
    )
    wire.start("new", "old")
    use_table_of_version_1(wire.start("old", "new"))
    wire.flow(1.0)
    for number in range(5):
        wire.now_s += 0.001
        wire["new"].add_replica_from_view(f"junk{number}:80", wire.now("new"))
        wire["new"].remove_replica_from_view(f"junk{number}:80", wire.now("new"))
    wire.flow(5.0)
    assert [len(entries) for entries in tables(wire, "new", "old")] == [7, 7]
    assert wire["new"].membership.table.digest == wire["old"].membership.table.digest
    wire.crash("old")
    wire.dialects.clear()
    wire.start("old", "new")
    wire.flow(5.0)
    assert wire["new"].membership.table.left == wire["old"].membership.table.left == ("junk3:80", "junk4:80")


# -- other versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-2, 2, 2**40])
def test_a_message_of_a_version_two_away_is_rejected_by_its_number_whatever_it_contains(ahead: int) -> None:
    exchange = Exchange("r1:80@01", 1, 1, 0, {}, 0, "serving", protocol=PROTOCOL + ahead)
    with_another_form = {"sender": "r1:80@01", "protocol": PROTOCOL + ahead, "clock": "of another kind"}
    cases: list[tuple[Any, bytes]] = [
        (Exchange, encode(exchange)),
        (Exchange, msgspec.msgpack.encode(with_another_form)),
        (SnapshotRequest, encode(SnapshotRequest("r1:80@01", protocol=PROTOCOL + ahead))),
    ]
    for kind, body in cases:
        with pytest.raises(BadMessage, match=f"r1:80@01 speaks protocol {PROTOCOL + ahead}, which is not next to"):
            decode(body, kind)


def test_arbitrary_bytes_are_not_reported_as_another_version() -> None:
    with pytest.raises(BadMessage, match="not a message of this protocol"):
        decode(b"\xc1", Exchange)


@pytest.mark.parametrize("version", [PROTOCOL, PROTOCOL + 1, PROTOCOL + 5])
def test_every_exchange_and_snapshot_request_names_its_version(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only version 1 is left out. Otherwise a replica would take the message for one of its own version."""
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
    """Return a node that is not started: it sends nothing by itself."""
    replica = Replica("127.0.0.1:27210", [], now=read_clocks(), rng=Random(1))
    return Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=pytest.fail)


def test_a_message_of_a_version_two_away_gets_a_400_changes_nothing_and_is_logged_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    replica = node.replica
    replica.store.put(Change("key", b"1"), {}, read_clocks())
    before = state(replica.store), dict(replica.membership.table.entries), replica.targets(read_clocks())
    exchange = encode(
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
    api = Api(replica.store, engine=node.engine, node=node)
    client = api._client
    with caplog.at_level(logging.WARNING, "causeway"):
        for path, body in [("exchange", exchange), ("snapshot", pull)] * 3:
            response = client.generic("POST", f"/replication/{path}", body, "application/msgpack")
            assert response.status_code == 400
            error = response.json()["error"]
            assert error == (
                f"127.0.0.1:27211@0000000000000007 speaks protocol {PROTOCOL + 2}, which is not next to {PROTOCOL}"
            )
    assert (state(replica.store), dict(replica.membership.table.entries), replica.targets(read_clocks())) == before
    assert replica.store.hybrid_clock.lead_us < 10**6
    logged = [record.getMessage() for record in caplog.records if record.name == "causeway.replication"]
    assert logged == [f"rejected a message: {error}"]  # Once, not at each attempt.
    assert node.inspector.status()["throughput"]["messages_refused"] == 6
    assert registry_of(api.context).get_sample_value("causeway_messages_refused_total") == 6


@pytest.mark.parametrize("reply", ["400", "a later version"])
def test_a_peer_of_a_version_two_away_is_logged_once_and_still_exchanged_with(
    node: Node, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    later_message = encode(Exchange("peer:1@02", 1, 1, 0, {}, 0, "serving", protocol=PROTOCOL + 2))

    class Peer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = (400, b'{"error":"another version"}') if reply == "400" else (200, later_message)
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
    logged = [record.getMessage() for record in caplog.records]
    no_neighbour = f"speaks protocol {PROTOCOL + 2}, which is not next to {PROTOCOL}"
    expected = {
        "400": f"no exchange: {at} rejects our message: 400: another version",
        "a later version": f"no exchange with {at}: peer:1@02 {no_neighbour}",
    }
    assert logged == [expected[reply]]
    assert node.inspector.status()["throughput"]["exchange_failures"] == 3


# -- recorded messages -------------------------------------------------------------------------------------------------

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

MEANING: dict[str, Message] = {
    "exchange with all fields": Exchange(
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
    "exchange without optional fields": Exchange(R2, 1, 0, 0, {}, 0, "joining"),
    "first snapshot request": SnapshotRequest(R2),
    "third snapshot request": SnapshotRequest(R2, f"{R1}/12"[-64:], 2),
    "first snapshot piece": SnapshotPiece(
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
    "last snapshot piece": SnapshotPiece(R1, f"{R1}/12"[-64:], 2, last=True, items=[("z", VERSIONS[1:])]),
}
"""Name in the file -> the message of version 1 that its bytes stand for."""


def of_version_2(message: Message) -> Message:
    """Return ``message`` as version 2 sends it, with the fields that it has added."""
    if isinstance(message, Exchange):
        added = {"horizon": 1_795_392_000_000_000} if message.heard else {}
        return msgspec.structs.replace(message, protocol=2, **added)
    return message if isinstance(message, SnapshotPiece) else msgspec.structs.replace(message, protocol=2)


MEANING_2: dict[str, Message] = {
    "exchange in the short form": Exchange(
        R1,
        1235,
        1_795_393_368_082_300,
        2**62 + 1,
        {},
        0,
        "serving",
        protocol=2,
        changes=ClockChanges(7000, 6990, {0: 3, 200: 2**40}),
        seen=512,
        unheard=[0, 127],
        contacts={128: LastHeard(99, 250)},
    ),
    "exchange with a whole clock": Exchange(
        R2, 1, 0, 0, CLOCK, 0, "joining", protocol=2, changes=ClockChanges(1), heard={R1: LastHeard(5, 0)}
    ),
}
"""Messages that version 2 has added."""

MEANINGS = {1: MEANING, 2: {name: of_version_2(message) for name, message in MEANING.items()} | MEANING_2}
"""Version -> what its file says."""


def recorded(version: int) -> dict[str, bytes]:
    """Return the messages that were recorded from a version: name -> bytes."""
    bodies: dict[str, bytes] = {}
    for block in (DATA / f"protocol-{version}.txt").read_text().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            bodies[lines[0]] = bytes.fromhex("".join(lines[1:]))
    return bodies


@pytest.mark.parametrize(("version", "name"), [(version, name) for version in MEANINGS for name in MEANINGS[version]])
def test_recorded_messages_decode_to_their_meaning(version: int, name: str) -> None:
    """It holds while that version is a neighbour. After that, its part and its file can be removed."""
    assert PROTOCOL - version <= 1, f"version {version} is no neighbour any more: remove its recorded messages"
    expected = MEANINGS[version][name]
    kind: Any = type(expected)
    decoded = decode(recorded(version)[name], kind)
    assert decoded == expected
    if isinstance(expected, Exchange):
        assert decoded.updates == (UPDATES if expected.batch else [])
    assert decoded.protocol == version if not isinstance(expected, SnapshotPiece) else True


def test_messages_of_the_present_version_encode_as_recorded() -> None:
    """A change of the wire form needs a new version. The order of fields does not matter."""
    assert recorded(PROTOCOL).keys() == MEANINGS[PROTOCOL].keys()
    for name, body in recorded(PROTOCOL).items():
        assert msgspec.msgpack.decode(encode(MEANINGS[PROTOCOL][name])) == msgspec.msgpack.decode(body), name
