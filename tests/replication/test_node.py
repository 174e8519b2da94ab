"""The node: which peer threads a write wakes, how their wakeup delay is measured, and what it warns of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from replication.discovery import Discovery, LookupFailed
from replication.errors import Unreachable
from replication.node import Node
from replication.node_warnings import ALONE
from replication.peer_client import PeerClientSettings
from replication.peer_thread import AWAKE, PeerThread
from replication.replica import Replica
from replication.settings import ReplicationSettings
from store.clock import Instant
from store.engine import Change, Engine, WriteConcern, read_clocks
from store.errors import DependenciesMissing

OWN, PEER = "127.0.0.1:1", "127.0.0.1:2"


class FakeWakeup:
    """An event that counts how often it was set. A wait for it returns at once."""

    def __init__(self) -> None:
        self.calls = 0

    def set(self) -> None:
        self.calls += 1

    def clear(self) -> None:
        """Do nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Return at once, as after a wakeup by another thread."""
        return True


@pytest.fixture
def node() -> Node:
    """Return a node that is not started, with one other member and without peer threads."""
    replica = Replica(OWN, [], now=read_clocks(), rng=Random(1))
    replica.add_replica_from_view(PEER, read_clocks())
    replica.tick(read_clocks())

    def on_fatal(reason: str) -> None:
        raise AssertionError(reason)

    return Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=on_fatal)


def sleeping_thread(node: Node, sleeps_until_s: float) -> Any:
    """Return a peer thread of ``node`` that is not started and counts as sleeping until ``sleeps_until_s``."""
    peer_thread: Any = PeerThread(PEER, node._threads, node._context)
    peer_thread.wakeup = FakeWakeup()
    peer_thread.sleeps_until_s = sleeps_until_s
    node._threads._by_address[PEER] = peer_thread
    return peer_thread


def test_a_write_wakes_a_thread_that_sleeps_too_long_once(node: Node) -> None:
    now_s = read_clocks().mono_s
    peer_thread = sleeping_thread(node, now_s + 60)
    node.engine.write(Change("x", b"1"), {})
    assert (peer_thread.wakeup.calls, peer_thread.sleeps_until_s) == (1, AWAKE)
    node.engine.write(Change("x", b"2"), {})
    assert peer_thread.wakeup.calls == 1, "it is woken already"


def test_a_write_does_not_wake_a_thread_whose_next_exchange_is_not_due_earlier(node: Node) -> None:
    outgoing = node.replica.begin(PEER, read_clocks())
    assert outgoing is not None
    peer_thread = sleeping_thread(node, read_clocks().mono_s + 60)
    node.engine.write(Change("x", b"1"), {})
    assert peer_thread.wakeup.calls == 0, "an exchange is in flight: the thread checks what is due after it"
    node.replica.failed(PEER, outgoing.serial, read_clocks())
    peer = node.replica.peers.find(PEER)
    assert peer is not None
    peer_thread.sleeps_until_s = peer.schedule.next_sync_s
    node.engine.write(Change("x", b"2"), {})
    assert peer_thread.wakeup.calls == 0, "after a failure, only the timer sends the next exchange"


def test_a_write_that_waits_for_acks_wakes_a_thread_that_sleeps_until_the_pace_allows(node: Node) -> None:
    outgoing = node.replica.begin(PEER, read_clocks())
    assert outgoing is not None
    peer = node.replica.peers.at(PEER)
    peer.become("127.0.0.1:2@0000000000000001", 0.0)
    peer.end(outgoing.serial)
    paced_until_s = peer.schedule.paced_until_s = read_clocks().mono_s + 30
    peer.schedule.next_sync_s = paced_until_s + 30
    peer_thread = sleeping_thread(node, paced_until_s)
    wrote = node.engine.write(Change("x", b"1"), {})
    assert wrote.update is not None
    assert peer_thread.wakeup.calls == 0
    node.engine.wait_for_acks(wrote.update.dot, WriteConcern("majority", 0.001))
    assert (peer_thread.wakeup.calls, peer_thread.sleeps_until_s) == (1, AWAKE)
    node.engine.wait_for_acks(wrote.update.dot, WriteConcern("majority", 0.001))
    assert peer_thread.wakeup.calls == 1, "it is woken already"


def test_a_write_checks_threads_only_if_one_fell_asleep_with_nothing_to_send(node: Node) -> None:
    checked: list[str] = []
    due_at = node.replica.due_at
    node.replica.due_at = lambda address, now: checked.append(address) or due_at(address, now)  # type: ignore[method-assign,func-returns-value]
    peer_thread = sleeping_thread(node, AWAKE)
    node.engine.write(Change("x", b"1"), {})
    peer_thread.sleeps_until_s = read_clocks().mono_s + 60
    checked.clear()
    node.engine.write(Change("x", b"2"), {})
    assert not checked, "no thread has fallen asleep since"

    outgoing = node.replica.begin(PEER, read_clocks())
    assert outgoing is not None, "it carries both writes"
    node.engine.write(Change("x", b"3"), {})
    node.replica.failed(PEER, outgoing.serial, read_clocks())
    peer_thread.turn()
    checked.clear()
    node.engine.write(Change("x", b"4"), {})
    assert not checked, "the third write waits for the timer, and the fourth with it"

    peer = node.replica.peers.find(PEER)
    assert peer is not None
    peer.acked.sent = 4
    peer_thread.turn()
    checked.clear()
    node.engine.write(Change("x", b"5"), {})
    assert checked, "the thread fell asleep with nothing to send"


DELAY_S = 0.02


TRACEPARENT, OTHER_TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'c' * 32}-{'d' * 16}-01"


class RecordingTransport:
    """A transport that records the ``traceparent`` of each exchange, and reaches nobody."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, address: str, message: object, traceparent: str = "") -> None:
        self.sent.append(traceparent)
        raise Unreachable(f"{address} is not there")


def traced(node: Node, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, RecordingTransport, list[str]]:
    """Return a peer thread, its transport, and the list whose last item is the trace of the present request."""
    current = [""]
    node._traceparent = lambda: current[-1]
    peer_thread, transport = sleeping_thread(node, read_clocks().mono_s + 60), RecordingTransport()
    monkeypatch.setattr(peer_thread.connection, "transport", lambda endpoint: transport)
    peer = node.replica.peers.at(PEER)
    peer.schedule.next_sync_s = float("inf")  # only requests make an exchange due
    return peer_thread, transport, current


def test_an_exchange_carries_the_trace_of_the_first_write_that_waits_for_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer_thread, transport, current = traced(node, monkeypatch)
    concern = WriteConcern("all", 0.001)

    def write(traceparent: str) -> None:
        current.append(traceparent)
        wrote = node.engine.write(Change("x", b"1"), {})
        assert wrote.update is not None
        assert not node.engine.wait_for_acks(wrote.update.dot, concern).enough

    write("")
    write(TRACEPARENT)
    write(OTHER_TRACEPARENT)
    peer_thread.turn()
    assert transport.sent == [TRACEPARENT]
    assert peer_thread.traceparent == "", "the next exchange is not for that write"


def test_an_exchange_that_nobody_waits_for_carries_no_trace(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    peer_thread, transport, current = traced(node, monkeypatch)
    current.append(TRACEPARENT)
    node.engine.write(Change("x", b"1"), {})
    node.replica.peers.at(PEER).urgent = True
    peer_thread.turn()
    assert transport.sent == [""]


@pytest.mark.parametrize("wait_s", [0.0, 0.001])
def test_an_exchange_that_fetches_the_past_of_a_request_carries_its_trace(
    node: Node, monkeypatch: pytest.MonkeyPatch, wait_s: float
) -> None:
    peer_thread, transport, current = traced(node, monkeypatch)
    current.append(TRACEPARENT)
    node.replica.store.not_serving_reason = None
    with pytest.raises(DependenciesMissing):
        node.engine.get("x", {"127.0.0.1:2@0000000000000001": 1}, wait_s=wait_s)
    peer_thread.turn()
    assert transport.sent == [TRACEPARENT]


class LateTimer(FakeWakeup):
    """The event of a thread that no other thread wakes, and that wakes ``DELAY_S`` too late."""

    def wait(self, timeout_s: float) -> bool:
        time.sleep(timeout_s + DELAY_S)
        return False


@pytest.mark.parametrize(("wakeup", "delay_s"), [(LateTimer, DELAY_S), (FakeWakeup, 0.0)])
def test_the_wakeup_delay_counts_threads_that_wake_by_themselves(
    node: Node, wakeup: type[FakeWakeup], delay_s: float
) -> None:
    node.replica.due_at = lambda address, now: now.mono_s + 0.001  # type: ignore[method-assign]
    peer_thread = sleeping_thread(node, AWAKE)
    peer_thread.wakeup = wakeup()
    for _ in range(8):
        peer_thread.turn()
    measured_s = node.replica.pacing.wakeup_delay_s(read_clocks().mono_s)
    assert delay_s <= measured_s <= 10 * delay_s


# -- warnings ----------------------------------------------------------------------------------------------------------


def node_with_seed(expected_members: int = 1) -> Node:
    """Return a node that has asked ``PEER``, of its VIEW, for ten seconds in vain."""
    now = read_clocks()
    started = Instant(now.mono_s - 10, now.wall_us - 10_000_000)
    settings = ReplicationSettings(expected_members=expected_members)
    replica = Replica(OWN, [PEER], now=started, rng=Random(1), settings=settings)
    outgoing = replica.begin(PEER, started)
    assert outgoing is not None
    replica.failed(PEER, outgoing.serial, started, failure="closed")
    return Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=lambda reason: None)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_an_address_that_was_never_reached_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    node = node_with_seed()
    with caplog.at_level(logging.INFO):
        node._warnings.warn_of_unreached()
        node._warnings.warn_of_unreached()
    assert warnings_of(caplog) == [f"{PEER} in VIEW was never reached: nobody listens there. {ALONE}"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        node.remove_member(PEER)
        node._warnings.warn_of_unreached()
    assert f"{PEER} is not missed any more: it has answered, or was removed" in caplog.messages


def test_the_warning_stands_in_the_status_and_repeats_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = node_with_seed()
    monkeypatch.setattr(node._context.warnings, "allow", lambda kind, now_s: True)
    for _ in range(2):
        node._warnings.warn_of_unreached()
        [stated] = node.inspector.status()["never_reached"]
        assert (stated["address"], stated["kind"], stated["text"]) == (PEER, "closed", "nobody listens there")
        assert stated["since_s"] >= 10
    assert len(warnings_of(caplog)) == 2


def test_a_replica_that_waits_for_members_says_so(caplog: pytest.LogCaptureFixture) -> None:
    node = node_with_seed(expected_members=3)
    node.replica.tick(read_clocks())
    assert node.not_ready_reason == "KV_EXPECT asks for 3 members, and this replica has met no other"
    node._warnings.warn_if_not_ready()
    assert warnings_of(caplog) == [f"not ready: {node.not_ready_reason}"]
    status = node.inspector.status()
    assert (status["state"], status["expected_members"], status["met_members"]) == ("joining", 3, 1)


def test_keys_end_with_a_replica_that_reaches_no_other_member(node: Node) -> None:
    for key in ("x", "y"):
        node.engine.write(Change(key, b"1"), {})
    assert node.keys_that_end() == 0, "the other member was added just now"
    node.remove_member(PEER)
    assert node.keys_that_end() == 2
    alone = node_with_seed()
    assert alone.keys_that_end() == 0


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [(None, "name", "never resolved: no such name"), (["10.0.0.9:1"], "silent", "no replica has ever answered")],
)
def test_a_name_that_leads_nowhere_is_reported_like_an_address(
    caplog: pytest.LogCaptureFixture, found: list[str] | None, kind: str, text: str
) -> None:
    def lookup(name: str, port: int) -> frozenset[str]:
        if found is None:
            raise LookupFailed("no such name")
        return frozenset(found)

    node = node_that_looks_up(lookup)
    node._discovery.look_up(node.discovered)  # type: ignore[union-attr]
    [stated] = node.inspector.status()["never_reached"]
    assert (stated["address"], stated["kind"]) == ("kv.example:1", kind)
    assert text in stated["text"]
    node._warnings.warn_of_unreached()
    assert "kv.example:1 in KV_VIEW_DNS was never reached" in caplog.text


def test_a_name_that_leads_only_to_the_replica_itself_is_no_reason_to_warn() -> None:
    """It may be the first one of its cluster."""
    node = node_that_looks_up(lambda name, port: frozenset([OWN]))
    node._discovery.look_up(node.discovered)  # type: ignore[union-attr]
    assert node.inspector.status()["never_reached"] == []


def node_that_looks_up(lookup: Callable[[str, int], frozenset[str]]) -> Node:
    """Return a node that was started ten seconds ago and looks up ``kv.example``. It has no threads."""
    now = read_clocks()
    started = Instant(now.mono_s - 10, now.wall_us - 10_000_000)
    replica = Replica(OWN, [], now=started, rng=Random(1), discovers=True)
    discovery = Discovery("kv.example:1", 1.0, lookup=lookup)
    node = Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=lambda reason: None, discovery=discovery)
    node._threads.follow = lambda targets: None  # type: ignore[method-assign]
    return node
