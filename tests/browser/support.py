"""What the browser tests share: addresses of pages, requests beside the browser, and a look for barriers."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Page

from kvsite.cluster import LocalCluster

QUICK = {"KV_DOWN_AFTER": "1.5", "KV_SYNC_INTERVAL": "0.3"}
LIVE_MS = 2000
"""Within this long, the page shows what is so (SPEC: within two seconds)."""

LOOKS: dict[str, dict[str, Any]] = {"": {}, "-dark": {"color_scheme": "dark"}, "-phone": {"width": 390, "height": 844}}
"""Of a page's screenshots: the end of the name, and what the browser is opened with."""

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
GRAVE = {"serious", "critical"}


def admin(cluster: LocalCluster, i: int = 0) -> str:
    return f"{cluster.url(i)}/admin/"


def part(page: Page, kind: str, address: str) -> Any:
    return page.locator(f'[id="{kind}-{address}"]')


def status(cluster: LocalCluster, i: int, query: str = "") -> dict[str, Any]:
    told: dict[str, Any] = requests.get(f"{cluster.url(i)}/replication/status{query}", timeout=5).json()
    return told


def put(cluster: LocalCluster, i: int, key: str, value: Any, past: dict[str, int] | None = None) -> dict[str, int]:
    """Write a key and return the metadata."""
    body = {"value": value, "causal-metadata": past or {}}
    answer = requests.put(f"{cluster.url(i)}/kvs/{key}", json=body, timeout=5)
    answer.raise_for_status()
    told: dict[str, int] = answer.json()["causal-metadata"]
    return told


def write(cluster: LocalCluster, i: int, count: int = 1) -> None:
    with closing(requests.Session()) as session:
        for n in range(count):
            session.put(f"{cluster.url(i)}/kvs/{i}-{n}", json={"value": n}, timeout=5).raise_for_status()


@cache
def _axe() -> str:
    return AXE.read_text(encoding="utf-8")


def barriers(page: Page) -> list[str]:
    """Return what axe finds grave on the page: for who cannot see it, or uses the keyboard alone."""
    page.evaluate(_axe())
    found = page.evaluate(
        """async () => (await axe.run(
          {resultTypes: ["violations"], runOnly: ["wcag2a", "wcag2aa", "wcag21aa"]})).violations"""
    )
    return [
        f"{page.url} {each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in GRAVE
    ]
