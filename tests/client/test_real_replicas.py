"""Both sessions against real replicas: every call, crashes of replicas, and the recorded history."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from causeway_client import (
    BadExport,
    Delete,
    JsonLines,
    Patch,
    PreconditionFailed,
    Put,
    Rejected,
    Session,
    Unavailable,
    Uncertain,
    WrongType,
)
from kvsite.cluster import LocalCluster
from tests.support.blocking import SESSIONS
from tests.support.ports import free_ports
from tests.support.waiting import wait_until
from tools import history

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, free_ports(3)) as running:
        yield running


@pytest.fixture(params=SESSIONS, scope="module")
def session(cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Session]:
    with SESSIONS[request.param](cluster.addresses, timeout_s=20) as opened:
        yield opened


KEYS = [
    "a/b",
    "..",
    ".",
    "../x",
    "a//b",
    "/",
    "a/",
    "%",
    "%2e",
    "%2F",
    "ä☃\U0001f600",
    "a b?c#d",
    "\n",
    "+",
    '"',
    "\x00",
]


@pytest.mark.parametrize("key", KEYS)
def test_any_text_can_be_a_key(session: Session, key: str) -> None:
    assert session.put(key, key).created
    assert session.get(key).value == key
    assert key in session.list(limit=1000).keys
    assert session.delete(key).deleted
    assert not session.get(key).found


@pytest.mark.parametrize(
    "value", [None, True, 0, -(2**63), 2**64 - 1, 1.5, 1e-300, "", "\x00\u2028", [], {}, {"a": [None, {"b": "ü"}]}]
)
def test_values_are_returned_unchanged(session: Session, value: object) -> None:
    session.put("value", value)
    read = session.get("value")
    assert (read.found, read.value, type(read.value)) == (True, value, type(value))


def test_session_reads_its_writes_at_any_replica(session: Session) -> None:
    for n in range(60):
        session.stick_to(session.replicas[n % 3])
        session.put("hop", n)
        session.stick_to(session.replicas[(n + 1) % 3])
        assert session.get("hop").value == n


def test_conditions(session: Session) -> None:
    first = session.put("conditional", 1, if_none_match=True)
    assert session.get("conditional").etag == first.etag
    with pytest.raises(PreconditionFailed) as caught:
        session.put("conditional", 2, if_none_match=True)
    assert caught.value.etag == first.etag
    second = session.put("conditional", 2, if_match=first.etag)
    assert not second.created
    with pytest.raises(PreconditionFailed):
        session.delete("conditional", if_match=first.etag)
    assert session.delete("conditional", if_match=second.etag).deleted
    with pytest.raises(Rejected):
        session.put("k" * 513, 1)


def test_transactions_and_listings(session: Session) -> None:
    session.put("t/old", 0)
    done = session.transaction(["t/old", "t/none"], [Put("t/1", 1), Put("t/2", None), Delete("t/old")])
    assert (done.values, done.missing_keys) == ({"t/old": 0}, ("t/none",))
    session.stick_to(session.replicas[1])
    assert session.list(prefix="t/").keys == ("t/1", "t/2")
    pages = list(session.pages(prefix="t/", limit=1, values=True))
    assert [dict(page.items) for page in pages] == [{"t/1": 1}, {"t/2": None}]
    assert session.list(prefix="t/", conflicts=True).keys == ()


def test_watch(session: Session) -> None:
    etag = session.put("watched", 1).etag
    assert etag is not None
    started = time.monotonic()
    assert session.watch("watched", etag, wait_s=0.3) is None
    assert time.monotonic() - started >= 0.3
    with session.fork() as other:
        other.stick_to(session.replicas[2])
        timer = threading.Timer(0.2, other.put, ("watched", 2))
        timer.start()
        read = session.watch("watched", etag, wait_s=10)
        timer.join()
    assert read is not None
    assert read.value == 2


def test_values_that_merge(session: Session) -> None:
    session.delete_range("m/")
    assert session.increment("m/counter", 5).created
    session.stick_to(session.replicas[1])
    assert not session.increment("m/counter", -2).created
    assert (session.get("m/counter").value, session.get("m/counter").type) == (3, "counter")
    session.add("m/set", ["tea", 1], ttl_s=60)
    session.remove("m/set", ["tea"])
    assert session.get("m/set").value == [1]
    assert session.remove("m/none", ["x"]).absent
    session.update_fields("m/map", {"a": 1, "b": [None]})
    session.update_fields("m/map", unset=["a"])
    assert session.get("m/map").value == {"b": [None]}
    with pytest.raises(WrongType):
        session.increment("m/set")
    session.transaction(["m/counter"], [Patch("m/counter", increment=10), Put("m/plain", 0)])
    assert session.get("m/counter").value == 13


def test_touch_renews_and_clears_a_ttl(session: Session) -> None:
    session.put("touched", [1], ttl_s=60)
    assert not session.touch("touched", 600).absent
    expires = session.get("touched").expires
    assert expires is not None
    assert expires > time.time() + 500
    session.touch("touched", None)
    assert (session.get("touched").expires, session.get("touched").value) == (None, [1])
    assert session.touch("never written", 5).absent


def test_bytes_are_returned_unchanged(session: Session) -> None:
    for content in (b"", bytes(range(256)) * 100):
        session.put("bytes", content)
        assert session.get("bytes").value == content
    assert session.list(prefix="bytes", values=True).items == {"bytes": bytes(range(256)) * 100}


def test_an_export_is_one_snapshot_that_follows_the_session(session: Session) -> None:
    session.delete_range("e/")
    expected = {f"e/{n}": "v" * 500 + str(n) for n in range(400)}
    session.transaction(writes=[Put(key, value) for key, value in expected.items()])
    session.put("e/bytes", b"\xff", ttl_s=600)
    session.add("e/set", ["tea"])
    with session.fork() as other:
        session.stick_to(session.replicas[1])  # It has to wait for the writes.
        exported = session.export("e/")
        found = [next(exported)]
        changed = other.put("e/set", "changed after the first key").etag
        found += exported
    by_key = {each.key: each for each in found}
    assert len(by_key) == len(found) == 402
    assert {key: by_key[key].value for key in expected} == expected
    version = by_key["e/bytes"].versions[0]
    assert (version.value, version.type) == (b"\xff", "bytes")
    assert version.expires == session.get("e/bytes").expires
    assert (by_key["e/set"].value, by_key["e/set"].versions[0].type) == (["tea"], "set")
    assert changed is not None
    assert list(session.export("none of this name/")) == []


def test_a_session_does_not_go_back_behind_an_export(cluster: LocalCluster, session: Session) -> None:
    with Session(cluster.addresses[:1]) as writer:
        writer.put("exported", 1)
        own = {name: n for name, n in writer.metadata.items() if name.startswith(f"{cluster.addresses[0]}@")}
    with session.fork(metadata={}) as reader:
        reader.stick_to(reader.replicas[1])
        wait_until(lambda: list(reader.export("exported")))
        assert all(reader.metadata[name] >= n for name, n in own.items())


@pytest.mark.parametrize("kind", SESSIONS)
def test_an_export_of_a_replica_that_dies_meanwhile_is_not_complete(kind: str) -> None:
    with LocalCluster(2, free_ports(2)) as cluster, SESSIONS[kind](cluster.addresses, timeout_s=20) as session:
        for n in range(24):  # more than the buffers between the processes take
            session.put(f"large/{n:02}", "v" * 1_000_000)
        assert session.put("large/last", 1, w="all", w_timeout_s=20).acks == 2
        exported = session.export("large/")
        next(exported)
        cluster.kill(0)
        with pytest.raises(BadExport, match="of 25 keys"):
            list(exported)
        assert len(list(session.export("large/"))) == 25, "from the other replica"
        assert session.replica == session.replicas[1]


def test_concurrent_updates_are_all_applied(session: Session) -> None:
    """Ten updates by each of four clients at one replica: conditions fail, and the clients read again."""
    session.put("sum", 0)

    def add_ten(client: Session) -> None:
        with client:
            for _ in range(10):
                client.update("sum", lambda read: sum(read.values) + 1)

    threads = [threading.Thread(target=add_ten, args=(session.fork(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: session.get("sum").value == 40)


def test_update_resolves_a_conflict(cluster: LocalCluster, session: Session) -> None:
    session.delete("conflict")
    with Session(cluster.addresses[:1]) as one, Session(cluster.addresses[1:2]) as two:
        while session.get("conflict", siblings=True).conflicts < 2:  # until neither has seen the other
            one.put("conflict", ["one"])
            two.put("conflict", ["two"])
    session.update("conflict", lambda read: sorted(item for value in read.values for item in value))
    read = session.get("conflict")
    assert (read.value, read.conflicts) == (["one", "two"], 1)


def test_ttl_expires(session: Session) -> None:
    session.put("short", 1, ttl_s=0.3)
    assert session.get("short").found
    wait_until(lambda: not session.get("short").found)


def test_threads_share_a_session(session: Session) -> None:
    def work(number: int) -> None:
        for n in range(20):
            session.put(f"thread/{number}", n)
            session.stick_to(session.replicas[(number + n) % 3])
            assert session.get(f"thread/{number}").value == n

    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:  # noqa: BLE001  (checked below)
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_recorded_history_over_a_crash_is_causal(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with JsonLines(path) as recorder:
        # The writers do not use the last replica, which is killed: updates that only it had would be lost.
        writers = [Session(cluster.addresses[:2], recorder=recorder, name=f"writer{n}", timeout_s=20) for n in range(2)]
        readers = [Session(cluster.addresses, recorder=recorder, name=f"reader{n}", timeout_s=20) for n in range(2)]
        stop = threading.Event()

        def read(session: Session) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                session.stick_to(session.replicas[n % 3])
                session.transaction(["h/0", "h/1", "h/2"]) if n % 2 else session.get(f"h/{n % 3}")

        threads = [threading.Thread(target=read, args=(session,)) for session in readers]
        for thread in threads:
            thread.start()
        for n in range(300):
            writer = writers[n % 2]
            if n % 5 == 0:
                writer.transaction(["h/0"], [Put("h/0", f"a{n}"), Put("h/1", f"b{n}")])
            else:
                writer.put(f"h/{n % 3}", n)
            if n == 150:
                cluster.kill(2)
                cluster.start_one(2)
            if n % 30 == 29:
                writer.stick_to(writer.replicas[n % 2])
        cluster.wait_ready()
        stop.set()
        for thread in threads:
            thread.join()
        for session in [*writers, *readers]:
            session.close()
    report = history.check(history.load(path.read_bytes()))
    assert report.ok, str(report)
    assert report.reads > 300


def test_unknown_dependencies_are_reported_lost_or_deferred(cluster: LocalCluster) -> None:
    """A response never ignores a dependency silently."""
    stranger = {f"{cluster.addresses[0]}@00000000000000ff": 3}
    with Session(cluster.addresses[:1], metadata=stranger, timeout_s=2) as session:
        try:
            read = session.get("nothing")
        except Unavailable:
            return
        assert set(read.lost) == set(stranger)
        assert session.metadata.keys() & stranger.keys() == set()


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_session_moves_on_from_a_replica_that_hangs(cluster: LocalCluster, kind: str) -> None:
    """A paused process looks like a replica behind a partition: connections are accepted, and nothing is answered."""
    with SESSIONS[kind](cluster.addresses, timeout_s=20, attempt_timeout_s=1.5) as session:
        session.put("before", 1, w="all", w_timeout_s=10)
        hanging = session.replica
        with cluster.while_paused(session.replicas.index(hanging)):
            with pytest.raises(Uncertain):
                session.put("hang", 1)
            assert session.get("before").value == 1
            assert session.replica != hanging
            began_s = time.monotonic()
            for n in range(20):
                session.put("hang", n)
            assert session.get("hang").value == 19
            assert time.monotonic() - began_s < 1.5, "the session does not ask the hanging replica again"
        cluster.wait_ready()
        session.stick_to(hanging)
        assert session.get("hang", wait_s=10).found


@pytest.mark.slow
def test_clients_notice_no_crash_of_replicas_in_turn(tmp_path: Path) -> None:
    """Neither session raises an error when replicas crash or drain, and the recorded history keeps all promises.

    Each write waits for a second replica (w=2), because updates that only a killed process had would be lost. A write
    with an unknown outcome is sent again. That is safe, because each key has a single writer.
    """
    path, stop = tmp_path / "history.jsonl", threading.Event()
    failures: list[BaseException] = []
    counts = dict.fromkeys(range(6), 0)
    kinds = [*SESSIONS.values()]
    with LocalCluster(3, free_ports(3)) as cluster, JsonLines(path) as recorder:

        def work(number: int) -> None:
            addresses = [*cluster.addresses[number % 3 :], *cluster.addresses[: number % 3]]
            options = {"retry_writes": True, "timeout_s": 30.0, "recorder": recorder, "name": f"s{number}"}
            try:
                with kinds[number % 2](addresses, **options) as session:
                    while not stop.is_set():
                        counts[number] += 1
                        session.put(f"h/{number}", f"{number}-{counts[number]}", w=2, w_timeout_s=10)
                        session.get(f"h/{(number + counts[number]) % 6}")
                        session.transaction([f"h/{n}" for n in range(6)])
                        session.stick_to(session.replicas[counts[number] % 3])
            except BaseException as exc:  # noqa: BLE001  (checked below)
                failures.append(exc)

        def has_progressed(goals: dict[int, int]) -> int:
            return sum(counts[number] >= goal for number, goal in goals.items())

        def wait_for_progress(*, by_all: bool = True) -> None:
            """Wait until each client has made three more rounds, or one has failed.

            Not ``by_all``: after ten seconds, one client is enough. Another one may have read, in its last moment, an
            update that only the killed process had. It waits for that process, or for the next one at its address.
            """
            goals = {number: count + 3 for number, count in counts.items()}
            enough_s = time.monotonic() + (60 if by_all else 10)
            # A call may take its 10 s for acks, so three of them take 30 s before anything hangs.
            wait_until(
                lambda: failures or has_progressed(goals) >= (6 if time.monotonic() < enough_s else 1),
                timeout_s=60,
                what=lambda: (counts, goals, [cluster.log(i)[-600:] for i in range(3)]),
            )

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for victim, end in ((1, cluster.kill), (2, cluster.terminate), (0, cluster.kill), (1, cluster.terminate)):
            wait_for_progress()
            end(victim)
            wait_for_progress(by_all=False)
            cluster.start_one(victim)
            cluster.wait_ready()
        wait_for_progress()
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert min(counts.values()) > 20
    report = history.check(history.load(path.read_bytes()))
    assert report.ok, str(report)
