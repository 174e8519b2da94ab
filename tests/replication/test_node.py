"""Peer threads: which of them a write wakes, and how the node measures how late they wake by themselves."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest

from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.peer_thread import AWAKE, PeerThread
from replication.replica import Replica
from store.engine import Change, Engine, read_clocks

OWN, PEER = "127.0.0.1:1", "127.0.0.1:2"


class Wakeup:
    def __init__(self) -> None:
        self.calls = 0

    def set(self) -> None:
        self.calls += 1

    def clear(self) -> None:
        """A thread looks what is due."""

    def wait(self, timeout_s: float) -> bool:
        """A thread goes to sleep, and somebody wakes it."""
        return True


@pytest.fixture
def node() -> Node:
    """A node that was never started: it has a member, and no threads but those that a test says it has."""
    replica = Replica(OWN, [], now=read_clocks(), rng=Random(1))
    replica.add_replica_from_view(PEER, read_clocks())
    replica.tick(read_clocks())

    def failed(reason: str) -> None:
        raise AssertionError(reason)

    return Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=failed)


def sleeper(node: Node, sleeps_until_s: float) -> Any:
    """Return a peer thread that is not started, as one that sleeps until ``sleeps_until_s``."""
    peer_thread: Any = PeerThread(PEER, node._threads, node._context)
    peer_thread.wakeup = Wakeup()
    peer_thread.sleeps_until_s = sleeps_until_s
    node._threads._by_address[PEER] = peer_thread
    return peer_thread


def test_a_write_wakes_the_thread_that_would_sleep_too_long_once(node: Node) -> None:
    now_s = read_clocks().mono_s
    peer_thread = sleeper(node, now_s + 60)
    node.engine.write(Change("x", b"1"), {})
    assert (peer_thread.wakeup.calls, peer_thread.sleeps_until_s) == (1, AWAKE)
    node.engine.write(Change("x", b"2"), {})
    assert peer_thread.wakeup.calls == 1, "it has been told already"


def test_a_write_leaves_a_thread_alone_whose_next_exchange_comes_soon_enough(node: Node) -> None:
    outgoing = node.replica.begin(PEER, read_clocks())
    assert outgoing is not None
    peer_thread = sleeper(node, read_clocks().mono_s + 60)
    node.engine.write(Change("x", b"1"), {})
    assert peer_thread.wakeup.calls == 0, "an exchange is under way: what comes next is seen when it is over"
    node.replica.failed(PEER, outgoing.serial, read_clocks())
    peer = node.replica.peers.find(PEER)
    assert peer is not None
    peer_thread.sleeps_until_s = peer.schedule.next_sync_s
    node.engine.write(Change("x", b"2"), {})
    assert peer_thread.wakeup.calls == 0, "after a failure only the timer calls"


def test_threads_are_looked_at_only_where_one_may_sleep_that_has_nothing_to_bring(node: Node) -> None:
    looked: list[str] = []
    due_at = node.replica.due_at
    node.replica.due_at = lambda address, now: looked.append(address) or due_at(address, now)  # type: ignore[method-assign,func-returns-value]
    peer_thread = sleeper(node, AWAKE)
    node.engine.write(Change("x", b"1"), {})
    peer_thread.sleeps_until_s = read_clocks().mono_s + 60
    looked.clear()
    node.engine.write(Change("x", b"2"), {})
    assert not looked, "nobody has gone to sleep since"

    outgoing = node.replica.begin(PEER, read_clocks())
    assert outgoing is not None, "both writes leave"
    node.engine.write(Change("x", b"3"), {})
    node.replica.failed(PEER, outgoing.serial, read_clocks())
    peer_thread.turn()
    looked.clear()
    node.engine.write(Change("x", b"4"), {})
    assert not looked, "the third write waits for its time, and the fourth with it"

    peer = node.replica.peers.find(PEER)
    assert peer is not None
    peer.acked.sent = 4
    peer_thread.turn()
    looked.clear()
    node.engine.write(Change("x", b"5"), {})
    assert looked, "the thread has gone to sleep with nothing to bring"


LATE_S = 0.02


class Alarm(Wakeup):
    """Of a thread that nobody wakes, and that wakes late."""

    def wait(self, timeout_s: float) -> bool:
        time.sleep(timeout_s + LATE_S)
        return False


@pytest.mark.parametrize(("wakeup", "late_s"), [(Alarm, LATE_S), (Wakeup, 0.0)])
def test_how_late_threads_wake_paces_exchanges_and_those_that_are_woken_do_not_count(
    node: Node, wakeup: type[Wakeup], late_s: float
) -> None:
    node.replica.due_at = lambda address, now: now.mono_s + 0.001  # type: ignore[method-assign]
    peer_thread = sleeper(node, AWAKE)
    peer_thread.wakeup = wakeup()
    for _ in range(8):
        peer_thread.turn()
    seen_s = node.replica.pacing.wakeup_delay_s(read_clocks().mono_s)
    assert late_s <= seen_s <= 10 * late_s
