"""The audit log (kvsite/audit.py): who has written which keys; it delays nobody, and says what it has lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvsite.audit import MAX_QUEUED_BYTES, AuditLog, FileSink, missing
from kvsite.config import Config
from kvsite.line_queue import LineQueue
from kvsite.logs import HumanFormatter, QueueHandler
from kvsite.server import StartError, build
from store.versions import Change, Update, Write
from tests.kvsite.test_rights_by_prefix import ALL, OWN, TOKENS, Site
from tests.kvsite.test_security_routes import proof
from tests.support.waiting import wait_until

VALUE = "vAlUe-8831"
SECRET = "the secret of this cluster"
MEMBER = "10.0.0.3:8090"


class Audited(Site):
    """A replica with an audit log in a file."""

    def __init__(self, path: Path, **config: Any) -> None:
        self.path = path
        super().__init__(audit_log=str(path), admin_password="password-of-the-dashboard", **config)

    def _fill(self) -> None:
        pass

    def lines(self) -> list[dict[str, Any]]:
        assert self.context.audit is not None
        self.context.audit.flush()
        return [json.loads(line) for line in self.path.read_text("ascii").splitlines()]


@pytest.fixture
def audited(tmp_path: Path) -> Audited:
    return Audited(tmp_path / "audit.log", cluster_secret=SECRET, api_tokens=TOKENS)


def test_every_kind_of_write_has_one_line(audited: Audited) -> None:
    replica = audited.context.node.id
    writes: list[tuple[str, str, Any, str, list[str]]] = [
        ("PUT", "/kvs/team-a/x", {"value": VALUE}, OWN, ["team-a/x"]),
        ("POST", "/kvs/team-a/x", {"value": VALUE, "ttl": 100}, OWN, ["team-a/x"]),
        ("PATCH", "/kvs/team-a/set", {"add": [VALUE]}, OWN, ["team-a/set"]),
        ("PUT", "/kvs/b", {"value": VALUE, "w": 2, "w-timeout": 0}, ALL, ["b"]),
        ("DELETE", "/kvs/team-a/x", None, OWN, ["team-a/x"]),
        ("POST", "/kvs", {"reads": ["b"], "writes": [{"key": "c", "value": VALUE}, {"key": "d", "value": VALUE},
                                                     {"key": "b", "delete": True}]}, ALL, ["c", "d", "b"]),
        ("POST", "/kvs", {"writes": [{"key": "team-a/z", "value": VALUE}]}, OWN, ["team-a/z"]),
        ("DELETE", "/kvs?prefix=team-a/", None, ALL, ["team-a/set", "team-a/z"]),
    ]  # fmt: skip
    for i, (method, target, body, token, _) in enumerate(writes):
        assert audited.ask(method, target, body, token=token, x_request_id=f"r-{i}").status < 300
    lines = audited.lines()
    for i, (line, (method, _, _, token, keys)) in enumerate(zip(lines, writes, strict=True)):
        assert time.strptime(line.pop("time")[:19], "%Y-%m-%dT%H:%M:%S")
        assert line == {
            "logger": "causeway.audit",
            "token": {OWN: "a", ALL: "all"}[token],
            "method": method,
            **({"key": keys[0]} if len(keys) == 1 else {"keys": keys}),
            "dot": [replica, i + 1],
            "address": "192.0.2.9",
            "request_id": f"r-{i}",
        }
    assert VALUE not in audited.path.read_text("ascii")
    assert OWN not in audited.path.read_text("ascii")


def test_a_request_that_changes_nothing_has_no_line(audited: Audited) -> None:
    for method, target, body, token, status in (
        ("GET", "/kvs/team-a/x", None, OWN, 404),
        ("DELETE", "/kvs/team-a/x", None, OWN, 404),
        ("DELETE", "/kvs?prefix=team-a/", None, OWN, 200),
        ("PATCH", "/kvs/team-a/x", {"ttl": 5}, OWN, 404),
        ("PUT", "/kvs/team-a/x", {}, OWN, 400),
        ("PUT", "/kvs/b", {"value": 1}, OWN, 403),
        ("PUT", "/kvs/b", {"value": 1}, None, 401),
        ("POST", "/kvs", {"reads": ["team-a/x"]}, OWN, 200),
    ):
        assert audited.ask(method, target, body, token=token).status == status
    assert audited.ask("PUT", "/kvs/team-a/x", {"value": 1}, if_match='"other"').status == 412
    assert audited.lines() == []


def test_a_write_without_a_token_has_none_in_its_line(tmp_path: Path) -> None:
    replica = Audited(tmp_path / "audit.log")
    replica.ask("PUT", "/kvs/x", {"value": 1}, token=None)
    thread = threading.Thread(target=lambda: replica.engine.seed([Change("y", b"1"), Change("z", b"1")]))
    thread.start()
    thread.join()
    by_request, by_process = replica.lines()
    assert (by_process["keys"], by_process["dot"][1]) == (["y", "z"], 2)
    assert (by_request["token"], by_request["method"], by_request["key"]) == (None, "PUT", "x")
    assert [by_process[name] for name in ("token", "method", "address", "request_id")] == [None] * 4


def with_proof(replica: Audited, method: str, target: str, body: dict[str, Any]) -> int:
    """Send a request with proof of the cluster secret. Return the status."""
    sent = json.dumps(body).encode()
    headers = proof(method, target, sent, to=replica.context.node.id, at_us=time.time_ns() // 1000)
    return replica.ask(method, target, sent, token=None, **headers).status


def test_a_request_that_changes_the_view_has_a_line(audited: Audited) -> None:
    body = {"socket-address": MEMBER}
    for method, status in (("PUT", 201), ("PUT", 200), ("DELETE", 200), ("DELETE", 404)):
        assert with_proof(audited, method, "/view", body) == status
    lines = audited.lines()
    assert lines[0].pop("time")
    assert lines[0].pop("request_id")
    assert lines[0] == {
        "logger": "causeway.audit",
        "token": None,
        "proof": True,
        "method": "PUT",
        "member": MEMBER,
        "address": "192.0.2.9",
    }
    # To add what belongs already changes nothing. The removal of an unknown address is recorded all the same.
    assert [(line["method"], line["member"]) for line in lines[1:]] == [("DELETE", MEMBER), ("DELETE", MEMBER)]


def test_a_rejected_change_of_the_view_has_no_line(audited: Audited) -> None:
    assert audited.ask("DELETE", "/view", {"socket-address": MEMBER}, token=ALL).status == 403
    assert with_proof(audited, "DELETE", "/view", {"socket-address": "no address"}) == 400
    assert with_proof(audited, "PUT", "/view", {}) == 400
    assert audited.lines() == []


def test_a_token_that_changes_the_view_is_named(tmp_path: Path) -> None:
    replica = Audited(tmp_path / "audit.log", api_tokens=TOKENS)
    assert replica.ask("DELETE", "/view", {"socket-address": MEMBER}, token=ALL).status == 404
    (line,) = replica.lines()
    assert (line["token"], line["method"], line["member"]) == ("all", "DELETE", MEMBER)
    assert "proof" not in line


def test_only_a_proof_that_was_verified_is_in_a_line(audited: Audited, tmp_path: Path) -> None:
    assert with_proof(audited, "PUT", "/kvs/x", {"value": 1}) == 201
    assert audited.lines()[0]["proof"] is True
    opened = Audited(tmp_path / "another.log")
    assert with_proof(opened, "PUT", "/kvs/x", {"value": 1}) == 201
    assert "proof" not in opened.lines()[0]


def test_replicas_may_append_to_one_file(audited: Audited) -> None:
    other = Audited(audited.path)
    for n in range(200):
        audited.ask("PUT", f"/kvs/{n}", {"value": 1}, token=ALL)
        other.ask("PUT", f"/kvs/{n}", {"value": 1}, token=None)
    audited.lines()  # waits until its lines are written
    replicas = [line["dot"][0] for line in other.lines()]
    assert len(replicas) == 400
    assert replicas.count(audited.context.node.id) == replicas.count(other.context.node.id) == 200


def test_no_character_of_a_key_disturbs_a_reader_of_lines(audited: Audited) -> None:
    key = '\x00\n\x1b[2J\x7f\x9b\u2028\u202e"\\é🦆'
    audited.ask("POST", "/kvs", {"writes": [{"key": key, "value": 1}]}, token=ALL)
    text = audited.path.read_text("ascii") if audited.lines() else ""
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    assert json.loads(text)["key"] == key


def test_the_longest_line_of_the_default_settings_fits(audited: Audited) -> None:
    limits = audited.context.limits
    keys = [f"{n:04}" + "\x01" * (limits.max_key_bytes - 4) for n in range(limits.max_batch)]
    assert audited.ask("POST", "/kvs", {"writes": [{"key": key, "value": 1} for key in keys]}, token=ALL).status == 200
    (line,) = audited.lines()
    assert line["keys"] == keys
    assert limits.max_batch * limits.max_key_bytes * 5 < audited.path.stat().st_size < MAX_QUEUED_BYTES / 2


def test_without_the_setting_there_is_no_audit_log() -> None:
    context = build(Config(), pytest.fail)
    assert context.audit is None
    assert context.engine.on_write is None


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_start_fails_if_the_file_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "audit.log"):
        with pytest.raises(StartError, match=r"^KV_AUDIT_LOG: cannot write '.*': (Is a directory|No such file)"):
            build(Config(audit_log=str(path)), pytest.fail)


def test_the_file_is_only_for_its_owner_and_is_appended_to(audited: Audited, tmp_path: Path) -> None:
    audited.ask("PUT", "/kvs/x", {"value": 1}, token=ALL)
    assert len(audited.lines()) == 1
    assert audited.path.stat().st_mode & 0o777 == 0o600
    again = Audited(audited.path)
    again.ask("PUT", "/kvs/y", {"value": 1}, token=None)
    assert [line["key"] for line in again.lines()] == ["x", "y"]


def test_a_renamed_file_is_opened_anew(audited: Audited) -> None:
    audited.ask("PUT", "/kvs/1", {"value": 1}, token=ALL)
    assert len(audited.lines()) == 1
    old = audited.path.rename(audited.path.with_suffix(".1"))
    audited.ask("PUT", "/kvs/2", {"value": 1}, token=ALL)
    assert [line["key"] for line in audited.lines()] == ["2"]
    audited.path.unlink()
    audited.ask("PUT", "/kvs/3", {"value": 1}, token=ALL)
    assert [line["key"] for line in audited.lines()] == ["3"]
    assert json.loads(old.read_text())["key"] == "1"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Return a function that fills or empties the disk. A full disk accepts 5 bytes, then none."""
    full, accepted = threading.Event(), [5]
    write = os.write

    def limited(descriptor: int, data: bytes) -> int:
        if not full.is_set():
            return write(descriptor, data)
        if not accepted[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, data[: accepted[0]])
        accepted[0] -= done
        return done

    monkeypatch.setattr("kvsite.line_queue.os.write", limited)
    yield lambda is_full: full.set() if is_full else full.clear()
    full.clear()


def test_lines_wait_while_the_disk_is_full(
    full_disk: Callable[[bool], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.log"
    queue = LineQueue(FileSink(str(path), retry_s=0.01), 1000, missing)
    queue.write('{"n":0}')
    queue.flush()
    full_disk(True)
    for n in range(1, 200):
        queue.write(f'{{"n":{n}}}')
    wait_until(lambda: "No space left" in caplog.text)
    assert queue.bytes <= 1000
    dropped = queue.dropped_lines
    assert 50 < dropped < 150
    full_disk(False)
    wait_until(lambda: queue.bytes == 0)
    queue.write('{"n":200}')
    queue.flush()
    wait_until(lambda: "can be written again" in caplog.text)
    lines = path.read_text().splitlines()
    assert lines[1] == '{"n":'  # what the full disk accepted
    whole = [json.loads(line) for line in (lines[0], *lines[2:])]
    assert [line["n"] for line in whole if "n" in line] == [*range(200 - dropped), 200]
    assert [line["dropped"] for line in whole if "dropped" in line] == [dropped]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, "one line a minute"
    assert str(path) in errors[0].getMessage()


def test_a_pipe_that_nobody_reads_delays_no_write(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(StartError, match="No such device"):
        Audited(path)  # without a reader
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        replica = Audited(path)
        assert replica.context.audit is not None
        queue = replica.context.audit._queue
        queue._max_bytes = 50_000
        began_s = time.monotonic()
        for n in range(1500):
            assert replica.ask("PUT", f"/kvs/{n}{'k' * 400}", {"value": n}, token=None).status == 201
        assert time.monotonic() - began_s < 20
        assert queue.bytes <= 50_000
        assert 0 < replica.context.audit.dropped_lines < 1500
        assert f"causeway_audit_lines_dropped_total {queue.dropped_lines:.1f}".encode() in (
            replica.ask("GET", "/metrics", token=None).body
        )
        text = b""

        def is_reported() -> bool:
            nonlocal text
            text += os.read(reader, 65536)
            return b'"dropped":' in text

        wait_until(is_reported)
    finally:
        os.close(reader)


def test_an_update_longer_than_the_queue_is_written_if_nothing_waits(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    queue = LineQueue(FileSink(str(path)), 100, missing)
    queue.write("x" * 1000)
    queue.flush()
    assert (path.stat().st_size, queue.dropped_lines) == (1001, 0)


def test_a_writer_that_cannot_start_loses_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Audited(tmp_path / "audit.log")

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        assert replica.ask("PUT", "/kvs/1", {"value": 1}, token=None).status == 201
    assert replica.ask("PUT", "/kvs/2", {"value": 1}, token=None).status == 201
    assert [line["key"] for line in replica.lines()] == ["1", "2"]


@pytest.mark.parametrize("target", ["-", "stderr"])
def test_standard_error_has_the_lines_between_those_of_the_log(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = os.pipe()
    handler = QueueHandler(ends[1])
    handler.setFormatter(HumanFormatter())
    monkeypatch.setattr("kvsite.audit.queue_handler", lambda: handler)
    audit = AuditLog.open(target, {})
    handler.handle(logging.LogRecord("causeway", logging.INFO, __file__, 1, "before", (), None))
    audit.record(Update("a@1", 7, 1, {}, (Write("x", b"1"),)))
    audit.flush()
    first, second = os.read(ends[0], 65536).decode().splitlines()
    for end in ends:
        os.close(end)
    assert "before" in first
    assert json.loads(second)["dot"] == ["a@1", 7]
