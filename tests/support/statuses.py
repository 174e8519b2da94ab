"""Constructed results of ``StatusFetcher.fetch_all``, for states that a test cannot produce quickly."""

from __future__ import annotations

import math
from typing import Any

NOW_US = 1_800_000_000_000_000
Cluster = dict[str, dict[str, Any]]


def id_of(address: str, incarnation: int = 1) -> str:
    return f"{address}@{incarnation:016x}"


def member(address: str, state: str = "alive", **more: Any) -> dict[str, Any]:
    return {
        "address": address,
        "replica_id": id_of(address),
        "incarnation": "1",
        "state": state,
        "self": False,
        "last_contact_s": 0.3,
        "clock": {},
        "missing_updates": 0,
        **more,
    }


def status(address: str, view: list[dict[str, Any]], clock: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        "replica_id": id_of(address),
        "address": address,
        "incarnation": f"{1:016x}",
        "version": "0.1.0",
        "uptime_s": 100.0,
        "state": "serving",
        "clock": clock,
        "view": view,
        "pending": [],
        "pending_count": 0,
        "deferred_requests": 0,
        "watchers": 0,
        "keys": 1234,
        "conflicts": 0,
        "clock_lead_s": 0.0,
        "memory_bytes": 70_000_000,
        "throughput": {"reads_per_s": 8.0, "writes_per_s": 4.0, "applied_per_s": 2.0},
        "events": [],
        "open": False,
        **more,
    }


def answered(content: Any) -> dict[str, Any]:
    return {"status": content, "age_s": 0.01, "reachable": True}


def cluster_of(size: int, counter: int = 100, **more: Any) -> Cluster:
    """Return a healthy cluster of ``size`` replicas. Each has ``counter`` updates of each. ``more``: status fields."""
    addresses = [f"10.0.0.{i}:8090" for i in range(1, size + 1)]
    clock = {id_of(address): counter for address in addresses}
    return {
        address: answered(
            status(address, [member(other, self=other == address) for other in addresses], dict(clock), **more)
        )
        for address in addresses
    }


def pending(count: int, origin: str, waits_for: str, first: int = 101) -> list[dict[str, Any]]:
    """Return ``count`` pending updates of ``origin`` that wait for an update of ``waits_for``."""
    return [
        {
            "dot": [id_of(origin), first + i],
            "keys": [f"carts/{i}/items", f"carts/{i}/total"],
            "waits_for": [id_of(waits_for), 101],
            "since_s": 4.0,
        }
        for i in range(count)
    ]


def silent(known: dict[str, Any], age_s: float | None) -> dict[str, Any]:
    """Return the same replica when it has not responded for ``age_s`` seconds; None: it never has."""
    return {"status": known["status"] if age_s is not None else None, "age_s": age_s, "reachable": False}


def in_trouble(size: int) -> Cluster:
    """Return a cluster whose second replica has 500 pending updates, the third lags and the last is down."""
    cluster = cluster_of(size, counter=2500)
    addresses = list(cluster)
    second, third, last = addresses[1], addresses[2], addresses[-1]
    cluster[addresses[0]]["status"]["clock"][id_of(addresses[0])] = 3000
    cluster[second]["status"].update(pending=pending(500, addresses[0], third, 2501), pending_count=500)
    lagging = cluster[third]["status"]
    for steps, address in enumerate(addresses[:5]):
        lagging["clock"][id_of(address)] -= min(2000, 10**steps // 2)
    for address in addresses[:-1]:
        cluster[address]["status"]["view"] = [
            member(other, "down", last_contact_s=42.0) if other == last else member(other) for other in addresses
        ]
    cluster[last] = silent(cluster[last], 42.0)
    cluster[addresses[0]]["status"]["events"] = [
        {"number": 1, "wall_us": NOW_US - 50_000_000, "kind": "joined", "subject": third, "detail": "1"},
        {"number": 2, "wall_us": NOW_US - 42_000_000, "kind": "down", "subject": last, "detail": ""},
    ]
    return cluster


def history(seconds: int = 600) -> list[dict[str, float]]:
    """Return ten minutes of a replica: steady reads, waves of writes, and a minute in which it was partitioned."""
    points = []
    for age in range(seconds, 0, -1):
        wave = 1 + math.sin(age / 70) + 0.3 * math.sin(age / 11)
        is_cut = 200 < age < 260
        late = max(0, age - 190) * 40 if 190 < age <= 200 else 40 * (260 - age) if is_cut else 0
        points.append(
            {
                "age_s": float(age),
                "reads": 420 + 60 * math.sin(age / 23),
                "writes": 90 * wave + 60,
                "applied": 0.0 if is_cut else 900.0 if 190 < age <= 200 else max(0.0, 160 * wave + 90),
                "missing": float(max(0, late)),
                "pending": float(late // 9 if 190 < age < 215 else 0),
            }
        )
    return points


def recent(cluster: Cluster, count: int = 10) -> Cluster:
    """Add ``count`` recent updates that the replicas issued in turns. All replicas applied each within milliseconds."""
    addresses = list(cluster)
    for n in range(count):
        origin = addresses[n % len(addresses)]
        for i, address in enumerate(addresses):
            if (content := cluster[address]["status"]) is not None:
                at_us = NOW_US - (count - n) * 50_000 + (0 if address == origin else 2_000 + 700 * i)
                applied = {"dot": [id_of(origin), 90 + n], "wall_us": at_us, "key": f"carts/{n}"}
                content.setdefault("recent", []).append(applied)
    return cluster
