"""docs/examples/live.html follows a prefix at one replica, which is killed, and goes on at another."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import expect

from kvsite.cluster import LocalCluster
from tests.browser.conftest import OpenPage
from tests.browser.support import QUICK, put, status
from tests.support.waiting import wait_until
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.browser, pytest.mark.processes]

PORT = 25180
RECORD = """
    window.seen = [];
    document.addEventListener("change", ({ detail }) => window.seen.push(detail.key));
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def served(directory: str) -> Iterator[str]:
    """Serve a directory; yield the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=directory)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_page_goes_on_at_another_replica_without_a_gap_or_a_repetition(open_page: OpenPage) -> None:
    with (
        served(str(REPOSITORY / "docs" / "examples")) as origin,
        LocalCluster(3, PORT, environment={**QUICK, "KV_CORS_ORIGINS": origin}) as cluster,
    ):
        put(cluster, 0, "other/1", 1)
        checked = open_page()
        page = checked.page
        page.add_init_script(RECORD)
        page.goto(f"{origin}/live.html?at={','.join(cluster.addresses[:2])}&prefix=live/")
        for number in range(20):
            put(cluster, number % 3, f"live/{number:02}", number)
        expect(page.locator("#from")).to_have_text(f"from {cluster.addresses[0]}")
        wait_until(lambda: page.evaluate("window.seen.length") == 20, what=lambda: page.evaluate("window.seen"))
        wait_until(lambda: status(cluster, 0)["clock"] == status(cluster, 1)["clock"])
        cluster.kill(0)
        for number in range(20, 40):
            put(cluster, 1 + number % 2, f"live/{number:02}", number)
        expect(page.locator("#from")).to_have_text(f"from {cluster.addresses[1]}", timeout=20_000)
        wait_until(lambda: page.evaluate("window.seen.length") >= 40, what=lambda: page.evaluate("window.seen"))
        put(cluster, 2, "live/39", "the end")
        expect(page.locator("#keys")).to_contain_text("the end")
        assert sorted(page.evaluate("window.seen")) == sorted([*(f"live/{n:02}" for n in range(40)), "live/39"])
        lines = [f"live/{n:02}  {n}" for n in range(39)] + ['live/39  "the end"']
        expect(page.locator("#keys")).to_have_text("\n".join(lines))
        # The killed replica's connection is the only error.
        assert all("net::ERR_" in problem for problem in checked.problems), checked.problems
        checked.problems.clear()
