"""``manage.py export`` and ``manage.py import`` against a replica over HTTP: files, exit codes, and what they print."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from store import importing
from store.api import parsing
from store.export_file import ExportReader
from store.management import progress, replica
from store.management.commands import export
from store.management.progress import ProgressLine, progress_text
from store.management.tls_check import UNSET_CA
from store.settings import RequestLimits
from tests.support.api import Api, fresh_api
from tests.support.http import Serve, serve
from tools.paths import REPOSITORY

__all__ = ["serve"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KV_TOKEN", "KV_API_TOKENS", "KV_TLS_CERT", "KV_TLS_CA", "SOCKET_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(serve: Serve) -> Callable[[], tuple[Api, str]]:
    """Return a function that serves a fresh replica and returns it with its address."""

    def made() -> tuple[Api, str]:
        api = fresh_api()
        api.use(limits=RequestLimits())

        def application(environ: Any, respond: Any) -> Any:
            return api._application(environ, respond)  # A test may replace it.

        return api, serve(application)

    return made


def run(name: str, *arguments: str) -> str:
    errors = io.StringIO()
    call_command(name, *arguments, stderr=errors)
    return errors.getvalue()


def fails(name: str, *arguments: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        run(name, *arguments)
    return caught.value


def keys_in(path: Path) -> set[str]:
    with path.open("rb") as file:
        return {line.key for line in ExportReader(file).lines()}


def filled(api: Api) -> None:
    for n in range(5):
        api.put(f"/kvs/p/{n}", n)
    api.ask("PUT", "/kvs/q/b%20%2F%2E%2E", raw=b"\x00", content_type="application/octet-stream")
    api.ask("PATCH", "/kvs/q/n", {"increment": 3, "ttl": 100})


def test_an_export_goes_to_a_file_and_comes_back(start: Any, tmp_path: Path) -> None:
    (source, source_at), (target, target_at) = start(), start()
    filled(source)
    file = tmp_path / "all.jsonl"
    assert run("export", "--at", source_at, "--to", str(file)) == f"exported 7 keys to {file}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["all.jsonl"]
    assert len(keys_in(file)) == 7
    assert run("import", "--at", target_at, str(file)) == "imported 7 keys\n"
    for key in ("p/3", "q/b%20%2F%2E%2E", "q/n"):
        bodies = [api.get(f"/kvs/{key}").body for api in (source, target)]
        assert [bodies[0][name] for name in ("result", "value")] == [bodies[1][name] for name in ("result", "value")]
        assert bodies[0].get("type") == bodies[1].get("type")
    refused = fails("import", "--at", target_at, str(file))
    assert (refused.returncode, "the target already has 'p/0', 'p/1', 'p/2' and at least 4 more" in str(refused)) == (
        2,
        True,
    )
    assert run("import", "--at", target_at, "--if-absent", str(file)) == "imported 0 keys; 7 were there already\n"
    assert run("import", "--at", target_at, "--overwrite", str(file)) == "imported 7 keys\n"
    assert target.get("/kvs/q/n").body["value"] == 3
    assert run("import", "--at", target_at, "--prefix-to", "copy/", str(file)) == "imported 7 keys\n"
    assert target.get("/kvs/copy/p/3").body["value"] == 3


def test_standard_output_and_standard_input(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (source, source_at), (target, target_at) = start(), start()
    filled(source)
    written = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", written)
    assert run("export", "--at", source_at, "--prefix", "p/") == "exported 5 keys\n"
    content = written.buffer.getvalue()
    assert json.loads(content.splitlines()[0])["prefix"] == "p/"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run("import", "--at", target_at, "--prefix-to", "r/", "-") == "imported 5 keys\n"
    assert target.get("/kvs?prefix=").body["keys"] == [f"r/{n}" for n in range(5)]


def test_siblings_that_were_not_restored_are_named_and_change_the_exit_code(start: Any, tmp_path: Path) -> None:
    (source, source_at), (_, target_at) = start(), start()
    source.put("/kvs/k", 1)
    source.receive_update("k", b"2")
    run("export", "--at", source_at, "--to", str(tmp_path / "f"))
    errors = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("import", "--at", target_at, str(tmp_path / "f"), stderr=errors)
    assert errors.getvalue() == "k: 1 sibling was not restored, only the winner\nimported 1 key\n"
    assert (str(caught.value), caught.value.returncode) == ("1 sibling and 0 keys could not be restored", 1)


def test_what_was_there_already_or_not_written_has_lost_no_siblings(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, at = start()
    source.put("/kvs/k", 1)
    source.receive_update("k", b"2")
    file = str(tmp_path / "f")
    run("export", "--at", at, "--to", file)
    assert run("import", "--at", at, "--if-absent", file) == "imported 0 keys; 1 were there already\n"
    assert source.get("/kvs/k?siblings=true").body["conflicts"] == 2
    source._application = application("403 Forbidden", b'{"error":"Token may not"}')
    errors = io.StringIO()
    with pytest.raises(CommandError, match="answers 403"):
        call_command("import", "--at", at, "--overwrite", file, stderr=errors)
    assert errors.getvalue() == ""


def test_the_documented_command_lists_the_keys_in_conflict(start: Any, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/operations.md").read_text("utf-8")
    section = page.split("### Keys in conflict in an export")[1].split("\n### ")[0]
    [command] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    source, at = start()
    source.put("/kvs/cart/ada", ["tea", "bread"])
    source.receive_update("cart/ada", b'["tea", "milk"]')
    source.put("/kvs/other", 1)
    run("export", "--at", at, "--to", str(tmp_path / "backup.jsonl"))
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [["cart/ada", ["tea", "milk"], ["tea", "bread"]]]


def test_too_few_acks_are_reported(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source, source_at), (_, target_at) = start(), start()
    filled(source)
    run("export", "--at", source_at, "--to", str(tmp_path / "f"))
    monkeypatch.setattr(parsing, "DEFAULT_ACK_WAIT_S", 0.0)
    said = run("import", "--at", target_at, "--w", "2", str(tmp_path / "f"))
    assert said == "imported 7 keys\n2 transactions had fewer acks than requested; replication continues\n"
    assert run("import", "--at", target_at, "--w", "majority", "--overwrite", str(tmp_path / "f")).count("\n") == 1


def test_what_is_no_export_is_refused(start: Any, tmp_path: Path) -> None:
    (source, source_at), (target, target_at) = start(), start()
    filled(source)
    file = tmp_path / "f"
    run("export", "--at", source_at, "--to", str(file))
    file.write_bytes(file.read_bytes()[:-20])
    before = target.state()
    refused = fails("import", "--at", target_at, str(file))
    assert (refused.returncode, "cut off" in str(refused)) == (2, True)
    assert fails("import", "--at", target_at, str(tmp_path / "none")).returncode == 2
    assert target.state() == before


def application(status: str, *pieces: bytes) -> Any:
    """Return a WSGI application that always sends the same response."""

    def respond(_environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "application/json")])
        return list(pieces)

    return respond


@pytest.mark.parametrize(
    ("status", "pieces", "says"),
    [
        (
            "200 OK",
            [b'{"causeway-export":1,"keys":2}\n', b'{"key":"k","versions":[{"value":1}]}\n'],
            "ends after 1 of 2",
        ),
        ("200 OK", [b'{"causeway-export":1,"keys":2}\n{"error":"too slow"}\n'], "could not be completed: too slow"),
        ("200 OK", [b"<html>"], "ends in the middle"),
        ("200 OK", [b"<html>\n"], "no export of Causeway"),
        ("403 Forbidden", [b'{"error":"Token may not\\u001b[2J"}'], "answers 403: 'Token may not\\x1b[2J'"),
        ("502 Bad Gateway", [b"<html>"], "answers 502: no reason given"),
    ],
)
def test_an_export_that_is_not_complete_leaves_no_file(
    serve: Serve, tmp_path: Path, status: str, pieces: list[bytes], says: str
) -> None:
    at = serve(application(status, *pieces))
    failed = fails("export", "--at", at, "--to", str(tmp_path / "f"))
    assert failed.returncode == 2
    assert says in str(failed)
    assert list(tmp_path.iterdir()) == []


def test_without_a_replica_the_reason_is_one_line(tmp_path: Path) -> None:
    failed = fails("export", "--at", "127.0.0.1:1", "--to", str(tmp_path / "f"))
    assert (failed.returncode, str(failed)) == (
        2,
        "the export has failed: 127.0.0.1:1 does not answer: nobody listens there (--at names another replica)",
    )
    file = tmp_path / "broken.jsonl"
    file.write_bytes(b"it is not read before a replica answers")
    failed = fails("import", "--at", "127.0.0.1:1", str(file))
    assert (failed.returncode, str(failed)) == (
        2,
        "127.0.0.1:1 does not answer: nobody listens there (--at names another replica)",
    )


def test_a_replica_that_ends_during_an_import_is_named(start: Any, serve: Serve, tmp_path: Path) -> None:
    (source, source_at), answers = start(), iter([b'{"keys":[]}'])
    filled(source)
    run("export", "--at", source_at, "--to", str(tmp_path / "f"))

    def once(environ: Any, respond: Any) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = next(answers, None)
        respond("200 OK", [("Content-Length", "100" if body is None else str(len(body)))])
        return [body or b"cut off"]

    at = serve(once)
    assert str(fails("import", "--at", at, str(tmp_path / "f"))) == f"{at} does not answer: the connection broke"


def test_the_other_scheme_is_named(start: Any, tmp_path: Path) -> None:
    _, at = start()
    failed = str(fails("export", "--at", f"https://{at}", "--to", str(tmp_path / "f")))
    assert failed == f"the export has failed: https://{at} does not answer: {UNSET_CA}"


def test_a_directory_that_does_not_exist_is_named(start: Any, tmp_path: Path) -> None:
    _, at = start()
    none = tmp_path / "none"
    assert str(fails("export", "--at", at, "--to", str(none / "f"))) == (
        f"the export has failed: {none}: this directory does not exist: create it first"
    )
    assert str(fails("export", "--every", "1h", "--to", str(none))) == (
        f"--every needs --to with a directory: {none} does not exist, create it first"
    )
    assert str(fails("import", "--at", at, str(none))) == f"{none}: No such file or directory"


def test_an_export_tries_several_replicas_in_order(
    start: Any, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, at = start()
    filled(source)
    broken = serve(application("200 OK", b'{"causeway-export":1,"keys":2}\n'))
    file = tmp_path / "f"
    said = run("export", "--at", f"127.0.0.1:1, {broken},{at},127.0.0.1:2", "--to", str(file)).splitlines()
    assert said == [
        "127.0.0.1:1 does not answer: nobody listens there (--at names another replica); trying " + broken,
        f"the export is not complete: it ends in the middle; trying {at}",
        f"exported 7 keys to {file}",
    ]
    assert len(keys_in(file)) == 7
    failed = fails("export", "--at", f"{broken},127.0.0.1:1", "--to", str(file))
    assert (failed.returncode, "127.0.0.1:1 does not answer" in str(failed)) == (2, True)
    assert len(keys_in(file)) == 7
    assert fails("export", "--at", f"{at},nonsense", "--to", str(file)).returncode == 2
    written = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", written)
    assert run("export", "--at", f"127.0.0.1:1,{at}").endswith("exported 7 keys\n")
    assert written.buffer.getvalue().count(b"causeway-export") == 1
    failed = fails("export", "--at", f"{broken},{at}")
    assert "ends in the middle" in str(failed), "standard output has a part already"


def test_an_export_every_so_often_keeps_the_latest_files(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, at = start()
    source.put("/kvs/a", 1)
    (tmp_path / "mine.jsonl").write_text("not ours")
    (tmp_path / "causeway-20200101T000000Z.jsonl").write_text("old")
    (tmp_path / "causeway-20200101T000000Z.jsonl.77.part").write_text("of a run that was killed")
    now_s = [1_800_000_000.0]
    slept: list[float] = []

    class Clock:
        @staticmethod
        def now(tz: Any) -> datetime:
            return datetime.fromtimestamp(now_s[0], tz)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_s[0] += 3600
        if len(slept) == 2:
            source.stop_serving()  # This export fails, and nothing is removed for it.
        if len(slept) == 3:
            source.store.not_serving_reason = None
        if len(slept) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(export, "datetime", Clock)
    monkeypatch.setattr(export, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now_s[0]))
    said = run("export", "--at", at, "--every", "1h", "--keep", "3", "--to", str(tmp_path))
    assert said.count("exported 1 key to") == 4
    assert said.count("answers 503: Replica is not in the view") == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 4
    assert names[-1] == "mine.jsonl"
    assert all(keys_in(tmp_path / name) == {"a"} for name in names[:-1])
    assert slept == [3600.0] * 5


@pytest.mark.parametrize(
    "arguments",
    [["--every", "1h"], ["--keep", "3"], ["--every", "1h", "--to", "/dev/null"]],
)
def test_options_that_do_not_fit_together_are_rejected(arguments: list[str]) -> None:
    assert fails("export", *arguments).returncode == 2


def test_times_and_numbers() -> None:
    assert [export.duration_s(text) for text in ("90s", "30m", "1h", "2d")] == [90, 1800, 3600, 172_800]
    for text in ("", "0h", "1", "h", "1.5h", "-1h", "1w", "1h30m"):
        with pytest.raises(argparse.ArgumentTypeError):
            export.duration_s(text)
    assert export.positive("24") == 24
    for text in ("0", "-1", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            export.positive(text)


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_503_is_tried_again_for_a_while(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source, source_at), (target, target_at) = start(), start()
    filled(source)
    run("export", "--at", source_at, "--to", str(tmp_path / "f"))
    served = target._application
    slept: list[float] = []
    attempts: list[str] = []

    def busy(environ: Any, respond: Any) -> Any:
        attempts.append(environ["REQUEST_METHOD"])
        if len(attempts) % 2:
            respond("503 Service Unavailable", [("Retry-After", "1"), ("Content-Type", "application/json")])
            return [b'{"error":"too many large responses"}']
        return served(environ, respond)

    source._application, original = busy, source._application
    served = original
    monkeypatch.setattr(replica, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    assert (
        run("export", "--at", source_at, "--to", str(tmp_path / "again"))
        == f"exported 7 keys to {tmp_path / 'again'}\n"
    )
    assert slept == [replica.RETRY_S]
    served = target._application
    target._application = busy
    assert run("import", "--at", target_at, str(tmp_path / "f")) == "imported 7 keys\n"
    assert len(slept) > 2
    monkeypatch.setattr(replica, "RETRY_FOR_S", -1.0)
    assert "answers 503" in str(fails("import", "--at", target_at, "--overwrite", str(tmp_path / "f")))


def test_the_token_is_sent_and_each_request_follows_the_ones_before(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source, source_at), (target, target_at) = start(), start()
    filled(source)
    monkeypatch.setattr(importing, "BATCH_KEYS", 2)
    seen: list[tuple[str, Any]] = []
    served = target._application

    def recording(environ: Any, respond: Any) -> Any:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        if environ["REQUEST_METHOD"] == "POST":
            seen.append((environ["HTTP_AUTHORIZATION"], json.loads(body)["causal-metadata"]))
        return served(environ, respond)

    run("export", "--at", source_at, "--to", str(tmp_path / "f"))
    target._application = recording
    monkeypatch.setenv("KV_TOKEN", "token-of-the-test")
    run("import", "--at", target_at, str(tmp_path / "f"))
    assert {token for token, _ in seen} == {"Bearer token-of-the-test"}
    own = target.store.replica_id
    assert [past.get(own, 0) for _, past in seen] == sorted(past.get(own, 0) for _, past in seen)
    assert seen[-1][1][own] >= 2


# --- progress --------------------------------------------------------------------------------------------------------


def test_the_progress_has_rate_and_time_left() -> None:
    assert progress_text("imported", 250_000, 1_000_000, 10.0) == (
        "imported 250,000 of 1,000,000 keys, 25,000 per second, 30 s left"
    )
    assert progress_text("imported", 10, 1_000, 10.0).endswith("1 per second, 16 min 30 s left")
    assert progress_text("imported", 1, 100_000, 1.0).endswith("27 h 46 min left")
    assert progress_text("imported", 5, 5, 1.0).endswith("5 per second")
    assert progress_text("imported", 0, 5, 1.0).endswith("0 per second")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_and_a_log_gets_few(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    for stream, expected in ((Terminal(), 50), (io.StringIO(), 3)):
        line = ProgressLine("imported", stream)
        for done in range(305):
            line.show(done, 1000)
            now_s[0] += 0.1
        line.finish()
        line.finish()
        assert stream.getvalue().count("imported") == expected
    assert stream.getvalue().startswith("imported 101 of 1,000 keys, 10 per second, 1 min 30 s left\n")
