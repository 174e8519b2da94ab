"""``GET /export``: one causal snapshot as a stream, within the bounds of large responses (contract 4)."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from store.api import export, exports, large_responses
from store.api.exports import MAX_EXPORTS
from store.api.large_responses import OpenStream
from store.causal import CausalStore
from store.clock import Clock
from store.cuts import OVERTAKEN, STEP_KEYS
from store.engine import Change, Engine, LoneReplica, read_clocks
from store.export_file import BadExport, ExportReader
from store.settings import RequestLimits
from store.versions import Update, Write
from tests.support.api import OWN_ID, PEER_ID, Api, api, fresh_api, make_store
from tests.support.waiting import wait_until

__all__ = ["api"]


def lines_of(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def exported(api: Api, path: str = "/export", headers: dict[str, str] | None = None) -> bytes:
    with closing(api.open(path, headers or {})) as body:
        return b"".join(body)


def keys_of(data: bytes) -> dict[str, Any]:
    """Return key -> the values of its versions. The export is complete."""
    found = {}
    for line in ExportReader(io.BytesIO(data)).lines():
        assert line.key not in found
        found[line.key] = [json.loads(bytes(version.value)) for version in line.versions]
    return found


@pytest.fixture
def large_api() -> Iterator[Api]:
    """A replica with 300 keys of 10 kB."""
    api = fresh_api()
    api.use(limits=RequestLimits(max_body_bytes=100_000, max_value_bytes=50_000, max_response_bytes=100_000))
    for n in range(300):
        assert api.put(f"/kvs/{n:03}", "v" * 10_000).status == 201
    yield api
    assert len(api.context.large_responses) == 0
    assert len(api.context.exports) == 0
    assert api.context.large_responses.bytes == 0


# --- the content -----------------------------------------------------------------------------------------------------


def test_an_export_has_every_key_with_its_values(api: Api) -> None:
    api.put("/kvs/p/a", {"n": 1})
    api.ask("PUT", "/kvs/p/b", {"value": "x", "ttl": 100})
    api.ask("PUT", "/kvs/p/c", raw=b"\x00\x01", content_type="application/octet-stream")
    api.ask("PATCH", "/kvs/p/d", {"increment": 3})
    api.ask("PATCH", "/kvs/p/e", {"add": ["x", 2]})
    api.ask("PATCH", "/kvs/p/f", {"set": {"n": [1]}})
    api.put("/kvs/q", 2)
    api.receive_update("q", b"3")
    head, *lines, last = lines_of(exported(api))
    facts = {"causeway-export": 1, "replica": OWN_ID, "prefix": "", "keys": 7}
    assert facts.items() <= head.items()
    assert head["causal-metadata"] == {OWN_ID: 7, PEER_ID: 1}
    assert head["time"] == pytest.approx(time.time(), abs=60)
    found = {line["key"]: line["versions"] for line in lines}
    assert all(version.pop("timestamp") > 0 for versions in found.values() for version in versions)
    assert found["p/b"][0].pop("expires") == pytest.approx(time.time() + 100, abs=60)
    assert found == {
        "p/a": [{"value": {"n": 1}}],
        "p/b": [{"value": "x"}],
        "p/c": [{"value": "AAE=", "encoding": "base64"}],
        "p/d": [{"value": 3, "type": "counter"}],
        "p/e": [{"value": [2, "x"], "type": "set"}],
        "p/f": [{"value": {"n": [1]}, "type": "map"}],
        "q": [{"value": 3}, {"value": 2}],
    }
    assert last["count"] == 7


def test_versions_that_merge_are_one_value(api: Api) -> None:
    other = make_store()
    other.replica_id = PEER_ID
    peer = Api(other)
    api.ask("PATCH", "/kvs/n", {"increment": 3})
    peer.ask("PATCH", "/kvs/n", {"increment": 4})
    api.store.receive([_update_of(other)], read_clocks())
    assert keys_of(exported(api)) == {"n": [7]}


def _update_of(store: CausalStore) -> Update:
    version = store.table.get("n")[0]
    return Update(version.origin, version.counter, version.timestamp, {}, (Write("n", version.value),))


def test_only_keys_with_the_prefix(api: Api) -> None:
    for key in ("a", "p", "p/1", "p/2", "q"):
        api.put(f"/kvs/{key}", key)
    head = lines_of(exported(api, "/export?prefix=p/"))[0]
    assert (head["prefix"], head["keys"]) == ("p/", 2)
    assert keys_of(exported(api, "/export?prefix=p/")) == {"p/1": ["p/1"], "p/2": ["p/2"]}
    assert keys_of(exported(api, "/export?prefix=none")) == {}


def test_expired_and_deleted_keys_are_not_in_it(api: Api) -> None:
    api.ask("PUT", "/kvs/a", {"value": 1, "ttl": 0.000001})
    api.put("/kvs/b", 1)
    api.delete("/kvs/b")
    wait_until(lambda: api.get("/kvs/a").status == 404)
    assert keys_of(exported(api)) == {}


def test_headers_and_methods(api: Api) -> None:
    head = api.ask("HEAD", "/export")
    assert (head.status, head.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert head.headers["Cache-Control"] == "no-store"
    assert len(api.context.exports) == 0
    assert api.ask("POST", "/export", {}).status == 405
    for path in ("/export?prefix=%FF", "/export?causal-metadata=x", "/export?wait=x"):
        assert api.ask("GET", path).status == 400, path
    assert api.ask("GET", "/export", {"prefix": "a"}).status == 400


def test_django_streams_it_too() -> None:
    api = Api(make_store(), edge=False)
    api.put("/kvs/a", 1)
    response: Any = api._client.get("/export")
    assert response.streaming
    assert keys_of(b"".join(response.streaming_content)) == {"a": [1]}
    response.close()
    assert len(api.context.exports) == 0


def test_an_export_follows_the_causal_past_of_its_client(api: Api) -> None:
    rejected = api.ask("GET", f"/export?causal-metadata={json.dumps({PEER_ID: 1})}&wait=0".replace('"', "%22"))
    assert (rejected.status, rejected.body["missing"]) == (503, {PEER_ID: {"has": 0, "needs": 1}})
    api.receive_update("a", b"1")
    past = {"X-Causal-Metadata": json.dumps({PEER_ID: 1})}
    assert keys_of(exported(api, "/export", past)) == {"a": [1]}
    api.stop_serving()
    assert api.get("/export").status == 503
    assert len(api.context.exports) == 0


def test_the_metadata_is_as_short_as_that_of_other_responses(api: Api) -> None:
    """A client sends it back, so it must not grow with every incarnation that there ever was."""
    api.receive_update("a", b"1", counter=1)
    marker = api.store.issue_marker(api.store_now())
    api.store.markers.promote(api.store.clock, {OWN_ID})
    head, line, _ = lines_of(exported(api))
    assert head["causal-metadata"] == {OWN_ID: marker.counter}
    assert line["key"] == "a"


# --- one causal snapshot ---------------------------------------------------------------------------------------------


class Recorder(LoneReplica):
    """Notes every update that the replica issues."""

    def __init__(self) -> None:
        self.updates: list[Update] = []

    def update_issued(self, update: Update) -> None:
        self.updates.append(update)


def visible(updates: list[Update], clock: Clock) -> dict[str, set[tuple[str, int]]]:
    """Return key -> dots of its versions after exactly the updates in ``clock``, from the updates alone."""
    covered = [update for update in updates if update.counter <= clock.get(update.origin, 0)]
    replaced = {(write.key, dot) for update in covered for write in update.writes for dot in write.replaces}
    found: dict[str, set[tuple[str, int]]] = {}
    for update in covered:
        for write in update.writes:
            if write.value is not None and (write.key, update.dot) not in replaced:
                found.setdefault(write.key, set()).add(update.dot)
    return found


PAIRS = 400


def export_slowly(api: Api, pause: Callable[[], None]) -> bytes:
    """Return an export that is read with a pause after each piece."""
    pieces = []
    with closing(api.open("/export", {})) as body:
        for piece in body:
            pieces.append(piece)
            pause()
    return b"".join(pieces)


def test_an_export_during_writes_and_transactions_is_a_causal_snapshot() -> None:
    """Each value names the update that wrote it. From the updates alone the test knows what a snapshot at the clock of
    the export has to contain: transactions are whole, and no version's past is left out unless it was replaced.
    """
    store, recorder = make_store(), Recorder()
    engine = Engine(store, recorder)
    api = Api(store, engine=engine)
    received: list[Update] = []
    stopped = threading.Event()

    def write_for_ever(seed: int) -> None:
        random = Random(seed)
        past: Clock = {}
        number = 0
        while not stopped.is_set():
            number += 1
            key, kind = f"{random.randrange(PAIRS):04}", random.randrange(5)
            text = f'"{seed}-{number}"'.encode()
            if kind == 0:
                past = engine.write(Change(f"left/{key}", None), past).metadata
            elif kind == 1:
                past = engine.write(Change(f"left/{key}", text), past).metadata
            else:
                pair = [Change(f"left/{key}", text), Change(f"right/{key}", text)]
                past = engine.transact([], pair, past).metadata

    def receive_for_ever() -> None:
        """Apply updates of a peer that know of nothing, so that keys have several versions, or that replace some."""
        random = Random(9)
        while not stopped.is_set():
            with engine.lock:
                key = f"left/{random.randrange(PAIRS):04}"
                dots = tuple(version.dot for version in store.table.get(key)[:1])
                deps = {origin: counter for origin, counter in dots if origin == OWN_ID}
                counter, replaces = len(received) + 1, dots if random.randrange(2) else ()
                write = Write(key, None if replaces and counter % 3 == 0 else b'"peer"', replaces)
                update = Update(PEER_ID, counter, time.time_ns() // 1000, deps, (write,))
                received.append(update)
                store.receive([update], read_clocks())
            stopped.wait(0.0005)

    def wait_for_a_write() -> None:
        before = len(recorder.updates)
        wait_until(lambda: len(recorder.updates) > before, every_s=0.001)

    for n in range(PAIRS):
        pair = [Change(f"{side}/{n:04}", b'"first"') for side in ("left", "right")]
        engine.transact([], pair, {})
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write_for_ever, seed) for seed in range(3)] + [pool.submit(receive_for_ever)]
        try:
            texts = [export_slowly(api, wait_for_a_write) for _ in range(6)]
        finally:
            stopped.set()
        for each in running:
            each.result()
    updates = [*recorder.updates, *received]
    by_dot = {update.dot: update for update in updates}
    written_during = 0
    for text in texts:
        clock = lines_of(text)[0]["causal-metadata"]
        written_during += sum(update.counter > clock.get(update.origin, 0) for update in updates)
        expected = {
            key: sorted(
                json.loads(write.value or b"") for dot in dots for write in by_dot[dot].writes if write.key == key
            )
            for key, dots in visible(updates, clock).items()
        }
        assert {key: sorted(values) for key, values in keys_of(text).items()} == expected
    assert written_during > 1000, "nothing was written meanwhile"


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_few_exports_are_in_progress_at_once(large_api: Api) -> None:
    held = [large_api.open("/export", {}) for _ in range(MAX_EXPORTS)]
    next(held[0])
    rejected = large_api.get("/export")
    assert (rejected.status, rejected.headers["Retry-After"]) == (503, "1")
    assert "exports are in progress" in rejected.body["error"]
    held.pop().close()
    assert len(keys_of(exported(large_api))) == 300
    held.pop().close()


def test_an_export_that_nobody_closes_returns_its_places_when_it_is_garbage(large_api: Api) -> None:
    body = large_api.open("/export", {})
    assert isinstance(body, OpenStream)
    next(body)
    del body
    assert len(large_api.context.exports) == 0


def test_it_is_sent_in_pieces_and_read_in_short_steps(large_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    read_cut = large_api.engine.read_cut

    def counting(*args: Any) -> Any:
        found = read_cut(*args)
        steps.append(len(found))
        return found

    monkeypatch.setattr(large_api.engine, "read_cut", counting)
    with closing(large_api.open("/export", {})) as body:
        pieces = [len(next(body))]
        assert sum(steps) < 20, "more is read than the client has taken"
        pieces += [len(piece) for piece in body]
    assert max(pieces) == large_responses.LARGE_BODY_BYTES
    assert max(steps) <= STEP_KEYS
    assert sum(steps) == 300


def test_what_is_overwritten_meanwhile_counts_against_the_budget(large_api: Api) -> None:
    budget = large_api.context.large_responses
    with closing(large_api.open("/export", {})) as body:
        first = next(body)
        before = budget.bytes
        for n in range(299, 280, -1):
            large_api.put(f"/kvs/{n:03}", "new")
        assert before + 90_000 < budget.bytes < 500_000
        rest = b"".join(body)
    found = keys_of(first + rest)
    assert len(found) == 300
    assert {value[0] for value in found.values()} == {"v" * 10_000}


def test_room_that_is_not_needed_any_more_is_returned(large_api: Api) -> None:
    budget = large_api.context.large_responses
    with closing(large_api.open("/export", {})) as body:
        pieces = [next(body)]
        start = budget.bytes
        for n in range(299, 270, -1):
            large_api.put(f"/kvs/{n:03}", "new")
        grown = budget.bytes
        pieces += [next(body) for _ in range(8)]
        assert start < budget.bytes < grown
        pieces += list(body)
    assert len(keys_of(b"".join(pieces))) == 300


def test_an_export_that_would_keep_too_much_ends_with_the_reason(large_api: Api) -> None:
    with closing(large_api.open("/export", {})) as body:
        first = next(body)
        for n in range(299, 200, -1):
            assert large_api.put(f"/kvs/{n:03}", "new").status == 200
        assert large_api.context.large_responses.bytes < 600_000
        text = first + b"".join(body)
    assert lines_of(text)[-1] == {"error": OVERTAKEN}
    with pytest.raises(BadExport, match="could not be completed: clients changed more"):
        keys_of(text)


def test_without_room_for_what_is_overwritten_an_export_ends(large_api: Api) -> None:
    budget = large_api.context.large_responses
    with closing(large_api.open("/export", {})) as body:
        next(body)
        other = budget.send(large_responses.LargeBody([b"x" * 550_000], 550_000))
        next(other)
        for n in range(299, 270, -1):
            large_api.put(f"/kvs/{n:03}", "new")
        last = b"".join(body).splitlines()[-1]
        assert json.loads(last) == {"error": OVERTAKEN}
        assert b"".join(other)
        other.close()


def test_a_stalled_export_gives_way_to_another_response(large_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = large_api.context.large_responses
    monkeypatch.setattr(large_responses, "STALLED_AFTER_S", -1.0)
    with closing(large_api.open("/export", {})) as body:
        next(body)
        budget.send(large_responses.LargeBody([b"x" * 750_000], 750_000)).close()
        assert body.is_aborted
        assert list(body) == []
        for n in range(299, 200, -1):
            large_api.put(f"/kvs/{n:03}", "new")
        assert budget.bytes == 0
        assert large_api.store.table._readers == ()


def test_an_export_that_is_read_slowly_gives_way_to_another_export(
    large_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two clients that read a little now and then would keep everybody else from a backup."""
    now_s = [100.0]
    monkeypatch.setattr(exports, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    with closing(large_api.open("/export", {})) as slow, closing(large_api.open("/export", {})) as fast:
        for _ in range(3):
            next(slow)
            now_s[0] += 1.0
            for _ in range(8):
                next(fast)
        assert len(keys_of(exported(large_api))) == 300
        assert slow.is_aborted
        assert list(slow) == []
        assert not fast.is_aborted
        assert len(large_api.context.exports) == 1
        with closing(large_api.open("/export", {})):
            assert large_api.get("/export").status == 503, "the others are read fast"
        assert next(fast)


def test_a_deferred_export_takes_no_place(api: Api) -> None:
    with ThreadPoolExecutor(2) as pool:
        past = {"X-Causal-Metadata": json.dumps({PEER_ID: 1})}
        waiting = [pool.submit(exported, api, "/export?wait=20", past) for _ in range(2)]
        wait_until(lambda: api.engine.stats()["deferred_now"] == 2)
        assert keys_of(exported(api)) == {}
        with api.engine.lock:
            api.receive_update("a", b"1")
            api.engine.wake()
        for each in waiting:
            assert each.result()


def test_an_export_rests_only_while_others_are_served(large_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    clocks = SimpleNamespace(sleep=rests.append, monotonic=time.monotonic, thread_time=time.thread_time, time=time.time)
    monkeypatch.setattr(export, "time", clocks)
    monkeypatch.setattr(export, "BUSY_S", 60.0)
    exported(large_api)
    assert rests == []
    with closing(large_api.open("/export", {})) as body:
        next(body)
        large_api.get("/kvs/a")
        list(body)
    assert len(rests) > 20
    assert all(0 <= rest <= export.MAX_REST_S for rest in rests)
    assert max(rests) > 0
