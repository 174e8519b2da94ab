"""A browser, and pages that take note of what must not happen: errors in the console, requests to other hosts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = Path(__file__).parents[2] / "docs" / "screenshots"


class Watched:
    """A page, and the ``problems`` that it met; the test fails on any that it has not taken out."""

    def __init__(self, page: Page, host: str) -> None:
        self.page = page
        self._host = host
        self.problems: list[str] = []
        page.on("console", lambda told: self._note(told.text) if told.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self._note(str(error)))
        page.on("request", lambda request: self._check_host(request.url))

    def _note(self, problem: str) -> None:
        self.problems.append(problem)

    def _check_host(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"data", "blob"} and parts.hostname != self._host:
            self._note(f"request to {url}")


OpenPage = Callable[..., Watched]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium: Playwright's own would be downloaded. Its event loop ends with this package's tests."""
    executable = shutil.which("chromium") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Return ``open(url, width=1400, height=1000, **context)``: a page of its own, with cookies of its own."""
    with ExitStack() as stack:
        opened: list[Watched] = []

        def open_(
            url: str = "", width: int = 1400, height: int = 1000, host: str = "127.0.0.1", **options: Any
        ) -> Watched:
            context = browser.new_context(viewport={"width": width, "height": height}, **options)
            stack.callback(context.close)
            watched = Watched(context.new_page(), host)
            opened.append(watched)
            if url:
                watched.page.goto(url)
            return watched

        yield open_
        problems = [problem for watched in opened for problem in watched.problems]
    assert problems == []


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[Page, str], None]:
    """Return ``keep(page, name)``: a screenshot; for the documentation where ``SCREENSHOTS=1`` asks for new ones."""
    folder = SCREENSHOTS if os.environ.get("SCREENSHOTS") else tmp_path

    def keep_(page: Page, name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return keep_
