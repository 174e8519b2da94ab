"""Followers of the change feed while replicas are killed and cut off: they miss nothing and are told nothing twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from causeway_client import ClientError, Session
from tests.cluster.support import heal_and_converge
from tests.support.waiting import wait_until
from tools import history
from tools.event_stream import BROKEN, StreamFollower
from tools.netns.cluster import NetnsCluster

PREFIX = "feed/"
EACH = 20
"""Keys that are written between two faults, half of them at each of two replicas."""


class Recorder:
    """Keeps the operations of all sessions, in the order in which they ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operations: list[dict[str, Any]] = []

    def __call__(self, operation: Mapping[str, Any]) -> None:
        with self._lock:
            self._operations.append(dict(operation))

    def operations(self) -> list[history.Operation]:
        with self._lock:
            return [msgspec.convert(each, history.Operation) for each in self._operations]

    def told(self, session: str) -> Counter[str]:
        """Return how often a follower was told each key, resets not counted."""
        return Counter(
            key for each in self.operations() if each.session == session and not each.reset for key, _ in each.reads
        )

    def known(self, session: str) -> set[str]:
        """Return the keys that a follower was told."""
        return {key for each in self.operations() if each.session == session for key, _ in each.reads}


def poll(addresses: list[str], recorder: Recorder, is_over: Callable[[], bool]) -> None:
    """Follow by long polls, at the first replica until it fails, then at the next one."""
    with Session(addresses, recorder=recorder, name="poller", attempt_timeout_s=1.5) as session:
        token = ""
        while not is_over():
            try:
                token = next(session.changes(PREFIX, since=token, wait_s=0.5)).next
            except ClientError:
                time.sleep(0.05)


def stream(addresses: list[str], recorder: Recorder, is_over: Callable[[], bool]) -> None:
    """Follow by server-sent events, at one replica until it fails or is silent, then at the next one."""
    follower, number = StreamFollower("streamer", PREFIX, recorder), 0
    while not is_over():
        try:
            for _ in follower.follow(f"http://{addresses[number % len(addresses)]}", timeout_s=1.0):
                if is_over():
                    return
        except BROKEN:
            pass
        number += 1


def write(recorder: Recorder, addresses: list[str], first: int, w: int) -> None:
    """Write ``EACH`` new keys, each acknowledged by ``w`` members."""
    with Session(addresses, recorder=recorder, name=f"writer{first}", retry_writes=True) as session:
        for number in range(first, first + EACH):
            written = session.put(f"{PREFIX}{number:04}", number, w=w, w_timeout_s=5)
            assert written.concern_met


def test_followers_miss_and_double_nothing_while_replicas_are_killed_and_cut_off(trio: NetnsCluster) -> None:
    """Contract 2.9: a token works at every replica. The histories of all sessions are checked too."""
    recorder, over = Recorder(), threading.Event()
    a, b, c = trio.addresses
    threads = [threading.Thread(target=follow, args=([a, b, c], recorder, over.is_set)) for follow in (poll, stream)]
    followers = ("poller", "streamer")

    def all_told(count: int) -> bool:
        return all(len(recorder.known(name)) == count for name in followers)

    try:
        for thread in threads:
            thread.start()
        write(recorder, [b], 0, w=3)
        wait_until(lambda: all_told(EACH))
        trio.kill(0)  # Both follow at this replica.
        write(recorder, [b], EACH, w=2)
        wait_until(lambda: all_told(2 * EACH))
        trio.partition([1], [2])  # The followers are at one of them, and may try the other one.
        write(recorder, [b], 2 * EACH, w=1)
        write(recorder, [c], 3 * EACH, w=1)
        heal_and_converge(trio)  # The killed replica starts again, without data.
        write(recorder, [a], 4 * EACH, w=3)
        wait_until(lambda: all_told(5 * EACH))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    operations = recorder.operations()
    final: dict[str, list[history.Value]] = {f"{PREFIX}{number:04}": [number] for number in range(5 * EACH)}
    for report in (history.check(operations), history.check_feeds(operations, final)):
        assert report.ok, str(report)
    for name in followers:
        assert max(recorder.told(name).values()) == 1, recorder.told(name).most_common(3)
        used = {each.replica for each in operations if each.session == name}
        assert len(used) > 1, used
