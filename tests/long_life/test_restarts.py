"""1,000 restarts: metadata, exchanges and the delete clock stay short.

Each test prints its measurements (``pytest -s``). The time limits that it asserts are much larger.
"""

from __future__ import annotations

import json
import time

import pytest

from replication.messages import encode
from store.clock import Clock
from tests.long_life.support import NAMES, report
from tests.support.http import Past
from tests.support.wire import Wire


def json_bytes(clock: Clock | Past) -> int:
    """Return the length of a client's metadata as JSON, with each counter as one digit."""
    return len(json.dumps(dict.fromkeys(clock, 1), separators=(",", ":")))


@pytest.mark.slow
def test_metadata_and_idle_exchanges_are_as_short_after_1000_restarts_as_after_10() -> None:
    """The restarts are spread over three replicas, and each incarnation writes and deletes."""
    wire = Wire()
    wire.cluster(*NAMES)
    wire.issue("r1", "first", b"1")
    wire.flow()
    client: Clock = {}
    took_s: list[float] = []
    measured: dict[int, dict[str, int]] = {}
    reads_us: dict[int, float] = {}

    def measure(restarts: int) -> None:
        wire.flow(4.0)
        old = [f"old/{number}" for number in range(0, restarts, max(1, restarts // 100))]
        fresh = [wire.get(name, key).metadata for name in NAMES for key in ("first", "gone", *old)]
        followed = [wire.get(name, "first", client).metadata for name in NAMES]
        written = wire.put("r2", "new", b"1", client).metadata
        wire.flow(4.0)
        request, reply = wire.exchange("r1", "r2")
        measured[restarts] = {
            "fresh client": max(map(json_bytes, fresh)),
            "old client": max(map(json_bytes, [*followed, written])),
            "entries": max(map(len, [*fresh, *followed, written])),
            "exchange": len(encode(request)) + len(encode(reply)),
            "markers": max(len(wire[name].store.markers.all()) for name in NAMES),
            "log": max(wire[name].store.log.count for name in NAMES),
        }
        began_s = time.perf_counter()
        for _ in range(200):
            wire.get("r1", "first")
        reads_us[restarts] = (time.perf_counter() - began_s) / 200 * 1e6

    for number in range(1, 1001):
        name = NAMES[number % 3]
        began_s = time.perf_counter()
        wire.crash(name)
        wire.start(name, *NAMES)
        wire.flow(0.2, step_s=0.2)
        assert wire.state(name) == "serving"
        client = wire.get(name, "first", client).metadata if number % 50 else client
        client = wire.put(name, f"old/{number - 1}", b"1", client).metadata
        wire.put(name, "gone", b"1")
        client = wire.put(name, "gone", None, client).metadata
        wire.flow(0.4, step_s=0.2)
        took_s.append(time.perf_counter() - began_s)
        if number in (10, 100, 1000):
            measure(number)
    assert len(wire["r1"].store.clock) > 900
    first, last = took_s[10:60], took_s[-50:]
    report(f"after restarts: {measured}")
    report(f"one restart: {1e3 * sum(first) / 50:.1f} ms at first, {1e3 * sum(last) / 50:.1f} ms at last")
    report(f"one read: {', '.join(f'{us:.1f} us after {n}' for n, us in reads_us.items())}")
    report(f"entries of a delete clock: {len(wire['r1'].store.delete_clock)}")
    assert measured[1000]["markers"] <= 3
    for name in ("fresh client", "old client", "entries", "log"):
        assert measured[1000][name] <= measured[10][name], name
    # Counters and heartbeats have a few more digits.
    assert measured[1000]["exchange"] <= measured[10]["exchange"] + 60
    assert sum(last) < 20 * sum(first) + 5


def test_the_delete_clock_does_not_grow_with_restarts() -> None:
    """It is part of every response. One marker replaces many entries of ended incarnations."""
    wire = Wire()
    wire.cluster(*NAMES)
    for number in range(60):
        name = NAMES[number % 3]
        wire.crash(name)
        wire.start(name, *NAMES)
        wire.flow(0.4, step_s=0.2)
        wire.put(name, "gone", b"1")
        wire.put(name, "gone", None)
        wire.flow(0.4, step_s=0.2)
    wire.flow(4.0)
    assert max(len(wire[name].store.delete_clock) for name in NAMES) <= 6
