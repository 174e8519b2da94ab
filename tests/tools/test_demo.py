"""The demo: its writes, the checks of its readers and of its audit, and a small run with real replicas."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.fake_replicas import FakeReplica, Handler, fake_replicas, found, json_response
from tools.demo import audit, characters, load, report
from tools.paths import REPOSITORY

PORT = 24900


# ---- writes


def test_every_named_character_is_written_once_and_in_order() -> None:
    written = [key for step in characters.steps() if step.is_block for key in step.records]
    assert len(written) == len(set(written)) == sum(1 for n in range(0x110000) if unicodedata.name(chr(n), None))
    assert [characters.code_point_of(key) for key in written] == sorted(map(characters.code_point_of, written))


def test_a_block_fits_into_a_transaction_and_ends_at_its_last_revision() -> None:
    ends: dict[str, int] = {}
    block = -1
    for step in characters.steps(3000):
        assert step.block >= block
        assert {characters.block_of(key) for key in step.records} == {step.block}
        assert len(step.records) <= 256
        block = step.block
        for key, record in step.records.items():
            assert record["revision"] == ends.get(key, 0) + 1
            ends[key] = record["revision"]
    assert ends == {key: characters.last_revision(key) for key in ends}
    assert set(ends.values()) == {1, 2}


def test_places_follow_the_order_of_writes() -> None:
    places = [
        {characters.place(key, record["revision"]) for key, record in step.records.items()}
        for step in characters.steps(3000)
    ]
    assert all(len(of_step) == 1 for of_step in places)
    order = [of_step.pop() for of_step in places]
    assert order == sorted(set(order))
    assert [characters.revision_at("U+00C0", seen) for seen in ((-1, -1), (0, -1), (0, 0xC0), (1, -1))] == [0, 1, 2, 2]
    assert characters.revision_at("U+0041", (9, -1)) == 1


def test_a_limit_takes_the_first_characters() -> None:
    keys = [key for step in characters.steps(300) if step.is_block for key in step.records]
    assert len(keys) == 300
    assert sorted(keys) == audit.expected_keys(300)
    assert list(characters.steps(0)) == []


# ---- the checks of the readers


def reader(kind: type[load.Reader]) -> Any:
    return kind("reader", ["127.0.0.1:1"], load.Acknowledged(), seed=1)


def test_a_reader_reports_a_step_back_in_time() -> None:
    follower = reader(load.Follower)
    follower.check_revision("r1", "U+00C0", 2, 0, "")
    follower.check_revision("r2", "U+00C0", 2, 2, "")
    assert follower.violations == []
    follower.check_revision("r2", "U+00C0", 1, 0, "")
    follower.check_revision("r2", "U+0041", 0, 1, "it was acknowledged")
    assert follower.violations == [
        "reader: r2 returned revision 1 of U+00C0 after revision 2: back in time",
        "reader: r2 returned no value of U+0041, not revision 1: it was acknowledged",
    ]


def test_the_observer_reports_an_effect_without_its_cause() -> None:
    observer = reader(load.Observer)
    observer._check_frontier("r1", "U+0300", 0, observer.frontier)
    observer._check_frontier("r1", "U+0300", 1, observer.frontier)
    assert (observer.violations, observer.frontier) == ([], (3, -1))
    observer._check_frontier("r2", "U+00C0", 1, observer.frontier)  # written before block 3 at revision 2
    observer._check_frontier("r2", "U+0301", 0, observer.frontier)  # written with U+0300
    assert len(observer.violations) == 2
    observer._check_frontier("r2", "U+0374", 2, observer.frontier)
    observer._check_frontier("r1", "U+0344", 1, observer.frontier)  # had its second revision before U+0374
    observer._check_frontier("r1", "U+037E", 1, observer.frontier)  # had it after: may be missing
    assert len(observer.violations) == 3
    assert (
        "r1 returned revision 1 of U+0344, not revision 2: a write of the same or a later place"
        in observer.violations[2]
    )


def acknowledged_of(keys: dict[str, int]) -> load.Acknowledged:
    return load.Acknowledged(
        metadata={"a@1": 9}, keys=list(keys), latest=list(keys), revision=dict(keys), writes=len(keys)
    )


def test_the_observer_reports_half_a_transaction() -> None:
    with fake_replicas(1) as (replica,):
        values = {"U+0041": {"revision": 1}}
        replica.respond_with(json_response(200, {"values": values, "missing-keys": ["U+0042"], "causal-metadata": {}}))
        observer = load.Observer("observer", [replica.url], acknowledged_of({"U+0041": 1, "U+0042": 1}), seed=1)
        observer.rng = Never(1)
        assert observer.read_once() == replica.url
    assert "half of a transaction" in observer.violations[0]


def test_the_follower_reads_with_the_writers_metadata() -> None:
    with fake_replicas(1) as (replica,):
        replica.respond_with(found({"revision": 1}, {"a@1": 9}, lost={"b@1": [1, 1]}))
        follower = load.Follower("follower", [replica.url], acknowledged_of({"U+00C0": 2}), seed=1)
        follower.read_once()
    assert replica.requests[0].body["causal-metadata"] == {"a@1": 9}
    assert "lost" in follower.violations[0]
    assert "returned revision 1 of U+00C0, not revision 2" in follower.violations[1]


class Never(random.Random):
    """A random source whose every chance fails, so that the observer reads a snapshot."""

    def random(self) -> float:
        return 0.999


# ---- the checks of the audit


@pytest.fixture
def replica() -> Iterator[FakeReplica]:
    with fake_replicas(1) as fakes:
        yield fakes[0]


def holds(items: dict[str, Any]) -> Any:
    """Serve a listing of ``items`` with eighty keys per page."""

    def play(handler: Handler) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        keys = [key for key in sorted(items) if key.startswith(query["prefix"]) and key > query.get("after", "")]
        page = {"keys": keys[:80], "items": {key: items[key] for key in keys[:80]}, "causal-metadata": {}}
        json_response(200, page | {"next": keys[79] if len(keys) > 80 else None})(handler)

    return play


def database(limit: int) -> dict[str, Any]:
    return {key: record for step in characters.steps(limit) for key, record in step.records.items()}


def test_the_audit_agrees_with_what_is_written(replica: FakeReplica) -> None:
    """The writer and the audit share no code and agree on the database, decompositions included."""
    replica.respond_with(holds(database(200)))
    result = audit.audit(f"127.0.0.1:{replica.port}", audit.expected_keys(200))
    assert (result["ok"], result["keys"], result["examples"]) == (True, 200, [])


@pytest.mark.parametrize(
    ("damage", "count"),
    [
        (lambda items: items.pop("U+0041"), "missing"),
        (lambda items: items["U+0041"].update(combining=1), "differing"),
        (lambda items: items["U+00C0"].update(revision=1), "differing"),
        (lambda items: items["U+0041"].update(name="LATIN CAPITAL LETTER B"), "differing"),
        (lambda items: items.update({"U+0001": {"name": "SPACE"}}), "unexpected"),
        (lambda items: items.update({"loading:0000": 1}), "unexpected"),
    ],
)
def test_the_audit_reports_what_is_wrong(replica: FakeReplica, damage: Any, count: str) -> None:
    items = database(200)
    damage(items)
    replica.respond_with(holds(items))
    result = audit.audit(f"127.0.0.1:{replica.port}", audit.expected_keys(200))
    assert not result["ok"]
    assert result[count] >= 1


def test_the_audit_program_has_an_exit_code(replica: FakeReplica) -> None:
    address = f"127.0.0.1:{replica.port}"
    command = [sys.executable, "-m", "tools.demo.audit", "--limit", "20", address]
    replica.respond_with(holds(database(20)))
    good = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (good.returncode, json.loads(good.stdout)["ok"]) == (0, True)
    replica.respond_with(holds(database(19)))
    bad = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (bad.returncode, json.loads(bad.stdout)["missing"]) == (1, 1)


def test_durations_have_a_median_and_a_99th_percentile() -> None:
    assert report.milliseconds([]) == "not measured"
    assert report.milliseconds([0.001]) == "p50 1.0 ms, p99 1.0 ms (1 samples)"
    assert report.milliseconds([n / 1000 for n in range(100, 0, -1)]) == "p50 50.0 ms, p99 99.0 ms (100 samples)"


# ---- a small run


@pytest.mark.processes
@pytest.mark.slow
def test_a_small_demo_succeeds(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "manage.py",
        "demo",
        "--limit",
        "2000",
        "--base-port",
        str(PORT),
        "--log-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was killed (SIGKILL)" in done.stdout
    assert "has caught up and serves" in done.stdout
    assert done.stdout.count("2,000 keys,") == 3
    assert done.stdout.count(", all correct;") == 3
    assert "no read went back in time" in done.stdout
