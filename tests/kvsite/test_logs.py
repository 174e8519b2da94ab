"""The log: what lines contain, how long they get, and that a log that nobody reads blocks nobody."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from kvsite.cli import MANAGE
from kvsite.cluster import LocalCluster
from kvsite.logs import (
    MAX_FAULT_BYTES,
    MAX_REQUEST_BYTES,
    HumanFormatter,
    JsonFormatter,
    LineFormatter,
    QueueHandler,
    set_request_id,
)
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

FORMATTERS = pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()], ids=["human", "json"])
HOSTILE = "\x1b[2J\x9b31m\x7f\r\nforged line\u2028\u202eevil\x00\udcff"


@pytest.fixture(autouse=True)
def outside_of_requests() -> Iterator[None]:
    yield
    set_request_id("")


def record(message: str, *args: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("causeway", level, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def fail(text: str) -> None:
    raise RuntimeError(text)


def with_traceback(made: logging.LogRecord, text: str) -> logging.LogRecord:
    try:
        fail(text)
    except RuntimeError:
        made.exc_info = sys.exc_info()
    return made


def size(line: str) -> int:
    return len(line.encode()) + 1 if line else 0


# -- lines -------------------------------------------------------------------------------------------------------------


@FORMATTERS
@pytest.mark.parametrize("text", ["x" * 120_000, "é" * 60_000, "\x1b" * 60_000, HOSTILE * 5_000, "🦆" * 10_000])
@pytest.mark.parametrize("request_id", ["", "r-1", "i" * 128])
def test_a_line_is_cut_but_says_what_it_can(formatter: LineFormatter, text: str, request_id: str) -> None:
    set_request_id(request_id)
    line = formatter.format(record("rejected PUT %s", text, fields={"path": text, "status": 400}))
    assert "rejected PUT" in line
    assert 200 < size(line) <= MAX_REQUEST_BYTES


@FORMATTERS
def test_the_lines_of_a_request_have_a_limit_together(formatter: LineFormatter) -> None:
    for _ in range(3):  # Three requests with the same id, which a client can choose.
        set_request_id("r")
        lines = [formatter.format(record("line %d %s", n, "x" * 100)) for n in range(50)]
        assert 500 < sum(map(size, lines)) <= MAX_REQUEST_BYTES
        assert "line 0" in lines[0]
        assert lines[-1] == ""


@FORMATTERS
def test_lines_outside_of_requests_are_not_counted_together(formatter: LineFormatter) -> None:
    assert all(formatter.format(record("line %d", n)) for n in range(100))


@FORMATTERS
def test_no_character_of_others_reaches_a_terminal_as_a_command(formatter: LineFormatter) -> None:
    fault = with_traceback(record("fault at %s", HOSTILE, level=logging.ERROR), HOSTILE)
    for made in (record("peer says %s", HOSTILE, fields={"path": HOSTILE}), fault):
        line = formatter.format(made)
        assert all(each.isprintable() for each in line.replace("\n", "")), line
        assert not re.search("^forged", line, re.MULTILINE)
        assert "forged line" in line


def test_json_lines_are_ascii_and_contain_the_text() -> None:
    line = JsonFormatter().format(record("peer says %s", HOSTILE))
    assert line.isascii()
    assert json.loads(line)["message"] == f"peer says {HOSTILE}"


@FORMATTERS
def test_only_a_fault_of_ours_has_a_traceback(formatter: LineFormatter) -> None:
    set_request_id("r-1")
    bad_request = with_traceback(record("bad", level=logging.ERROR, status_code=400), "x" * 120_000)
    assert "Traceback" not in formatter.format(bad_request)
    fault = with_traceback(record("fault", level=logging.ERROR), "why it failed")
    assert "Traceback" in formatter.format(fault)
    assert "why it failed" in formatter.format(fault)
    long = formatter.format(with_traceback(record("fault", level=logging.ERROR), "x" * 120_000))
    assert MAX_REQUEST_BYTES < size(long) <= MAX_FAULT_BYTES + 1


@FORMATTERS
def test_a_wrong_format_of_a_log_call_is_still_a_line(formatter: LineFormatter) -> None:
    assert "TypeError" in formatter.format(record("%d of them", "many"))


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def read_all(descriptor: int, until: bytes) -> bytes:
    got = b""
    while until not in got:
        got += os.read(descriptor, 65536)
    return got


def handler_of(descriptor: int, max_bytes: int = 100_000) -> QueueHandler:
    handler = QueueHandler(descriptor, max_bytes)
    handler.setFormatter(HumanFormatter())
    return handler


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    handler = handler_of(pipe[1])
    for n in range(100):
        handler.handle(record("line %d.", n))
    handler.flush()
    assert re.findall(rb"line (\d+)\.", read_all(pipe[0], b"line 99.")) == [b"%d" % n for n in range(100)]


def test_a_log_that_nobody_reads_blocks_no_thread_and_counts_what_it_drops(pipe: tuple[int, int]) -> None:
    handler = handler_of(pipe[1])
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda: [handler.handle(record("x" * 200)) for _ in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    handler.flush()
    assert time.monotonic() - began < 20
    assert handler.queue.bytes <= 100_000
    assert 0 < handler.dropped_lines < 4000
    reported, text = 0, b""
    while reported < handler.dropped_lines:
        text += os.read(pipe[0], 65536)
        reported = sum(map(int, re.findall(rb"causeway: (\d+) lines of the log were dropped", text)))
    assert reported == handler.dropped_lines
    handler.handle(record("it flows again"))
    read_all(pipe[0], b"it flows again")
    assert reported == handler.dropped_lines


def test_a_log_that_is_gone_disturbs_nobody(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    handler = handler_of(pipe[1])
    for n in range(10):
        handler.handle(record("line %d", n))
    handler.flush()
    assert handler.dropped_lines == 10


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    handler = handler_of(pipe[1], 1_000_000)
    for n in range(1000):
        handler.handle(record("%d %s.", n, "x" * 200))
    text = read_all(pipe[0], b" 999 ")
    assert len(re.findall(rb"causeway: \d+ x", text)) == 1000
    assert handler.dropped_lines == 0


# -- of a replica ------------------------------------------------------------------------------------------------------


def head(path: bytes, method: bytes = b"GET", host: bytes = b"localhost", more: bytes = b"") -> bytes:
    return b"%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n" % (method, path, host, more)


HOSTILE_REQUESTS = {
    "long path": head(b"/kvs/" + b"a" * 60_000),
    "long path that is no UTF-8": head(b"/kvs/" + b"%ff" * 20_000),
    "long path with controls": head(b"/kvs/" + b"%1b%0a" * 10_000),
    "unknown path": head(b"/" + b"%1b" * 20_000),
    "page of the dashboard": head(b"/admin/replica/" + b"%1b%c2%9b" * 9_000 + b"/"),
    "static file": head(b"/admin/static/" + b"../" * 9_000 + b"x%00"),
    "null in a static file": head(b"/admin/static/%00"),
    "bad query": head(b"/kvs?limit=" + b"%1b" * 20_000),
    "bad host": head(b"/kvs", host=b"evil" * 5_000),
    "long host": head(b"/kvs/" + b"b" * 30_000, host=b"\xff\xfe" * 100),
    "bad method": head(b"/kvs/" + b"c" * 30_000, b"BREW"),
    "bad body": head(b"/kvs/a", b"PUT", more=b"Content-Type: application/json\r\nContent-Length: 1\r\n") + b"{",
    "login without a token": head(
        b"/admin/login/", b"POST", more=b"Content-Length: 0\r\nReferer: " + b"x" * 30_000 + b"\r\n"
    ),
    "bad cookie": head(b"/admin/", more=b"Cookie: sessionid=" + b"\x80" * 9_000 + b"\r\n"),
    "chosen id": head(b"/kvs/" + b"d" * 60_000, more=b"X-Request-ID: " + b"i" * 128 + b"\r\n"),
    "chosen trace": head(
        b"/kvs/" + b"e" * 60_000, more=b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01\r\n"
    ),
    "proof of nobody": head(b"/view/" + b"%1b" * 9_000, b"PUT", more=b"X-Causeway-Proof: " + b"2" * 9_000 + b"\r\n"),
}


@pytest.mark.processes
@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_request_of_anybody_adds_at_most_1000_bytes(log_format: str) -> None:
    environment = {"KV_LOG_FORMAT": log_format, "KV_SLOW_REQUEST": "0.000001"}
    with LocalCluster(1, free_ports(1), environment=environment) as made:
        host, _, port = made.addresses[0].rpartition(":")

        def end_of_log(marker: str) -> int:
            """Log a request for ``marker``, which is slower than a microsecond; return how long the log is then."""
            requests.get(f"{made.url(0)}/kvs/{marker}", timeout=5)
            made.wait_logged(0, f"/kvs/{marker}'")
            return len(made.log(0).encode())

        before = end_of_log("start")
        marked = end_of_log("another") - before
        for n, (name, request) in enumerate(HOSTILE_REQUESTS.items()):
            before = end_of_log(f"before-{n}")
            with contextlib.closing(socket.create_connection((host, int(port)), 10)) as connection:
                connection.sendall(request)
                with contextlib.suppress(ConnectionError):
                    while connection.recv(65536):
                        pass
            added = end_of_log(f"after-{n}") - before - marked
            assert added <= MAX_REQUEST_BYTES + 20, (name, made.log(0)[-3000:])  # 20: digits of the marker's line
        log = made.log(0)
        assert "Traceback" not in log
        assert "\x1b" not in log
        assert "\x9b" not in log
        assert requests.get(f"{made.url(0)}/readyz", timeout=5).status_code == 200


@pytest.mark.processes
def test_a_replica_whose_log_nobody_reads_serves_and_stops() -> None:
    address = f"127.0.0.1:{free_ports(1)}"
    command = [sys.executable, str(MANAGE), "run_replica", "--address", address]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KV_", "VIEW", "SOCKET_"))}
    with subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            session = requests.Session()
            wait_until(lambda: session.get(f"http://{address}/readyz", timeout=5).status_code == 200, timeout_s=20)
            connection = http.client.HTTPConnection(address, timeout=5)
            for _ in range(8000):  # About 200 bytes each: more than a pipe and the queue can hold.
                connection.request("GET", f"/kvs?limit=x&{'y' * 400}", headers={"X-Request-ID": "r" * 128})
                with connection.getresponse() as response:
                    assert response.status == 400
                    response.read()
            connection.close()
            assert session.put(f"http://{address}/kvs/a", json={"value": 1}, timeout=5).status_code == 201
            metrics = session.get(f"http://{address}/metrics", timeout=5).text
            dropped = re.search(r"^causeway_log_lines_dropped_total (\S+)$", metrics, re.MULTILINE)
            assert dropped
            assert float(dropped[1]) > 0
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(12) == 0
            assert time.monotonic() - began < 10
        finally:
            process.kill()
