"""examples/django with two workers and three replicas: users see their own carts while replicas are killed.

Each worker asks the replicas in another order. A try puts an item into the cart at one worker, and reads the cart at
the other. The cookies of the user go along, as in a browser.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from kvsite.cluster import LocalCluster
from tests.support.ports import free_ports
from tests.support.waiting import wait_until
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.processes, pytest.mark.slow]

EXAMPLE = REPOSITORY / "examples" / "django"
TRIES = 1000


@contextmanager
def worker(replicas: Sequence[str], log: Path, interface: str = "wsgi", **environment: str) -> Iterator[str]:
    """Run one web worker with the example; yield its URL."""
    port = free_ports()
    granian = Path(sys.executable).with_name("granian")
    command = [str(granian), "--interface", interface, "--port", str(port), f"shop.{interface[:4]}:application"]
    path = os.pathsep.join([str(EXAMPLE), str(REPOSITORY / "clients" / "python" / "src")])
    urls = {"CAUSEWAY_URL": f"causeway://{','.join(replicas)}", "PYTHONPATH": path}
    environ = {**os.environ, **urls, "DJANGO_SETTINGS_MODULE": "shop.settings", **environment}
    with log.open("wb") as output, subprocess.Popen(command, env=environ, stdout=output, stderr=output) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: requests.get(url, timeout=5).status_code == 200, what=log.read_text)
            yield url
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def workers(cluster: LocalCluster, logs: Path, **environment: str) -> Iterator[list[str]]:
    """Run two workers that prefer different replicas; yield their URLs."""
    first, second, third = cluster.addresses
    with ExitStack() as stack:
        orders = [[first, second, third], [second, third, first]]
        yield [
            stack.enter_context(worker(order, logs / f"worker-{n}.log", **environment))
            for n, order in enumerate(orders)
        ]


def stale_reads(urls: Sequence[str], tries: int) -> tuple[int, int]:
    """Return in how many tries a user did not see their last write at the other worker; and the items counted."""
    stale = counted = 0
    with requests.Session() as browser:
        for n in range(tries):
            here, there = urls[n % 2], urls[(n + 1) % 2]
            added = browser.post(f"{here}/add/item-{n}/", timeout=30)
            assert added.status_code == 200, (n, added.text)
            shown = browser.get(there, timeout=30)
            assert shown.status_code == 200, shown.text
            counted += added.json()["items"] is not None
            stale += shown.json()["cart"][-1:] != [f"item-{n}"]
    return stale, counted


def test_users_see_their_own_carts_while_replicas_are_killed(tmp_path: Path) -> None:
    with LocalCluster(3, free_ports(3)) as cluster, workers(cluster, tmp_path) as urls:
        over = threading.Event()
        kills = 0

        def kill() -> None:
            nonlocal kills
            while not over.is_set():
                victim = kills % 3
                cluster.kill(victim)
                over.wait(0.3)  # users meet the failure for a while
                cluster.start_one(victim)
                cluster.wait_ready()
                kills += 1
                over.wait(0.3)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            stale, counted = stale_reads(urls, TRIES)
        finally:
            over.set()
            killer.join()
        assert stale == 0
        assert kills >= 3
        items = requests.post(f"{urls[0]}/add/last/", timeout=30).json()["items"]
        assert counted < items <= TRIES + 1, "no increment was lost, and none counted twice"


def test_without_the_middleware_some_users_do_not(tmp_path: Path) -> None:
    """With one ack, so that the other worker's replica has not always received the write."""
    with LocalCluster(3, free_ports(3)) as cluster:
        with workers(cluster, tmp_path, WITHOUT_CAUSALITY="1", CAUSEWAY_W="1") as urls:
            stale, counted = stale_reads(urls, 300)
        assert stale > 0
        assert counted == 300
        with workers(cluster, tmp_path, CAUSEWAY_W="1") as urls:
            assert stale_reads(urls, 300) == (0, 300)


def test_async_views_see_their_own_writes(tmp_path: Path) -> None:
    with LocalCluster(3, free_ports(3)) as cluster, ExitStack() as stack:
        first, second, third = cluster.addresses
        a = stack.enter_context(worker([first, second, third], tmp_path / "a.log", "asginl"))
        b = stack.enter_context(worker([second, third, first], tmp_path / "b.log", "asginl"))
        with requests.Session() as browser:
            for n in range(50):
                browser.put(f"{a}/price/tea/", params={"is": str(n)}, timeout=30)
                assert browser.get(f"{b}/price/tea/", timeout=30).json()["price"] == str(n)
