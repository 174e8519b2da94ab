"""Imports: what they refuse, what they write, and what they say about the rest. The target is a replica in memory."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from kvsite.seeding import OwnReplica
from store import importing
from store.api.parsing import MAX_NESTING
from store.export_file import BadExport, ExportWriter
from store.importing import Import, ImportFailed, KeyPresent, Mode, NotTaken, Progress, TargetHasKeys
from store.merging import MAX_ITEMS
from store.settings import RequestLimits
from tests.support.api import OWN_ID, PEER_ID, Api, fresh_api, make_store
from tests.support.fake_node import FakeNode
from tests.support.waiting import wait_until

LIMITS = RequestLimits(max_body_bytes=10_000_000, max_value_bytes=2_000_000)


class Target(OwnReplica):
    """A replica that records how many writes each transaction had."""

    def __init__(self, api: Api) -> None:
        super().__init__(api.context)
        self.transactions: list[int] = []

    def write(self, writes: Sequence[bytes]) -> None:
        super().write(writes)
        self.transactions.append(len(writes))


class SeededNode(FakeNode):
    """A fake node that passes an import on."""

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.seed = api.engine.seed


def replica(limits: RequestLimits = LIMITS) -> Api:
    api = fresh_api()
    api.use(limits=limits, node=SeededNode(api))
    return api


def export_of(api: Api, path: str = "/export") -> bytes:
    with closing(api.open(path, {})) as body:
        return b"".join(body)


def imported(data: bytes, api: Api, **options: Any) -> tuple[Progress, list[tuple[str, str]], Target]:
    reports: list[tuple[str, str]] = []
    target = Target(api)
    done = Import(io.BytesIO(data), target, report=lambda key, what: reports.append((key, what)), **options).run()
    return done, reports, target


def seen(api: Api) -> dict[str, Any]:
    """Return what clients see of every key."""
    found = {}
    for key in api.get("/kvs?limit=1000").body["keys"]:
        body = api.get(f"/kvs/{key}").body
        found[key] = {name: body.get(name) for name in ("value", "encoding", "type", "conflicts")}
    return found


def filled() -> Api:
    """Return a replica with a value of each kind."""
    api = replica()
    api.put("/kvs/p/plain", {"n": [1, 1.0, "é", None]})
    api.put("/kvs/p/null", None)
    api.ask("PUT", "/kvs/p/bytes", raw=bytes(range(256)), content_type="application/octet-stream")
    api.ask("PUT", "/kvs/p/no-bytes", raw=b"", content_type="application/octet-stream", headers={"Content-Length": "0"})
    for n in (5, -8):
        api.ask("PATCH", "/kvs/p/counter", {"increment": n})
    api.ask("PATCH", "/kvs/p/set", {"add": ["a", 1, 2.5]})
    api.ask("PATCH", "/kvs/p/map", {"set": {"a": {"deep": [1]}, "b": None}})
    api.ask("PATCH", "/kvs/p/empty-set", {"add": ["gone"]})
    api.ask("PATCH", "/kvs/p/empty-set", {"remove": ["gone"]})
    api.ask("PATCH", "/kvs/p/empty-map", {"set": {"gone": 1}})
    api.ask("PATCH", "/kvs/p/empty-map", {"unset": ["gone"]})
    return api


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_every_kind_of_value_comes_back(mode: Mode) -> None:
    source, target = filled(), replica()
    done, reports, _ = imported(export_of(source), target, mode=mode)
    assert seen(target) == seen(source)
    assert (done.written, done.total, done.done, reports) == (len(seen(source)), done.total, done.total, [])


def test_what_came_back_merges_and_is_written_with_new_dots() -> None:
    source, target = filled(), replica()
    target.store.replica_id = PEER_ID
    imported(export_of(source), target)
    assert set(target.store.clock) == {PEER_ID}
    target.ask("PATCH", "/kvs/p/counter", {"increment": 1})
    target.ask("PATCH", "/kvs/p/empty-set", {"add": ["new"]})
    assert target.get("/kvs/p/counter").body["value"] == -2
    assert target.get("/kvs/p/empty-set").body["value"] == ["new"]
    assert OWN_ID not in json.dumps(target.get("/kvs/p/set").body)


def test_a_deleted_key_comes_back_only_with_a_new_dot() -> None:
    """The delete has seen the old version. A peer that has applied the delete takes the imported one."""
    api = replica()
    api.put("/kvs/k", 1)
    data = export_of(api)
    deleted = api.delete("/kvs/k").metadata
    imported(data, api)
    assert api.get("/kvs/k", deleted).body["value"] == 1
    assert api.store.table.get("k")[0].counter > deleted[OWN_ID]


@pytest.mark.parametrize("mode", Mode)
def test_the_deepest_values_come_back(mode: Mode) -> None:
    """A transaction has its values two levels deeper than a PUT or a PATCH."""
    source, target = replica(), replica()
    deepest = json.loads("[" * MAX_NESTING + "]" * MAX_NESTING)
    assert source.put("/kvs/deep", deepest).status == 201
    assert source.put("/kvs/deeper", [deepest]).status == 400
    assert source.ask("PATCH", "/kvs/map", {"set": {"a": deepest[0]}}).status == 201
    imported(export_of(source), target, mode=mode)
    assert seen(target) == seen(source)


def test_deadlines_are_kept_and_expired_keys_are_left_out() -> None:
    source, target = replica(), replica()
    source.ask("PUT", "/kvs/soon", {"value": 1, "ttl": 0.2})
    source.ask("PUT", "/kvs/later", {"value": 2, "ttl": 100})
    source.ask("PATCH", "/kvs/counter", {"increment": 1, "ttl": 100})
    source.ask("PUT", "/kvs/bytes?ttl=100", raw=b"x", content_type="application/octet-stream")
    data = export_of(source)
    wait_until(lambda: source.get("/kvs/soon").status == 404)
    done, reports, _ = imported(data, target)
    assert (done.written, done.expired, done.done, reports) == (3, 1, 4, [])
    for key in ("later", "counter", "bytes"):
        deadlines = [api.get(f"/kvs/{key}").body["expires"] for api in (source, target)]
        assert deadlines[0] == pytest.approx(deadlines[1], abs=0.05)
    assert target.get("/kvs/soon").status == 404


def test_the_winner_of_a_key_in_conflict_comes_back_and_its_siblings_are_named() -> None:
    source, target = replica(), replica()
    source.put("/kvs/k", "loser")
    source.receive_update("k", b'"winner"')
    source.put("/kvs/other", 1)
    done, reports, _ = imported(export_of(source), target)
    assert target.get("/kvs/k").body["value"] == "winner"
    assert reports == [("k", "1 sibling was not restored, only the winner")]
    assert (done.siblings, done.written) == (1, 2)


@pytest.mark.parametrize("encoding", [b"", b',"encoding":"base64"'])
def test_siblings_of_a_key_that_stays_as_it_is_are_not_named(encoding: bytes) -> None:
    target = replica()
    line = b'{"key":"k","versions":[{"value":"AA==",%b},{"value":2}]}' % (
        encoding.removeprefix(b",") or b'"timestamp":1'
    )
    data = with_lines(line)
    done, reports, _ = imported(data, target, mode=Mode.IF_ABSENT)
    assert (done.siblings, [key for key, _ in reports]) == (1, ["k"])
    again, reports, _ = imported(data, target, mode=Mode.IF_ABSENT)
    assert (again.present, again.siblings, reports) == (1, 0, [])


def test_siblings_are_named_only_when_the_winner_is_written() -> None:
    api = Api(make_store(max_memory_bytes=100))
    api.use(limits=LIMITS, node=SeededNode(api))
    reports: list[str] = []
    data = with_lines(b'{"key":"k","versions":[{"value":"%b"},{"value":2}]}' % (b"x" * 1000))
    with pytest.raises(ImportFailed, match="KV_MAX_MEMORY"):
        Import(io.BytesIO(data), Target(api), report=lambda key, _: reports.append(key)).run()
    assert reports == []


def test_a_key_that_no_write_can_restore_may_be_there_already() -> None:
    target = replica()
    target.put("/kvs/sum", 1)
    data = with_lines(b'{"key":"sum","versions":[{"value":9223372036854775808,"type":"counter"}]}')
    done, reports, _ = imported(data, target, mode=Mode.IF_ABSENT)
    assert (done.present, done.unwritable, reports) == (1, 0, [])


def with_lines(*lines: bytes, prefix: str = "") -> bytes:
    """Return an export with these lines of keys."""
    writer = ExportWriter()
    head = writer.begin({"keys": len(lines), "prefix": prefix})
    body = b"".join(line + b"\n" for line in lines)
    writer._checksum.update(body)
    writer.count = len(lines)
    return head + body + writer.end()


def test_a_winner_that_has_expired_leaves_its_place_to_a_sibling() -> None:
    target = replica()
    line = b'{"key":"k","versions":[{"value":1,"expires":5.0},{"value":2},{"value":3,"expires":6.0}]}'
    done, reports, _ = imported(with_lines(line), target)
    assert target.get("/kvs/k").body["value"] == 2
    assert (done.siblings, reports) == (0, [])


def test_what_no_write_can_restore_is_named() -> None:
    target = replica()
    items = json.dumps([str(n) for n in range(MAX_ITEMS + 1)]).encode()
    done, reports, _ = imported(
        with_lines(
            b'{"key":"sum","versions":[{"value":9223372036854775808,"type":"counter"}]}',
            b'{"key":"set","versions":[{"value":%b,"type":"set"}]}' % items,
            b'{"key":"ok","versions":[{"value":-9223372036854775808,"type":"counter"}]}',
        ),
        target,
    )
    assert (done.unwritable, done.written, done.done) == (2, 1, 3)
    assert [key for key, _ in reports] == ["sum", "set"]
    assert "64-bit" in reports[0][1]
    assert target.get("/kvs/ok").body["value"] == -(2**63)


def test_the_prefix_can_be_replaced() -> None:
    source, target = filled(), replica()
    source.put("/kvs/outside", 1)
    data = export_of(source, "/export?prefix=p/")
    imported(data, target, prefix_to="copy/of/")
    assert {key.removeprefix("copy/of/") for key in seen(target)} == {key[2:] for key in seen(source)} - {"tside"}
    imported(data, target, prefix_to="")
    assert target.get("/kvs/plain").status == 200


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b'{"key":"k","versions":[{"value":"x","encoding":"base64"}]}',
        b'{"key":"k","versions":[{"value":5,"encoding":"base64"}]}',
        b'{"key":"k","versions":[{"value":"AA==","encoding":"base64","type":"set"}]}',
        b'{"key":"k","versions":[{"value":"AA==","encoding":"hex"}]}',
        b'{"key":"k","versions":[{"value":1.5,"type":"counter"}]}',
        b'{"key":"k","versions":[{"value":{},"type":"set"}]}',
        b'{"key":"k","versions":[{"value":[],"type":"map"}]}',
        b'{"key":"k","versions":[{"value":[],"type":"list"}]}',
        b'{"key":"k","versions":[{"value":1},{"value":[[]],"type":"set"}]}',
    ],
)
def test_a_value_that_is_not_what_it_says_is_found_before_anything_is_written(line: bytes) -> None:
    target = replica()
    before = target.state()
    with pytest.raises(BadExport, match="line 3"):
        imported(with_lines(b'{"key":"first","versions":[{"value":1}]}', line), target)
    assert target.state() == before


def test_a_file_that_is_not_complete_changes_nothing() -> None:
    source, target = filled(), replica()
    before = target.state()
    data = export_of(source)
    for damaged in (data[:-1], data[: len(data) // 2], data.replace(b"deep", b"deeq"), b"", b"{}\n"):
        for mode in Mode:
            with pytest.raises(BadExport):
                imported(damaged, target, mode=mode)
    assert target.state() == before


def test_a_key_outside_of_the_prefix_of_the_export_is_an_error() -> None:
    with pytest.raises(BadExport, match="prefix"):
        imported(with_lines(b'{"key":"q","versions":[{"value":1}]}', prefix="p/"), replica(), prefix_to="x")


def test_a_key_that_would_be_empty_is_found_before_anything_is_written() -> None:
    """The prefix is a key, too."""
    source, target = replica(), replica()
    source.put("/kvs/p/a", 1)
    source.put("/kvs/p/", 2)
    before = target.state()
    data = export_of(source, "/export?prefix=p/")
    with pytest.raises(BadExport, match="line 2: without the prefix of the export, the key is empty"):
        imported(data, target, prefix_to="")
    assert target.state() == before
    imported(data, target, prefix_to="q")
    assert seen(target).keys() == {"q", "qa"}


def test_a_target_that_has_one_of_the_keys_is_refused_and_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_KEYS", 3)
    source, target = filled(), replica()
    target.put("/kvs/other", 1)
    target.put("/kvs/p/set", "mine")
    before = target.state()
    with pytest.raises(
        TargetHasKeys, match=r"the target already has 'p/set'; nothing was written.*--if-absent.*--overwrite"
    ):
        imported(export_of(source), target)
    assert target.state() == before
    target.delete("/kvs/p/set")
    imported(export_of(source), target)
    assert len(seen(target)) == len(seen(source)) + 1


def test_a_key_that_appears_during_the_import_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_KEYS", 2)
    source, target = filled(), replica()

    def on_progress(progress: Progress) -> None:
        if progress.written == 4:
            for key in seen(source).keys() - seen(target).keys():
                target.put(f"/kvs/{key}", "mine")

    with pytest.raises(TargetHasKeys, match="4 keys were written before"):
        imported(export_of(source), target, on_progress=on_progress)
    assert sum(each["value"] == "mine" for each in seen(target).values()) == len(seen(source)) - 4


def test_if_absent_leaves_the_keys_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_KEYS", 4)
    source, target = filled(), replica()
    for key in ("p/set", "p/plain", "p/bytes", "p/counter"):
        target.put(f"/kvs/{key}", "mine")
    done, _, _ = imported(export_of(source), target, mode=Mode.IF_ABSENT)
    total = len(seen(source))
    assert (done.present, done.written, done.done) == (4, total - 4, total)
    assert sum(each["value"] == "mine" for each in seen(target).values()) == 4
    again, _, _ = imported(export_of(source), target, mode=Mode.IF_ABSENT)
    assert (again.present, again.written) == (total, 0)


def test_overwrite_replaces_what_is_there_also_where_a_patch_would_merge() -> None:
    source, target = filled(), replica()
    target.ask("PATCH", "/kvs/p/counter", {"increment": 100})
    target.ask("PATCH", "/kvs/p/set", {"add": ["mine"]})
    target.put("/kvs/p/map", "mine")
    target.put("/kvs/p/bytes", "mine")
    imported(export_of(source), target, mode=Mode.OVERWRITE)
    assert seen(target) == seen(source)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_transactions_have_a_bounded_number_of_keys_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_KEYS", 10)
    monkeypatch.setattr(importing, "BATCH_BYTES", 10_000)
    source, target = replica(), replica()
    for n in range(35):
        source.put(f"/kvs/{n:02}", "small")
    for n in range(10):
        source.put(f"/kvs/large{n}", "x" * 4000)
    source.put("/kvs/larger", "x" * 40_000)
    _, _, recorded = imported(export_of(source), target)
    assert seen(target) == seen(source)
    assert recorded.transactions == [10, 10, 10, 7, 2, 2, 2, 2, 1]


def test_a_target_that_takes_less_at_once_gets_less(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = filled(), replica(RequestLimits(max_batch=3))
    _, _, recorded = imported(export_of(source), target)
    assert seen(target) == seen(source)
    assert max(recorded.transactions) == 3


def test_a_key_that_the_target_cannot_have_is_named() -> None:
    source, target = replica(), replica(RequestLimits(max_key_bytes=5))
    for key in ("a", "b", "too-long", "c"):
        source.put(f"/kvs/{key}", 1)
    with pytest.raises(ImportFailed, match="key 'too-long': Key is too long"):
        imported(export_of(source), target)


def test_a_target_without_memory_stops_the_import() -> None:
    api = Api(make_store(max_memory_bytes=2_000))
    api.use(limits=LIMITS, node=SeededNode(api))
    with pytest.raises(ImportFailed, match="KV_MAX_MEMORY"):
        imported(export_of(filled()), api)


def test_own_replica_says_what_it_does_not_take() -> None:
    target = OwnReplica(replica(RequestLimits(max_batch=1, max_value_bytes=10, max_key_bytes=3)).context)
    write = b'{"key":"k","value":1,"if-none-match":"*"}'
    with pytest.raises(NotTaken, match="at most 1 keys"):
        target.write([write, write])
    with pytest.raises(NotTaken, match="too long"):
        target.write_bytes("k", b"x" * 11, None, if_absent=True)
    with pytest.raises(NotTaken, match="too long"):
        target.write_bytes("long", b"x", None, if_absent=True)
    target.write([write])
    with pytest.raises(KeyPresent):
        target.write([write])
    with pytest.raises(KeyPresent):
        target.write_bytes("k", b"x", None, if_absent=True)
    target.write_bytes("k", b"x", 100.0, if_absent=False)
    assert target.present(["a", "k"]) == ["k"]
    assert not target.is_empty("")
    assert time.time() > 0
