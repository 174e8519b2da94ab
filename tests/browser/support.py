"""What the browser tests share: addresses of pages, requests beside the browser, and a look for barriers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Page

from kvsite.cluster import LocalCluster
from tests.support.waiting import wait_until

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


@dataclass(frozen=True)
class Shown:
    """What a page shows of one replica: its card, its row of the clock matrix, its row of who sees whom."""

    state: str
    facts: dict[str, str]
    clock: dict[str, int]
    view: dict[str, str]
    is_greyed: bool


def shown(page: Page) -> dict[str, Shown]:
    """Return address -> what the front page shows of it, read in one step."""
    read: dict[str, dict[str, Any]] = page.evaluate(
        """() => {
          const text = (node) => node ? node.textContent.trim() : "";
          const heads = (table) => [...document.querySelectorAll(`#${table} thead abbr`)].map((head) => head.title);
          const row = (kind, table, address, tell) => {
            const cells = document.getElementById(`${kind}-${address}`).querySelectorAll("td");
            return Object.fromEntries(heads(table).map((name, i) => [name, tell(cells[i])]));
          };
          return Object.fromEntries([...document.querySelectorAll("#replicas .cw-card")].map((card) => {
            const address = card.id.slice("card-".length);
            return [address, {
              state: text(card.querySelector(".cw-state")),
              facts: Object.fromEntries([...card.querySelectorAll("dl > div")].map(
                (fact) => [text(fact.querySelector("dt")), text(fact.querySelector("dd"))])),
              clock: row("clock", "clocks", address, (cell) => parseInt(cell.textContent)),
              view: row("view", "views", address, (cell) => cell.className.slice("cw-sees-".length)),
              is_greyed: [`card-${address}`, `clock-${address}`].every(
                (id) => document.getElementById(id).classList.contains("cw-is-stale")),
            }];
          }));
        }"""
    )
    return {address: Shown(**each) for address, each in read.items()}


def said(told: Mapping[str, Any], origins: Iterable[str]) -> dict[str, Any]:
    """Return what a page has to show of a replica that answers ``/replication/status`` with ``told``."""
    return {
        "state": told["state"],
        "Keys": f"{told['keys']:,}",
        "Pending": f"{told['pending_count']:,}",
        "Incarnation": told["incarnation"],
        "clock": {origin: told["clock"].get(origin, 0) for origin in origins},
        "view": {each["address"]: "itself" if each["self"] else each["state"] for each in told["view"]},
    }


def agree(check: Callable[[], bool | list[Any]]) -> None:
    """Wait until ``check`` is true, or returns an empty list of differences: within the two seconds of the contract."""
    last: bool | list[Any] = False

    def holds() -> bool:
        nonlocal last
        last = check()
        return last is True or last == []

    wait_until(holds, timeout_s=LIVE_MS / 1000, what=lambda: last, every_s=0.05)


def live(pages: Iterable[Page], cluster: LocalCluster) -> None:
    """Each page agrees, in time, with what each replica that runs says of itself when it is asked directly."""
    running = [i for i in range(len(cluster.addresses)) if cluster.is_running(i)]

    def differences(page: Page) -> list[Any]:
        seen, found = shown(page), []
        for i in running:
            each = seen[cluster.addresses[i]]
            facts = {name: each.facts.get(name) for name in ("Keys", "Pending", "Incarnation")}
            on_page = {"state": each.state, **facts, "clock": each.clock, "view": each.view}
            in_truth = said(status(cluster, i), each.clock)
            found += [
                (page.url, i, name, on_page[name], true) for name, true in in_truth.items() if on_page[name] != true
            ]
        return found

    for page in pages:
        agree(partial(differences, page))


def unrefused(problems: Iterable[str]) -> list[str]:
    """Leave out what the browser tells of connections that a replica that was killed refused."""
    return [told for told in problems if "ERR_CONNECTION" not in told and "htmx:" not in told]


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
