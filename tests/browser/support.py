"""Helpers of the browser tests: page URLs, API requests, reading pages, accessibility checks."""

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
"""A live page shows every change within this time."""

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "-dark": {"color_scheme": "dark"},
    "-phone": {"width": 390, "height": 844},
}
"""Variants of a screenshot: suffix of the file name -> browser options."""

AXE = Path(__file__).parent / "vendor" / "axe.min.js"


def admin(cluster: LocalCluster, i: int = 0) -> str:
    return f"{cluster.url(i)}/admin/"


def part(page: Page, kind: str, address: str) -> Any:
    return page.locator(f'[id="{kind}-{address}"]')


def status(cluster: LocalCluster, i: int, query: str = "") -> dict[str, Any]:
    content: dict[str, Any] = requests.get(f"{cluster.url(i)}/replication/status{query}", timeout=5).json()
    return content


def put(cluster: LocalCluster, i: int, key: str, value: Any, past: dict[str, int] | None = None) -> dict[str, int]:
    """Write a key and return the causal metadata of the response."""
    body = {"value": value, "causal-metadata": past or {}}
    response = requests.put(f"{cluster.url(i)}/kvs/{key}", json=body, timeout=5)
    response.raise_for_status()
    metadata: dict[str, int] = response.json()["causal-metadata"]
    return metadata


def write(cluster: LocalCluster, i: int, count: int = 1) -> None:
    with closing(requests.Session()) as session:
        for n in range(count):
            session.put(f"{cluster.url(i)}/kvs/{i}-{n}", json={"value": n}, timeout=5).raise_for_status()


@dataclass(frozen=True)
class ShownReplica:
    """What the front page shows about one replica: its card and its rows in the clock matrix and the view matrix."""

    state: str
    facts: dict[str, str]
    clock: dict[str, int]
    view: dict[str, str]
    is_greyed: bool


def shown_replicas(page: Page) -> dict[str, ShownReplica]:
    """Return address -> what the front page shows about it, read in one step."""
    content: dict[str, dict[str, Any]] = page.evaluate(
        """() => {
          const text = (node) => node ? node.textContent.trim() : "";
          const heads = (table) => [...document.querySelectorAll(`#${table} thead abbr`)].map((head) => head.title);
          const row = (kind, table, address, read) => {
            const cells = document.getElementById(`${kind}-${address}`).querySelectorAll("td");
            return Object.fromEntries(heads(table).map((name, i) => [name, read(cells[i])]));
          };
          return Object.fromEntries([...document.querySelectorAll("#replicas .cw-card")].map((card) => {
            const address = card.id.slice("card-".length);
            return [address, {
              state: text(card.querySelector(".cw-state")),
              facts: Object.fromEntries([...card.querySelectorAll("dl > div")].map(
                (fact) => [text(fact.querySelector("dt")), text(fact.querySelector("dd"))])),
              clock: row("clock", "clocks", address, (cell) => parseInt(cell.textContent)),
              view: row("view", "views", address, (cell) => cell.className.slice("cw-member-".length)),
              is_greyed: [`card-${address}`, `clock-${address}`].every(
                (id) => document.getElementById(id).classList.contains("cw-is-stale")),
            }];
          }));
        }"""
    )
    return {address: ShownReplica(**each) for address, each in content.items()}


def expected_from(content: Mapping[str, Any], origins: Iterable[str]) -> dict[str, Any]:
    """Return what a page must show about a replica whose ``/replication/status`` is ``content``."""
    return {
        "state": content["state"],
        "Keys": f"{content['keys']:,}",
        "Pending": f"{content['pending_count']:,}",
        "Incarnation": content["incarnation"],
        "clock": {origin: content["clock"].get(origin, 0) for origin in origins},
        "view": {each["address"]: "itself" if each["self"] else each["state"] for each in content["view"]},
    }


def wait_live(check: Callable[[], bool | list[Any]]) -> None:
    """Wait until ``check`` returns True or an empty list of differences. Fails the test after ``LIVE_MS``."""
    last: bool | list[Any] = False

    def holds() -> bool:
        nonlocal last
        last = check()
        return last is True or last == []

    wait_until(holds, timeout_s=LIVE_MS / 1000, what=lambda: last, every_s=0.05)


def wait_consistent(pages: Iterable[Page], cluster: LocalCluster) -> None:
    """Wait until each page shows what every running replica reports when the test asks it directly."""
    running = [i for i in range(len(cluster.addresses)) if cluster.is_running(i)]

    def differences(page: Page) -> list[Any]:
        shown, found = shown_replicas(page), []
        for i in running:
            each = shown[cluster.addresses[i]]
            facts = {name: each.facts.get(name) for name in ("Keys", "Pending", "Incarnation")}
            on_page = {"state": each.state, **facts, "clock": each.clock, "view": each.view}
            expected = expected_from(status(cluster, i), each.clock)
            found += [
                (page.url, i, name, on_page[name], value) for name, value in expected.items() if on_page[name] != value
            ]
        return found

    for page in pages:
        wait_live(partial(differences, page))


def without_connection_errors(problems: Iterable[str]) -> list[str]:
    """Return the problems without those of requests to a replica that was killed."""
    return [problem for problem in problems if "ERR_CONNECTION" not in problem and "htmx:" not in problem]


@cache
def _axe() -> str:
    return AXE.read_text(encoding="utf-8")


def accessibility_problems(page: Page, part: str = "html", rules: list[str] | None = None) -> list[str]:
    """Return all problems that axe finds in ``part``, with ``rules``; None: all, those of good practice included."""
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(_axe())
    found = page.evaluate(
        """async ([part, rules]) => {
          // What changes its colour slowly, under the mouse or with the theme, has too little contrast on the way.
          document.getAnimations().forEach((each) => { if (each instanceof CSSTransition) each.finish(); });
          const options = {resultTypes: ["violations"], ...(rules && {runOnly: {type: "rule", values: rules}})};
          return (await axe.run(part, options)).violations;
        }""",
        [part, rules],
    )
    return [
        f"{page.url} {each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
        for each in found
    ]
