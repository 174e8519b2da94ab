"""Secured replicas as processes: cluster secrets, API tokens and TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from kvsite.cli import MANAGE
from kvsite.cluster import LocalCluster
from tests.conftest import ClusterFactory
from tests.support.waiting import assert_stays, wait_until

pytestmark = pytest.mark.processes

SECRET, OTHER = "the secret of this cluster", "the secret of another cluster"
WRITE, READ = "token-that-writes", "token-that-reads"
TOKENS = f"app:{WRITE}:write,look:{READ}:read"
PASSWORD = "password-of-the-dashboard"
QUICK = {"KV_DOWN_AFTER": "1", "KV_SYNC_INTERVAL": "0.2"}


def send(made: LocalCluster, i: int, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
    return requests.request(method, made.url(i) + path, json=body, timeout=5, **options)


def has_key(made: LocalCluster, i: int, key: str, **options: Any) -> bool:
    return send(made, i, "GET", f"/kvs/{key}", **options).status_code == 200


def why_not_ready(made: LocalCluster, i: int) -> str:
    """Return the reason in the answer of ``/readyz``; empty if the replica is ready."""
    reason: str = send(made, i, "GET", "/readyz").json().get("reason", "")
    return reason


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("KV_", "VIEW", "SOCKET_"))}
    return subprocess.run(
        [sys.executable, str(MANAGE), *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("others", [{"KV_CLUSTER_SECRET": OTHER}, {}], ids=["another-secret", "no-secret"])
def test_replicas_with_different_secrets_never_exchange(cluster: ClusterFactory, others: dict[str, str]) -> None:
    """The later two have each other, but live peers that serve refuse them: they take no requests (contract P6)."""
    made = cluster(4, start=False, **QUICK)
    for i in (0, 1):
        made.start_one(i, {"KV_CLUSTER_SECRET": SECRET})
    made.wait_ready()
    for i in (0, 1):
        assert send(made, i, "PUT", f"/kvs/of-{i}", {"value": i}).status_code == 201
    wait_until(lambda: all(has_key(made, i, f"of-{i ^ 1}") for i in (0, 1)))
    for i in (2, 3):
        made.start_one(i, others)
    wait_until(lambda: all("live peers refuse" in why_not_ready(made, i) for i in (2, 3)), timeout_s=20)
    # Ten sync intervals: as close to "never" as a test can get.
    assert_stays(lambda: all(why_not_ready(made, i) for i in (2, 3)), for_s=2)
    for i in range(4):
        mine, theirs = ((0, 1), (2, 3)) if i < 2 else ((2, 3), (0, 1))
        assert sorted(send(made, i, "GET", "/view").json()["view"]) == sorted(made.addresses[j] for j in mine)
        status = send(made, i, "GET", "/replication/status").json()
        assert (status["state"], status["keys"]) == (("serving", 2) if i < 2 else ("joining", 0))
        assert all(made.addresses[j] not in f"{status['clock']}{status['view']}" for j in theirs)
        assert status["open"] is (i >= 2 and not others)
        assert "no exchange" in made.log(i)
        assert made.log(i).count("no exchange") <= 8
        assert SECRET not in made.log(i)
        assert OTHER not in made.log(i)


def test_a_secured_cluster_works_like_any_other(cluster: ClusterFactory) -> None:
    """Exchanges, restarts and commands work, and no page or log contains a secret."""
    environment = {"KV_CLUSTER_SECRET": SECRET, "KV_API_TOKENS": TOKENS, "KV_ADMIN_PASSWORD": PASSWORD, **QUICK}
    made = cluster(3, KV_LOG_FORMAT="json", **environment)
    token = {"headers": {"Authorization": f"Bearer {WRITE}"}}
    look = {"headers": {"Authorization": f"Bearer {READ}"}}
    assert send(made, 0, "PUT", "/kvs/a", {"value": "not for the log"}, **token).status_code == 201
    wait_until(lambda: all(has_key(made, i, "a", **look) for i in range(3)))
    made.kill(1)
    made.start_one(1)
    made.wait_ready()
    assert has_key(made, 1, "a", **look)

    at = made.addresses[0]
    for credentials, says in [
        ({}, "401"),
        ({"KV_TOKEN": WRITE}, "403: Rejected: needs proof of KV_CLUSTER_SECRET"),
        ({"KV_CLUSTER_SECRET": OTHER}, "does not prove that it has our KV_CLUSTER_SECRET"),
    ]:
        if says != "401":
            failed = command("join_view", "127.0.0.1:1", "--at", at, **credentials)
            assert failed.returncode == 1
            assert says in failed.stderr
        else:
            assert says in command("show_view", "--at", at, **credentials).stderr
    assert command("join_view", made.addresses[2], "--at", at, KV_CLUSTER_SECRET=SECRET).stdout.endswith("present\n")
    left = command("leave_view", "--yes", "--at", made.addresses[2], KV_CLUSTER_SECRET=SECRET)
    assert left.stdout == f"{made.addresses[2]} left; at least one other member has all its updates\n", left
    assert made.terminate(2) == 0

    pages = [
        send(made, 0, "GET", path, **look) for path in ("/replication/status", "/view", "/kvs", "/metrics", "/schema/")
    ]
    seen = "".join(f"{page.headers}{page.text}" for page in pages) + "".join(made.log(i) for i in range(3))
    for hidden in (SECRET, WRITE, READ, PASSWORD, "not for the log"):
        assert hidden not in seen
    assert pages[0].json()["open"] is False
    lines = [line for line in made.log(0).splitlines() if line]
    assert all(line.startswith('{"time":"') for line in lines), lines


def test_with_tokens_only_no_peer_gets_a_token(cluster: ClusterFactory) -> None:
    """A listener that is put into the view would receive the first message of the replica."""
    made = cluster(1, KV_API_TOKENS=TOKENS, **QUICK)
    token = {"headers": {"Authorization": f"Bearer {WRITE}"}}
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1.5)
        member = {"socket-address": f"127.0.0.1:{listener.getsockname()[1]}"}
        refused = send(made, 0, "PUT", "/view", member, **token)
        assert refused.status_code == 403
        assert "needs KV_CLUSTER_SECRET" in refused.json()["error"]
        with contextlib.suppress(TimeoutError):
            received.append(listener.accept()[0].recv(65536))
    assert received == []
    assert send(made, 0, "PUT", "/kvs/a", {"value": 1}, **token).status_code == 201


def test_secrets_from_files_work_and_stay_out_of_the_environment(cluster: ClusterFactory, tmp_path: Path) -> None:
    secrets = {"KV_CLUSTER_SECRET": SECRET, "KV_API_TOKENS": TOKENS, "KV_ADMIN_PASSWORD": PASSWORD}
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"{secret}\n")
    files = {f"{name}_FILE": str(tmp_path / name) for name in secrets}
    made = cluster(2, **files, **QUICK)
    token = {"headers": {"Authorization": f"Bearer {WRITE}"}}
    assert send(made, 0, "PUT", "/kvs/a", {"value": 1}).status_code == 401
    assert send(made, 0, "PUT", "/kvs/a", {"value": 1}, **token).status_code == 201
    wait_until(lambda: has_key(made, 1, "a", **token))
    environment = Path(f"/proc/{made.pid(0)}/environ").read_bytes()
    assert b"KV_CLUSTER_SECRET_FILE" in environment
    assert not [secret for secret in (SECRET, WRITE, PASSWORD) if secret.encode() in environment]
    at = made.addresses[0]
    assert command("show_view", "--at", at, **files).stdout.split() == made.addresses
    assert command("join_view", made.addresses[1], "--at", at, **files).stdout.endswith("present\n")


# -- TLS ---------------------------------------------------------------------------------------------------------------


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=30)


def authority(directory: Path, name: str) -> Path:
    """Make a CA and a certificate for 127.0.0.1 that it signs; return the path of the CA's certificate."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    ca = ("-x509", "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    openssl(directory, "req", *curve, *ca, "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(directory, "req", *curve, "-subj", "/CN=replica", "-keyout", f"{name}-leaf.key", "-out", f"{name}-leaf.csr")
    (directory / "ext").write_text(
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n"
    )
    signed = ("-CA", f"{name}.pem", "-CAkey", f"{name}.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
    openssl(directory, "x509", "-req", "-in", f"{name}-leaf.csr", *signed, "-out", f"{name}-leaf.pem")
    return directory / f"{name}.pem"


def served_by(ca: Path, trusted: Path) -> dict[str, str]:
    stem = str(ca).removesuffix(".pem")
    return {"KV_TLS_CERT": f"{stem}-leaf.pem", "KV_TLS_KEY": f"{stem}-leaf.key", "KV_TLS_CA": str(trusted)}


def test_replicas_use_tls_and_verify_each_other(cluster: ClusterFactory, tmp_path: Path) -> None:
    ours, theirs = authority(tmp_path, "ours"), authority(tmp_path, "theirs")
    made = cluster(
        3, start=False, KV_CLUSTER_SECRET=SECRET, KV_ADMIN_PASSWORD=PASSWORD, **QUICK, **served_by(ours, ours)
    )
    for i in range(2):
        made.start_one(i)
    made.start_one(2, served_by(theirs, theirs))  # the right secret, but a certificate of another CA
    made.wait_ready()
    verify = {"verify": str(ours)}
    assert send(made, 0, "PUT", "/kvs/a", {"value": 1}, **verify).status_code == 201
    wait_until(lambda: has_key(made, 1, "a", **verify))
    assert_stays(lambda: not has_key(made, 2, "a", verify=str(theirs)), for_s=1)
    assert "TLS failed" in made.log(0)
    with pytest.raises(requests.exceptions.SSLError):
        send(made, 0, "GET", "/view", verify=str(theirs))
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{made.addresses[0]}/view", timeout=5)

    shown = command("show_view", "--at", made.addresses[0], KV_CLUSTER_SECRET=SECRET, KV_TLS_CA=str(ours))
    assert sorted(shown.stdout.split()) == sorted(made.addresses[:2]), shown

    browser = requests.Session()
    browser.trust_env = False  # otherwise REQUESTS_CA_BUNDLE replaces ``verify``
    browser.verify = str(ours)
    page = browser.get(f"{made.url(0)}/admin/login/", timeout=5)
    form = {
        "username": "admin",
        "password": PASSWORD,
        "next": "/admin/",
        "csrfmiddlewaretoken": browser.cookies["csrftoken"],
    }
    own = {"Referer": page.url, "Origin": made.url(0)}
    assert browser.post(page.url, data=form, headers=own, timeout=5).url.endswith("/admin/")
    assert all(cookie.secure for cookie in browser.cookies)
