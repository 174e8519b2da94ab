"""A replica under hostile connections: it answers others, keeps its memory, and obeys no broken body.

Uses real processes and sockets.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from kvsite.cli import MANAGE
from kvsite.cluster import LocalCluster
from tests.conftest import ClusterFactory
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

HEAD = b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"value":7}'
EIGHT_MIB = 8 * 1024 * 1024

STALLED = {
    "headers": b"GET /kvs/a" + HEAD + b"X: ",
    "body": b"PUT /kvs/a" + HEAD + b'Content-Length: 500000\r\n\r\n{"value": "',
    "chunked body": b"PUT /kvs/a" + CHUNKED + b'5\r\n{"val\r\n',
    "body of a public request": b"GET /healthz" + CHUNKED + b"5\r\nhello\r\n",
    "body after 100 Continue": b"PUT /kvs/a" + HEAD + b"Expect: 100-continue\r\nContent-Length: 500000\r\n\r\n",
}


@pytest.fixture
def quick(cluster: ClusterFactory) -> LocalCluster:
    """One replica with a short timeout of bodies."""
    return cluster(1, KV_BODY_TIMEOUT="2")


def port_of(made: LocalCluster) -> int:
    return int(made.addresses[0].rpartition(":")[2])


def ask(port: int, method: str, path: str, value: Any = None) -> int:
    """Send one request on a connection of its own, and return its status. It has to be answered within two seconds."""
    body = None if value is None else json.dumps({"value": value})
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        with closing(connection.getresponse()) as response:
            response.read()
            return response.status


@contextmanager
def connections(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Open ``count`` connections and send ``sent`` on each."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            connection.sendall(sent)
            opened.append(connection)
        yield opened


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def peak_mib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) // 1024


@pytest.mark.parametrize("where", STALLED)
def test_stalled_connections_delay_no_others_and_are_closed(quick: LocalCluster, where: str) -> None:
    port = port_of(quick)
    with connections(port, 1000, STALLED[where]) as opened:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert [ask(port, "GET", "/healthz"), ask(port, "GET", "/readyz")] == [200, 200]
            assert ask(port, "PUT", "/kvs/x", 1) in (200, 201)
            assert ask(port, "GET", "/kvs/x") == 200
        wait_until(lambda: all(is_closed(each) for each in opened), timeout_s=15)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a part of ClientHello"])
def test_stalled_tls_handshakes_delay_no_others(cluster: ClusterFactory, tmp_path: Path, sent: bytes) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-out", str(cert), "-keyout", str(key)], check=True, capture_output=True)
    made = cluster(1, KV_TLS_CERT=cert, KV_TLS_KEY=key, KV_TLS_CA=cert)
    with connections(port_of(made), 1000, sent):
        for path in ("/healthz", "/readyz", "/view"):
            assert requests.get(made.url(0) + path, verify=str(cert), timeout=2).status_code == 200
        put = requests.put(f"{made.url(0)}/kvs/x", json={"value": 1}, verify=str(cert), timeout=2)
        assert put.status_code == 201


def test_a_body_without_progress_gets_408_and_one_line_of_the_log(quick: LocalCluster) -> None:
    with socket.create_connection(("127.0.0.1", port_of(quick)), 10) as connection:
        connection.sendall(STALLED["body"])
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
    assert ask(port_of(quick), "PUT", "/kvs?bad", 1) == 405  # The log has a line of this later request.
    quick.wait_logged(0, "Method Not Allowed")
    assert [line for line in quick.log(0).splitlines() if "408" in line or "Timeout" in line] == [
        line for line in quick.log(0).splitlines() if "slow request: PUT '/kvs/a'" in line and "status 408" in line
    ]
    assert quick.log(0).count("status 408") == 1


def test_waiting_requests_outlive_stalled_ones_from_the_same_address(quick: LocalCluster) -> None:
    port = port_of(quick)
    ask(port, "PUT", "/kvs/x", 1)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/kvs/x")
    response = connection.getresponse()
    etag = response.headers["ETag"]
    response.read()
    connection.request("GET", "/kvs/x?wait=8", headers={"If-None-Match": etag})
    time.sleep(1.5)
    with connections(port, 100, STALLED["body"]) as opened:
        wait_until(lambda: all(is_closed(each) for each in opened), timeout_s=15)
    assert connection.getresponse().status == 304
    connection.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz" + CHUNKED + b"800000\r\n",
        b"PUT /kvs/a" + CHUNKED + b"800000\r\n",
        b"PUT /kvs/a" + HEAD + b"Content-Length: 8388608\r\n\r\n",
    ],
    ids=["GET, chunked", "PUT, chunked", "PUT, with a length"],
)
def test_unfinished_bodies_do_not_fill_the_memory(quick: LocalCluster, head: bytes) -> None:
    port, before = port_of(quick), peak_mib(quick.pid(0))
    with ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            connection.settimeout(0.2)
            try:
                connection.sendall(head + b" " * (EIGHT_MIB - 1000))
            except OSError:
                continue
    assert peak_mib(quick.pid(0)) < before + 250


def test_a_chunked_body_without_end_is_cut(quick: LocalCluster) -> None:
    port, before = port_of(quick), peak_mib(quick.pid(0))
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent, end, is_cut = 0, time.monotonic() + 20, False
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"PUT /kvs/a" + CHUNKED)
        while not is_cut and time.monotonic() < end:
            try:
                connection.sendall(piece)
                sent += len(piece)
            except ConnectionError:
                is_cut = True
    assert is_cut
    assert peak_mib(quick.pid(0)) < before + 300, sent


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        ("DELETE", CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
        ("DELETE", CHUNKED + b"0\r\n\r\n"),
        ("PUT", CHUNKED + b"b\r\n" + BODY + b"\r\nzz\r\n"),
        ("PUT", CHUNKED + b"b\r\n" + BODY + b"XX0\r\n\r\n"),
        ("PUT", CHUNKED + b"b\r\n" + BODY + b"\r\nfffffffffffffffff\r\n"),
        ("PUT", CHUNKED + b"b\r\n" + BODY + b"\r\n"),
        ("PUT", HEAD + b"Content-Length: 12\r\n\r\n" + BODY),
    ],
)
@pytest.mark.parametrize("ends", [True, False], ids=["the client goes", "the client waits"])
def test_a_broken_body_changes_nothing(quick: LocalCluster, method: str, broken: bytes, ends: bool) -> None:
    port = port_of(quick)
    ask(port, "PUT", "/kvs/a", "before")
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(method.encode() + b" /kvs/a" + broken)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        response = connection.recv(65536)
    assert response[9:12] in (b"400", b"408", b"")
    got = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    got.request("GET", "/kvs/a")
    assert json.loads(got.getresponse().read())["value"] == "before"
    got.close()


def test_a_good_chunked_body_is_obeyed(quick: LocalCluster) -> None:
    with socket.create_connection(("127.0.0.1", port_of(quick)), 5) as connection:
        connection.sendall(b"PUT /kvs/a" + CHUNKED + b'5;ext=1\r\n{"val\r\n6\r\nue":7}\r\n0\r\n\r\n')
        assert connection.recv(65536).startswith(b"HTTP/1.1 201")


def test_idle_connections_make_room(tmp_path: Path) -> None:
    program = tmp_path / "limited"
    program.write_text(f'#!/bin/sh\nulimit -n 120\nexec {sys.executable} {MANAGE} "$@"\n')
    program.chmod(0o755)
    port = free_ports(1)
    replica = LocalCluster(1, port, program=[str(program)], log_dir=tmp_path)
    with replica, connections(port, 150, b""):
        wait_until(lambda: answers(port), timeout_s=10)
        for _ in range(20):
            assert ask(port, "GET", "/healthz") == 200


@pytest.mark.slow
def test_open_connections_keep_no_large_buffers(cluster: ClusterFactory) -> None:
    """The server's buffer of a connection grows with its requests. 3,000 connections had 300 MiB of them."""
    made = cluster(1)
    port = port_of(made)
    body = json.dumps({"value": "v" * 300_000}).encode()
    put = b"PUT /kvs/a" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    before = peak_mib(made.pid(0))
    with connections(port, 1000, b"") as idle:
        for connection in idle:
            connection.sendall(put)
            assert connection.recv(4096)[9:12] in (b"200", b"201")
        wait_until(lambda: sum(map(is_closed, idle)) > 300, timeout_s=10)
        with ExitStack() as stack:
            for _ in range(2000):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                connection.sendall(put)
                assert connection.recv(4096)[9:12] == b"200"
            assert peak_mib(made.pid(0)) < before + 150
            assert ask(port, "GET", "/healthz") == 200


def answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/healthz") == 200
    except OSError:
        return False
