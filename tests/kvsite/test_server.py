"""A replica as a process: starting, serving, stopping. Uses real processes and sockets."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import requests

from kvsite import server
from kvsite.cli import MANAGE
from kvsite.cluster import ClusterError, LocalCluster
from kvsite.config import Config
from tests.conftest import ClusterFactory
from tests.support.ports import free_ports
from tests.support.waiting import assert_stays, wait_until

pytestmark = pytest.mark.processes

JSON = {"Content-Type": "application/json"}
QUICK = {"KV_DOWN_AFTER": "1", "KV_SYNC_INTERVAL": "0.3"}
"""Settings for tests that wait until replicas find each other or count as down."""


@pytest.fixture
def lone(cluster: ClusterFactory) -> LocalCluster:
    """One ready replica."""
    return cluster(1)


def exchange(port: int, request: bytes, timeout_s: float = 5) -> bytes:
    """Send the bytes of ``request`` unchanged; return everything received until the connection is closed."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout_s)) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def port_of(made: LocalCluster, i: int = 0) -> int:
    return int(made.addresses[i].rpartition(":")[2])


def run_until_exit(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``run_replica`` until it exits, for replicas that fail to start."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KV_", "VIEW", "SOCKET_"))}
    return subprocess.run(
        [sys.executable, str(MANAGE), "run_replica", *flags],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def children(pid: int) -> list[int]:
    task = Path(f"/proc/{pid}/task")
    return [int(child) for thread in task.iterdir() for child in (thread / "children").read_text().split()]


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_replica_is_one_process_and_sigkill_leaves_nothing_behind(lone: LocalCluster) -> None:
    assert children(lone.pid(0)) == []
    lone.kill(0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(lone)))
    lone.start_one(0)
    lone.wait_ready()


@pytest.mark.parametrize(
    ("flags", "environment", "line"),
    [
        ([], {"SOCKET_ADDRESS": "nonsense"}, "SOCKET_ADDRESS: 'nonsense' is not of the form host:port"),
        ([], {"KV_DOWN_AFTER": "soon"}, "KV_DOWN_AFTER: must be a number of seconds"),
        ([], {"KV_CLUSTER_SECERT": "x"}, "KV_CLUSTER_SECERT: there is no such setting; is KV_CLUSTER_SECRET meant?"),
        (["--view", "a:1;b:2"], {}, "VIEW: 'a:1;b:2' has no"),
        (["--address", "127.0.0.1:0"], {}, "SOCKET_ADDRESS: '127.0.0.1:0' has no port"),
        (["--bind", "192.0.2.1:9"], {"KV_OPEN": "true"}, "cannot listen on 192.0.2.1 port 9:"),
        (["--bind", "0.0.0.0:9"], {}, "KV_OPEN: other machines can reach 0.0.0.0"),
        (["--view", "a:1"], {"KV_API_TOKENS": "a:0123456789:write"}, "KV_API_TOKENS: a replica that contacts others"),
        ([], {"KV_CLUSTER_SECRET": "not UTF-8 \udcff\udcfe"}, "KV_CLUSTER_SECRET: is not valid UTF-8"),
        ([], {"KV_ADMIN_PASSWORD_FILE": "/no/such/file"}, "KV_ADMIN_PASSWORD_FILE: cannot read '/no/such/file'"),
    ],
)
def test_a_failed_start_prints_its_reason_in_one_line(flags: list[str], environment: dict[str, str], line: str) -> None:
    ended = run_until_exit(*flags, **environment)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert line in ended.stderr


def test_a_second_replica_on_the_same_port_does_not_start(lone: LocalCluster) -> None:
    ended = run_until_exit("--address", lone.addresses[0])
    assert ended.returncode == 2
    reason = f"cannot listen on 127.0.0.1 port {port_of(lone)}: Address already in use"
    assert ended.stderr.startswith(f"{reason}. Perhaps another replica runs there. Another port: ")
    assert ended.stderr.endswith("manage.py run_replica --address HOST:PORT\n")
    assert requests.get(f"{lone.url(0)}/readyz", timeout=5).status_code == 200


def test_the_log_names_address_contacts_and_open_access(cluster: ClusterFactory) -> None:
    made = cluster(2)
    log = made.log(0)
    assert f"listens on {made.url(0)}" in log
    assert f"contacting {made.addresses[1]}" in log
    assert "open: anyone" in log
    guarded = cluster(1, KV_CLUSTER_SECRET="do not log me", KV_ADMIN_PASSWORD="nor me either")
    assert "open: anyone" not in guarded.log(0)
    assert "log me" not in guarded.log(0)
    assert "nor me" not in guarded.log(0)


def test_it_listens_on_ipv6(cluster: ClusterFactory) -> None:
    port = free_ports(1)
    made = cluster(1, start=False, SOCKET_ADDRESS=f"[::1]:{port}", VIEW="")
    made.start()
    response = wait_until(lambda: requests.get(f"http://[::1]:{port}/view", timeout=5), timeout_s=20)
    assert response.json() == {"view": [f"[::1]:{port}"]}


def test_a_replica_with_tls_and_without_an_authority_of_its_own_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """tests/repository/test_walkthroughs.py serves TLS."""
    pem = Path("replica.pem")
    with caplog.at_level(logging.WARNING):
        server.announce(Config(tls_cert=pem, tls_key=pem, tls_ca=pem, seeds=("127.0.0.1:8091",)))
        server.announce(Config(tls_cert=pem, tls_key=pem))
        assert "KV_TLS_CA is not set" not in caplog.text
        server.announce(Config(tls_cert=pem, tls_key=pem, seeds=("127.0.0.1:8091",)))
        assert "KV_TLS_CA is not set" in caplog.text


def with_open_files(limit: int) -> list[str]:
    """Return a program for ``LocalCluster`` that may open ``limit`` files."""
    return ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", sys.executable, str(MANAGE)]


def test_with_few_file_descriptors_it_says_so_and_still_reaches_its_peers() -> None:
    with (
        LocalCluster(2, free_ports(2), environment=QUICK, program=with_open_files(120)) as made,
        ExitStack() as idle,
    ):
        wait_for_view(made, 2)
        assert "at most 56 connections at once" in made.log(0)
        assert "(`ulimit -n`) is 120" in made.log(0)
        for _ in range(150):
            idle.enter_context(closing(socket.create_connection(("127.0.0.1", port_of(made)), 5)))
        made.wait_logged(0, "file descriptors are running out")
        assert made.log(0).count("running out") == 1
        put(made, 1, "while-busy", 1)

        def states() -> list[str]:
            view = requests.get(f"{made.url(1)}/replication/status", timeout=5).json()["view"]
            return [member["state"] for member in view]

        assert_stays(lambda: states() == ["alive", "alive"], for_s=3)
        idle.close()
        wait_until(lambda: requests.get(f"{made.url(0)}/kvs/while-busy", timeout=5).status_code == 200)


def test_without_file_descriptors_it_does_not_start() -> None:
    with pytest.raises(ClusterError, match=r"ended with 2:\n.*open files \(`ulimit -n`\) is 60, which is too low"):
        LocalCluster(1, free_ports(1), program=with_open_files(60)).__enter__()


# -- stopping ----------------------------------------------------------------------------------------------------------


def start_with_signals(*options: str) -> LocalCluster:
    """Start a replica whose signals are ignored or not, as ``options`` of env(1) say, whatever this process ignores."""
    program = ["env", "--default-signal=INT,HUP,TERM", *options, sys.executable, str(MANAGE)]
    return LocalCluster(1, free_ports(1), program=program)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_ends_the_process_with_0(signum: signal.Signals) -> None:
    with start_with_signals() as made:
        os.kill(made.pid(0), signum)
        began = time.monotonic()
        assert made.wait(0) == 0
        assert time.monotonic() - began < 5
        assert "Traceback" not in made.log(0)


def test_a_signal_that_was_ignored_at_the_start_stays_ignored() -> None:
    """As after ``nohup`` (SIGHUP), and after ``&`` in a script (SIGINT)."""
    with start_with_signals("--ignore-signal=HUP,INT") as made:
        for signum in (signal.SIGHUP, signal.SIGINT):
            os.kill(made.pid(0), signum)
        for _ in range(3):
            assert requests.get(f"{made.url(0)}/readyz", timeout=5).status_code == 200
        assert made.terminate(0) == 0


def test_a_replica_that_ignores_every_signal_still_stops_with_the_program_that_started_it() -> None:
    with start_with_signals("--ignore-signal=HUP,INT,TERM") as made:
        os.kill(made.pid(0), signal.SIGTERM)
        assert requests.get(f"{made.url(0)}/readyz", timeout=5).status_code == 200
        stdin = made._processes[0].stdin  # type: ignore[union-attr]
        assert stdin
        stdin.close()
        assert made.wait(0) == 0


def test_it_stops_when_standard_input_is_closed(cluster: ClusterFactory) -> None:
    port = free_ports(1)
    command = [sys.executable, str(MANAGE), "run_replica", "--until-stdin-closes", "--address", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdin
        assert process.stderr
        while b"listens on" not in process.stderr.readline():
            pass
        process.stdin.close()
        assert process.wait(10) == 0


def test_an_unfinished_request_does_not_delay_the_stop(lone: LocalCluster) -> None:
    with closing(socket.create_connection(("127.0.0.1", port_of(lone)))) as slow:
        slow.sendall(b"PUT /kvs/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n")
        slow.sendall(b"Content-Type: application/json\r\n\r\n{")
        time.sleep(0.3)  # The server reads this much meanwhile. Nothing outside shows when it has.
        began = time.monotonic()
        assert lone.terminate(0) == 0
        assert time.monotonic() - began < 10


def test_a_stopping_replica_sends_its_updates_to_a_peer(cluster: ClusterFactory) -> None:
    made = cluster(2, **QUICK)
    wait_for_view(made, 2)
    for i in range(50):
        put(made, 0, f"k{i}", i)
    assert made.terminate(0) == 0
    listed = requests.get(f"{made.url(1)}/kvs", params={"prefix": "k", "limit": "1000"}, timeout=5).json()
    assert len(listed["keys"]) == 50


def test_one_line_says_how_many_updates_are_lost_without_a_reachable_member(cluster: ClusterFactory) -> None:
    made = cluster(2, **QUICK)
    wait_for_view(made, 2)
    made.kill(1)
    put(made, 0, "orphan", 1)
    began = time.monotonic()
    assert made.terminate(0) == 1
    assert time.monotonic() - began < 10
    assert "1 update may be lost: no other member acknowledged all within 7 s" in made.log(0)
    assert "1 key ends with this replica: it reaches no other member" in made.log(0)


# -- serving -----------------------------------------------------------------------------------------------------------


def put(made: LocalCluster, i: int, key: str, value: Any) -> requests.Response:
    response = requests.put(f"{made.url(i)}/kvs/{key}", json={"value": value}, timeout=5)
    assert response.status_code in {200, 201}, response.text
    return response


def wait_for_view(made: LocalCluster, members: int) -> None:
    indexes = range(len(made.addresses))
    wait_until(
        lambda: all(
            len(requests.get(f"{made.url(i)}/view", timeout=5).json()["view"]) == members
            for i in indexes
            if made.is_running(i)
        ),
        what=lambda: [made.log(i) for i in indexes],
    )


def pieces(*texts: bytes) -> Iterator[bytes]:
    """Return a body that ``requests`` sends chunked, because its length is unknown."""
    yield from texts


def test_a_chunked_body_is_read_completely(lone: LocalCluster) -> None:
    url = f"{lone.url(0)}/kvs/chunked"
    response = requests.put(url, data=pieces(b'{"val', b'ue": "in ', b'pieces"}'), headers=JSON, timeout=5)
    assert response.status_code == 201
    past = {"causal-metadata": response.json()["causal-metadata"]}
    found = requests.get(url, data=pieces(json.dumps(past).encode()), headers=JSON, timeout=5)
    assert found.json()["value"] == "in pieces"


def test_a_chunked_body_above_the_limit_is_rejected(cluster: ClusterFactory) -> None:
    made = cluster(1, KV_MAX_BODY_BYTES=4096, KV_MAX_VALUE_BYTES=1024)
    big = pieces(b'{"value": "', *[b"x" * 1000] * 10, b'"}')
    assert requests.put(f"{made.url(0)}/kvs/big", data=big, headers=JSON, timeout=5).status_code == 413
    assert requests.get(f"{made.url(0)}/kvs/big", timeout=5).status_code == 404


def test_a_key_is_any_utf_8_text(lone: LocalCluster) -> None:
    port = port_of(lone)

    def status(path: bytes, method: bytes = b"GET", body: bytes = b"") -> int:
        head = b"%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" % (method, path)
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        return int(exchange(port, head + body).split()[1])

    for path in (b"/kvs/a%0Ab", b"/kvs/a%2Fb//c/", b"/kvs/%25FF", b"/kvs/%00", b"/kvs/../x", b"/kvs/%E2%98%83"):
        assert status(path) == 404, path
        assert status(path, b"PUT", b'{"value": 1}') == 201, path
        assert status(path) == 200, path
    assert status(b"/kvs/%FF") == 400
    assert status(b"/kvs/") == 400


def test_an_unknown_path_is_a_json_404(lone: LocalCluster) -> None:
    for path in ("/nothing", "/kvss", "/admin/nothing", "/static/nothing.css"):
        response = requests.get(f"{lone.url(0)}{path}", timeout=5)
        assert (response.status_code, response.json()["error"]) == (404, "Not found"), path


def test_only_host_headers_of_members_are_served(lone: LocalCluster) -> None:
    for path in ("/kvs", "/healthz", "/admin/"):
        for host, status in (("localhost:1", 200), (lone.addresses[0], 200), ("evil.example", 400)):
            response = requests.get(f"{lone.url(0)}{path}", headers={"Host": host}, timeout=5)
            assert response.status_code == status, (path, host)
    assert "Host header" in response.json()["error"]


def test_the_dashboard_needs_a_login_only_with_a_password(cluster: ClusterFactory) -> None:
    assert requests.get(f"{cluster(1).url(0)}/admin/", timeout=5).status_code == 200
    made = cluster(2, KV_ADMIN_PASSWORD="open sesame")
    browser = requests.Session()
    login = browser.get(f"{made.url(0)}/admin/", timeout=5)
    assert login.url.endswith("/admin/login/?next=/admin/")
    form = {"username": "", "csrfmiddlewaretoken": browser.cookies["csrftoken"], "next": "/admin/"}
    wrong = browser.post(login.url, data={**form, "password": "open says me"}, timeout=5)
    assert wrong.url == login.url
    right = browser.post(login.url, data={**form, "password": "open sesame"}, timeout=5)
    assert right.url == f"{made.url(0)}/admin/"
    # Cookies ignore ports, and both replicas have the same password, so one login is valid at both.
    assert browser.get(f"{made.url(1)}/admin/", allow_redirects=False, timeout=5).status_code == 200
