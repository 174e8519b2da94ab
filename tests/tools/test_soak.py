"""A short soak run, and the rules by which it excuses rejections. `make soak` runs for longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tools.history import Kind, Operation
from tools.netns.client import status
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import QUICK
from tools.soak.clients import Client, RoundContext
from tools.soak.counts import Recorder
from tools.soak.faults import KINDS
from tools.soak.growth import Growth
from tools.soak.losses import Losses
from tools.soak.reachability import CUT_OFF, JUST_HEALED, LOST, NO_EXCUSE, PACKETS_LOST, RELAYED, Reachability
from tools.soak.report import MIN_SUCCESS, report, success
from tools.soak.results import Results
from tools.soak.run import soak
from tools.soak.storm import LOG_BYTES
from tools.soak.strangers import Strangers
from tools.soak.timeline import Timeline


@pytest.mark.parametrize(
    ("kind", "completed", "problems"), [("get", 9.0, 1), ("changes", 9.0, 1), ("changes", None, 0)]
)
def test_a_read_after_a_kill_proves_that_a_replica_had_an_update_but_a_late_event_does_not(
    kind: Kind, completed: float | None, problems: int, tmp_path: Path
) -> None:
    """Replica 0 answers a write and is killed at once. Then somebody reads the write there. Events may be late."""
    results = Results(tmp_path, Timeline(2))
    results.timeline.kills[0] = [5.0]
    operations = [
        Operation("a", "put", writes=(("x", "1"),), id="write", update="a:1@1:1", replica="http://a:1"),
        Operation(
            "b", kind, reads=(("x", "1"),), id="read", versions=("a:1@1:1",), replica="http://a:1", completed=completed
        ),
    ]
    marked = Losses(results, ["http://a:1", "http://b:1"], {"write": 4.9, "read": 9.0}).mark_lost(operations, {})
    assert marked[0].status == "lost"
    assert len(results.problems) == problems


@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.alone
def test_no_violation_under_all_faults_at_once_and_99_percent_of_requests_succeed(tmp_path: Path) -> None:
    """Contract P1 to P5, 2.8: no violation, all replicas converge within 10 s of the heal, and metadata gets short."""
    lines: list[str] = []
    results = soak(25, replicas=4, directory=tmp_path / "soak", say=lines.append)
    output = "\n".join([*lines, report(results), *results.problems])
    assert results.problems == [], output
    assert results.counts.acknowledged > 300, output
    kinds = {fault.kind for fault in results.timeline.faults}
    assert kinds >= set(KINDS), f"missing: {set(KINDS) - kinds}\n{output}"
    assert results.guests, output
    assert results.strangers_removed > 10, output
    assert results.counts.storm_bytes > LOG_BYTES, output
    assert results.counts.feed["responses"] > 50, output
    assert results.counts.feed["incomplete"] > 0, output
    assert sum(results.growth.snapshots.values()) > 0, output
    shares = success(results.counts)
    assert shares.requests >= MIN_SUCCESS, output
    assert shares.calls >= MIN_SUCCESS, output


@pytest.mark.netns
@pytest.mark.slow
def test_a_guest_joins_serves_a_client_and_leaves_for_good(tmp_path: Path) -> None:
    """In a soak, faults may keep a guest from joining before it leaves again."""
    timeline = Timeline(2)
    results, recorder = Results(tmp_path, timeline), Recorder()
    with NetnsCluster(2, QUICK, tmp_path, guests=True) as cluster:
        context = RoundContext(
            replicas=cluster.addresses,
            prefix="r1/",
            timeline=timeline,
            counts=results.counts,
            reachability=Reachability(timeline, healing_s=1.0, relay_s=1.0),
            recorder=recorder,
            note=results.note,
            problem=results.problem,
            is_over=lambda: False,
        )
        context.clients.append(Client(context, "c0", Random(1)))
        Strangers(cluster, results, context, context.is_over).guest("drained", Random(1), 0)
        members = {member["address"]: member["state"] for member in status(cluster, 0)["view"]}
        context.clients[0].close()
    guest = results.guests[0].removeprefix("http://")
    assert members.pop(guest) != "alive"
    assert set(members.values()) == {"alive"}
    assert results.counts.guest_operations > 0
    assert len(recorder.operations) >= results.counts.guest_operations
    assert results.strangers_removed == 1
    assert results.problems == []


MB = 1_000_000


def growth_of(
    rounds: int, *, memory: Callable[[int], int], data: Callable[[int], int] = lambda n: MB, metadata: int = 2
) -> Growth:
    """Return the figures of a run of two replicas. ``memory`` and ``data``: round, from 1, -> bytes."""
    growth = Growth()
    for n in range(1, rounds + 1):
        status = {
            "replica_id": "a@1",
            "memory_bytes": memory(n),
            "data_bytes": data(n),
            "view": [{"state": "left"}, {"state": "up"}],
            "clock": {"a@1": n},
            "snapshots": {"taken": 0},
        }
        growth.end_round(n, [status, status], metadata)
    return growth


def test_memory_that_varies_from_round_to_round_is_flat() -> None:
    assert growth_of(30, memory=lambda n: (80 + n % 7 * 3) * MB).problems(replicas=2) == []


def test_memory_that_grows_by_two_megabytes_in_each_round_is_a_problem_at_each_replica() -> None:
    first, second = growth_of(30, memory=lambda n: (80 + 2 * n) * MB).problems(replicas=2)
    assert (
        first == "replica 0: memory grew from 100 MB in the first third of the run to 140 MB in the last, data by 0 MB"
    )
    assert second.startswith("replica 1")


def test_old_processes_compare_with_themselves_and_restarted_ones_with_all() -> None:
    """A replica that was young in the first third may get as large as an old one was. The old one may not grow."""
    growth = growth_of(30, memory=lambda n: 100 * MB)
    for n, sample in enumerate(growth.samples):
        if sample.replica == 1 and sample.round <= 10:
            growth.samples[n] = replace(sample, memory_bytes=70 * MB)
    assert growth.problems(replicas=2) == []
    growth.oldest = 1
    assert len(growth.problems(replicas=2)) == 1


def test_memory_may_grow_with_the_data() -> None:
    growth = growth_of(30, memory=lambda n: (80 + 2 * n) * MB, data=lambda n: 2 * n * MB)
    assert growth.problems(replicas=2) == []


def test_metadata_of_more_than_two_entries_per_member_is_a_problem() -> None:
    assert growth_of(2, memory=lambda n: MB, metadata=4).problems(replicas=2) == []
    problems = growth_of(2, memory=lambda n: MB, metadata=5).problems(replicas=2)
    assert problems[0] == "round 1: the metadata of clients has 5 entries 10 s after the heal"


class WaitingRequest:
    """Four replicas. A request at replica 0 waits from second 100 to 100.2 for update 7 of replica 3.

    ``at`` sets the clock.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.timeline = Timeline(4)
        self.reachability = Reachability(self.timeline, healing_s=2.0, relay_s=0.4)
        self.at(0)
        self.reachability.record_clock(3, 0, {"d@1": 7})

    def at(self, now_s: float) -> None:
        self._monkeypatch.setattr("time.monotonic", lambda: now_s)

    def reason(self, counter: int = 7) -> str:
        return self.reachability.reason(0, 100.0, 100.2, {"d@1": counter})


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> WaitingRequest:
    return WaitingRequest(monkeypatch)


def test_a_rejection_has_no_excuse_if_a_path_was_connected_all_the_time(waiting: WaitingRequest) -> None:
    assert waiting.reason() == NO_EXCUSE


def test_an_update_that_no_replica_has_is_an_excuse(waiting: WaitingRequest) -> None:
    assert waiting.reason(counter=8) == LOST
    waiting.reachability.record_death(3)
    assert waiting.reason() == LOST
    waiting.reachability.record_clock(3, 0, {"d@1": 7})
    assert waiting.reason() == LOST, "a response from before the kill says nothing about the new process"
    waiting.reachability.record_clock(3, 1, {"d@1": 7})
    assert waiting.reason() == NO_EXCUSE


def test_a_cut_is_an_excuse_while_it_lasts_and_during_the_healing_time(waiting: WaitingRequest) -> None:
    cuts = {(a, 3): "packets" for a in range(3)}
    waiting.at(90)
    waiting.reachability.record_links(cuts, lossy=False)  # type: ignore[arg-type]
    assert waiting.reason() == CUT_OFF
    waiting.at(97)
    waiting.reachability.record_links({}, lossy=False)
    assert waiting.reason() == NO_EXCUSE
    waiting.reachability.record_links(cuts, lossy=False)  # type: ignore[arg-type]
    waiting.at(99)
    waiting.reachability.record_links({}, lossy=False)
    assert waiting.reason() == JUST_HEALED
    assert waiting.reachability.connected_for_s(0, 100.0, 100.2, {"d@1": 7}) == pytest.approx(1.2)


def test_a_path_through_other_replicas_takes_time_and_ends_where_they_are_stopped(waiting: WaitingRequest) -> None:
    waiting.at(90)
    waiting.reachability.record_links({(3, 0): "packets"}, lossy=False)
    assert waiting.reason() == RELAYED
    assert waiting.reachability.reason(0, 100.0, 101.0, {"d@1": 7}) == NO_EXCUSE
    for i in (1, 2):
        waiting.timeline.mark_unavailable(i, stopped=True)
    assert waiting.reason() == CUT_OFF


def test_a_replica_that_received_the_update_while_the_request_waited_does_not_count(waiting: WaitingRequest) -> None:
    waiting.at(90)
    waiting.reachability.record_links({(3, 0): "packets"}, lossy=False)
    waiting.at(100.1)
    waiting.reachability.record_clock(1, 0, {"d@1": 7})
    assert waiting.reason() == RELAYED
    assert waiting.reachability.reason(0, 100.15, 100.2, {"d@1": 7}) == NO_EXCUSE


def test_requests_in_one_direction_are_enough_to_connect(waiting: WaitingRequest) -> None:
    waiting.at(90)
    waiting.reachability.record_links({(a, 3): "requests" for a in range(3)}, lossy=False)
    assert waiting.reason() == NO_EXCUSE
    waiting.reachability.record_links({(a, b): "requests" for a in range(4) for b in range(4)}, lossy=False)
    assert waiting.reason() == CUT_OFF


def test_packet_loss_is_an_excuse(waiting: WaitingRequest) -> None:
    waiting.at(90)
    waiting.reachability.record_links({}, lossy=True)
    assert waiting.reason() == PACKETS_LOST
