"""``KV_SEED_FILE``: a replica that starts alone imports an export before it serves clients."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from kvsite import seeding, server
from kvsite.config import Config, ConfigError
from kvsite.context import ServerContext
from kvsite.seeding import Seeder
from replication.messages import Exchange, MembershipEntry, encode
from replication.recovery import IMPORTING
from store.engine import Change, read_clocks
from store.errors import NotServing
from store.export_file import ExportWriter
from store.importing import Progress
from store.settings import RequestLimits
from store.versions import Update, Version, Write
from tests.conftest import ClusterFactory
from tests.kvsite.test_server import run_until_exit
from tests.store.test_importing import with_lines
from tests.support.http import send_request

ADDRESS = "127.0.0.1:21599"


def export(path: Path, keys: int, *, conflicts: int = 0) -> Path:
    """Write an export with this many keys; the first ones have two values."""
    writer = ExportWriter()
    with path.open("wb") as file:
        file.write(writer.begin({"keys": keys}))
        for n in range(keys):
            first = Version(b"%d" % n, "a", 1, 2, {})
            versions = (first, Version(b"0", "b", 1, 1, {})) if n < conflicts else (first,)
            file.writelines(writer.lines([(f"{n:05}", versions)]))
        file.write(writer.end())
    return path


class Start:
    """A replica that has just been built with a file to import."""

    def __init__(self, path: Path, **config: Any) -> None:
        self.context: ServerContext = server.build(
            Config(address=ADDRESS, seeds=(ADDRESS,), seed_file=path, **config), lambda _: None
        )
        self.node, self.engine = self.context.node, self.context.engine
        self.fatal: list[str] = []
        self.seeder = Seeder(self.context, path, self.fatal.append)


def test_a_replica_that_is_alone_serves_when_it_has_imported_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start = Start(export(tmp_path / "f", 1200, conflicts=30))
    assert (start.node.ready, start.node.not_ready_reason) == (False, IMPORTING)
    for refused in (lambda: start.engine.get("00000", {}), lambda: start.engine.write(Change("a", b"1"), {})):
        with pytest.raises(NotServing, match=IMPORTING):
            refused()
    start.seeder.run()
    assert start.node.ready
    assert start.engine.get("01199", {}).versions[0].value == b"1199"
    assert start.engine.stats()["keys"] == 1200
    assert start.node.replica.store.clock == {start.node.id: 3}, "three transactions"
    assert start.fatal == []
    lines = [record.getMessage() for record in caplog.records if record.name == "causeway.seed"]
    assert lines[0] == f"KV_SEED_FILE: importing {tmp_path / 'f'}"
    assert lines[-2:] == [
        "KV_SEED_FILE: imported 1,200 keys; 0 had expired",
        "KV_SEED_FILE: 30 siblings and 0 keys could not be restored",
    ]
    assert sum("1 sibling was not restored" in line for line in lines) == seeding.MAX_NAMED


def test_the_log_counts_one_sibling_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Start(export(tmp_path / "f", 1, conflicts=1)).seeder.run()
    assert "KV_SEED_FILE: imported 1 key; " in caplog.text
    assert "KV_SEED_FILE: 1 sibling and 0 keys could not be restored" in caplog.text


def test_a_replica_that_finds_data_imports_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    start = Start(export(tmp_path / "f", 3))
    update = Update("127.0.0.1:1@0000000000000001", 1, 1, {}, (Write("k", b"1"),))
    start.node.replica.store.receive([update], read_clocks())
    assert not start.node.is_alone
    start.seeder.run()
    assert start.node.ready
    assert start.engine.stats()["keys"] == 1
    assert "not imported, because this replica does not start alone" in caplog.text


def test_a_replica_that_has_met_another_one_imports_nothing_when_that_one_is_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have data that is newer than the file."""
    start = Start(export(tmp_path / "f", 3))
    now = read_clocks()
    table = {"127.0.0.1:21598": MembershipEntry(1, now.wall_us, True)}
    heard_of = Exchange("127.0.0.1:21597@0000000000000001", 1, 1, 1, {}, 0, "serving", membership=table)
    start.node.exchange(encode(heard_of))
    assert start.node.view() == [ADDRESS]
    assert not start.node.is_alone
    monkeypatch.setattr(type(start.node), "may_seed", True)
    start.seeder.run()
    assert start.engine.stats()["keys"] == 0
    assert [record.levelname for record in caplog.records if "not imported" in record.getMessage()] == ["WARNING"]
    assert f"causeway import --at {ADDRESS} {tmp_path / 'f'}" in caplog.text


def test_data_that_arrives_during_the_import_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(export(tmp_path / "f", 1200))
    update = Update("127.0.0.1:1@0000000000000001", 1, 1, {}, (Write("01199", b'"newer"'),))
    batches: list[int] = []
    seed = start.node.seed

    def seed_and_receive(changes: Any) -> None:
        seed(changes)
        batches.append(len(changes))
        if len(batches) == 1:
            start.node.replica.store.receive([update], read_clocks())

    monkeypatch.setattr(start.node, "seed", seed_and_receive)
    start.seeder.run()
    assert start.engine.get("01199", {}).versions[0].value == b'"newer"'
    assert batches == [500, 500, 199]


def test_a_file_that_is_no_complete_export_stops_the_process(tmp_path: Path) -> None:
    file = export(tmp_path / "f", 3)
    file.write_bytes(file.read_bytes()[:-10])
    start = Start(file)
    start.seeder.run()
    assert [line.startswith("KV_SEED_FILE: the export is not complete") for line in start.fatal] == [True]
    assert not start.node.ready
    assert start.engine.stats()["keys"] == 0


def test_a_replica_that_leaves_meanwhile_writes_no_more(tmp_path: Path) -> None:
    start = Start(export(tmp_path / "f", 3))
    start.node.replica.leave(read_clocks())
    start.seeder.run()
    assert start.fatal == ["KV_SEED_FILE: Replica is not in the view"]
    assert start.engine.stats()["keys"] == 0


def test_a_key_that_the_limits_do_not_allow_is_named(tmp_path: Path) -> None:
    start = Start(export(tmp_path / "f", 3), limits=RequestLimits(max_key_bytes=3))
    start.seeder.run()
    assert start.fatal == ["KV_SEED_FILE: key '00000': Key is too long"]


@pytest.mark.parametrize("expires", [1e11, 1e300])
@pytest.mark.parametrize("value", [b'"AA==","encoding":"base64"', b"1", b'1,"type":"counter"'])
def test_a_deadline_that_no_write_can_have_stops_the_process(tmp_path: Path, value: bytes, expires: float) -> None:
    line = b'{"key":"k","versions":[{"value":%b,"expires":%f}]}' % (value, expires)
    (tmp_path / "f").write_bytes(with_lines(line))
    start = Start(tmp_path / "f")
    start.seeder.run()
    assert [text.startswith("KV_SEED_FILE: key 'k': ") for text in start.fatal] == [True]
    assert start.node.replica.store.clock == {}


def test_a_fault_during_the_import_stops_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(export(tmp_path / "f", 3))

    def fail(_: Any) -> None:
        raise OverflowError

    monkeypatch.setattr(start.node, "seed", fail)
    start.seeder.run()
    assert ["fault" in text for text in start.fatal] == [True]


def test_progress_is_logged_from_time_to_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(seeding, "LOG_EVERY_S", -1.0)
    Start(export(tmp_path / "f", 1200)).seeder.run()
    lines = [record.getMessage() for record in caplog.records if "per second" in record.getMessage()]
    assert len(lines) == 3
    assert lines[-1].startswith("KV_SEED_FILE: imported 1,200 of 1,200 keys, ")


def test_the_setting_names_a_readable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"KV_SEED_FILE: .* is not a readable file"):
        Config.from_env({"KV_SEED_FILE": str(tmp_path / "none")})
    assert Config.from_env({}).seed_file is None


def test_progress_counts_everything_that_is_done() -> None:
    assert Progress(written=1, present=2, expired=3, unwritable=4).done == 10


@pytest.mark.processes
def test_a_real_replica_starts_with_data_and_one_with_a_broken_file_does_not(
    tmp_path: Path, cluster: ClusterFactory
) -> None:
    file = export(tmp_path / "f", 700)
    made = cluster(1, KV_SEED_FILE=file)
    assert send_request(made.addresses[0], "GET", "/kvs/00699").body["value"] == 699
    lines = send_request(made.addresses[0], "GET", "/export")
    assert (lines.status, lines.headers["transfer-encoding"]) == (200, "chunked")
    file.write_text(json.dumps({"causeway-export": 1, "keys": 1}))
    waiting = run_until_exit(KV_SEED_FILE=str(file), KV_EXPECT="3")
    assert (waiting.returncode, "start this one replica with KV_EXPECT=1" in waiting.stderr) == (2, True)
    ended = run_until_exit(KV_SEED_FILE=str(file))
    assert ended.returncode == 1
    assert "KV_SEED_FILE: the export is not complete: line 1 is cut off" in ended.stderr.splitlines()
