"""Sessions of the Python client, while the replicas that they talk to are cut apart."""

from __future__ import annotations

import pytest

from causeway_client import Read, Unavailable
from tests.support.blocking import SESSIONS
from tests.support.waiting import wait_until
from tools.netns.client import has_converged
from tools.netns.cluster import NetnsCluster

pytestmark = pytest.mark.parametrize("kind", SESSIONS)


def test_a_session_returns_its_own_write_or_nothing(trio: NetnsCluster, kind: str) -> None:
    """Contract P2: replicas on the other side answer from no older state, and the session looks for one that can."""
    key = f"own/{kind}"
    with SESSIONS[kind](trio.addresses, timeout_s=20, attempt_timeout_s=5) as session:
        session.put(key, "before", w="all", w_timeout_s=10)
        alone = session.replicas[0]
        session.stick_to(alone)
        trio.partition([0], [1, 2])
        session.put(key, "alone")
        session.stick_to(session.replicas[1])
        assert session.get(key, wait_s=0.2).value == "alone"
        assert session.replica == alone
        hasty = SESSIONS[kind](trio.addresses, timeout_s=3, metadata=session.metadata)
        with hasty, trio.while_paused(0), pytest.raises(Unavailable):
            hasty.get(key, wait_s=0.2)
        trio.heal()
        session.stick_to(session.replicas[2])
        wait_until(lambda: has_converged(trio), timeout_s=20)
        assert session.get(key, wait_s=5).value == "alone"
        assert session.replica == session.replicas[2]


def test_a_session_says_that_too_few_replicas_have_a_write(trio: NetnsCluster, kind: str) -> None:
    key = f"few/{kind}"
    with SESSIONS[kind](trio.addresses, timeout_s=10) as session:
        session.put(key, 0, w="all", w_timeout_s=10)
        session.stick_to(session.replicas[0])
        trio.isolate(0)
        written = session.put(key, 1, w="majority", w_timeout_s=0.3)
        assert (written.concern_met, written.acks) == (False, 1)
        session.stick_to(session.replicas[1])
        trio.heal()
        assert session.get(key, wait_s=10).value == 1


def test_updates_on_both_sides_become_one(trio: NetnsCluster, kind: str) -> None:
    """``update`` on each side of a partition: the next one gets both values, and nothing is lost."""
    key = f"both/{kind}"

    def with_item(read: Read, item: str) -> list[str]:
        return sorted({*(each for value in read.values for each in value), item})

    with SESSIONS[kind](trio.addresses, timeout_s=10) as one, SESSIONS[kind](trio.addresses, timeout_s=10) as other:
        one.put(key, [], w="all", w_timeout_s=10)
        one.stick_to(one.replicas[0])
        other.stick_to(other.replicas[1])
        trio.partition([0], [1, 2])
        one.update(key, lambda read: with_item(read, "one"))
        other.update(key, lambda read: with_item(read, "other"))
        one.increment(f"{key}/count", 2)
        other.increment(f"{key}/count", 3)
        trio.heal()
        wait_until(lambda: has_converged(trio), timeout_s=20)
        assert one.get(key).conflicts == 2
        one.update(key, lambda read: with_item(read, "last"))
        assert one.get(key).value == ["last", "one", "other"]
        assert one.get(f"{key}/count").value == 5
