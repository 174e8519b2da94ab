"""The browser, and pages that record problems: errors in the console, requests to other hosts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tools.paths import REPOSITORY

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
SCREENSHOTS = REPOSITORY / "docs" / "screenshots"


class CheckedPage:
    """A page and the ``problems`` that it met. The test fails if any are left; it removes those that it expects."""

    def __init__(self, page: Page, host: str) -> None:
        self.page = page
        self._host = host
        self.problems: list[str] = []
        page.on("console", lambda message: self._record(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self._record(str(error)))
        page.on("request", lambda request: self._check_host(request.url))

    def _record(self, problem: str) -> None:
        self.problems.append(problem)

    def _check_host(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"data", "blob"} and parts.hostname != self._host:
            self._record(f"request to {url}")


OpenPage = Callable[..., CheckedPage]
SaveScreenshot = Callable[[Page, str], None]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium, because Playwright would download its own. It stops after the tests of this package."""
    executable = shutil.which("chromium") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Return ``open(url, width=1400, height=1000, **options)``, which opens a page with its own cookies."""
    with ExitStack() as stack:
        opened: list[CheckedPage] = []

        def open_(
            url: str = "", width: int = 1400, height: int = 1000, host: str = "127.0.0.1", **options: Any
        ) -> CheckedPage:
            context = browser.new_context(viewport={"width": width, "height": height}, **options)
            stack.callback(context.close)
            checked = CheckedPage(context.new_page(), host)
            opened.append(checked)
            if url:
                checked.page.goto(url)
            return checked

        yield open_
        problems = [problem for checked in opened for problem in checked.problems]
    assert problems == []


@pytest.fixture
def save_screenshot() -> SaveScreenshot:
    """Return ``save(page, name)``. With ``SCREENSHOTS=1`` in the environment, it renews the screenshots in docs.

    Otherwise it does nothing, because a screenshot takes a third of a second.
    """

    def save(page: Page, name: str) -> None:
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return save
