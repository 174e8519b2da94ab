"""The data of the page of one update: which replicas have it, and why it waits where it does not apply yet."""

from __future__ import annotations

from dataclasses import dataclass

from kvsite.dashboard.cluster_state import AsOf, ClusterState, ObservedReplica
from kvsite.dashboard.formatting import listed, short_labels, span, time_of_day_ms, update_name, update_query
from store.clock import Clock, Dot, address_of

MAX_NAME_CHARS = 400
"""Longest text that names an update."""


@dataclass(frozen=True, slots=True)
class Place:
    """One replica. ``text``: whether it has the update; ``tone``: ``good``, ``warn``, ``bad`` or ``note``.

    ``detail``: since when it has the update, or why not. ``cause``: name of the update that is waited for, and
    ``cause_query`` the query string of its page; empty if there is none.
    """

    address: str
    text: str
    tone: str
    detail: str = ""
    cause: str = ""
    cause_query: str = ""


@dataclass(frozen=True, slots=True)
class UpdatePage:
    """Everything that the page shows. ``key``: the first key that it wrote; None if it is not known.

    ``summary``: the page in one sentence.
    """

    as_of: AsOf
    name: str
    origin: str
    counter: int
    key: str | None
    issued: str
    summary: str
    places: tuple[Place, ...]


def parse_update(text: str) -> Dot | None:
    """Return the dot in a query string, ``replica id:counter``; None if it is none."""
    origin, _, counter = text.rpartition(":")
    if len(text) > MAX_NAME_CHARS or "@" not in origin or not (counter.isascii() and counter.isdecimal()):
        return None
    return origin, int(counter)


def update_page(cluster: ClusterState, dot: Dot, key: str | None) -> UpdatePage:
    """Return the page of the update ``dot``. The statuses must include their ``recent`` updates.

    ``key``: the first key of the update, if the dashboard has seen it.
    """
    labels = short_labels(replica.address for replica in cluster.replicas)
    issued_us = _applied_us(cluster, address_of(dot[0]), dot)
    places = tuple(_place(cluster, replica, dot, issued_us, labels) for replica in cluster.replicas)
    return UpdatePage(
        as_of=cluster.as_of,
        name=update_name(dot, labels),
        origin=dot[0],
        counter=dot[1],
        key=key if key is not None else _pending_key(cluster, dot),
        issued=f"{time_of_day_ms(issued_us)} UTC" if issued_us is not None else "",
        summary=_summary(places),
        places=places,
    )


def _summary(places: tuple[Place, ...]) -> str:
    having = [place for place in places if place.tone == "good"]
    waiting = [place.address for place in places if place.tone == "warn"]
    if places and len(having) == len(places):
        return "Every replica has this update."
    text = f"{len(having)} of {len(places)} replicas have this update."
    return f"{text} It waits at {listed(waiting)}." if waiting else text


def _applied_us(cluster: ClusterState, address: str, dot: Dot) -> int | None:
    """Return when the replica at ``address`` applied the update, by its wall clock; None if it does not say so."""
    for replica in cluster.replicas:
        if replica.address == address and replica.status:
            return next((each.wall_us for each in replica.status.recent if each.dot == dot), None)
    return None


def _pending_key(cluster: ClusterState, dot: Dot) -> str | None:
    statuses = (replica.status for replica in cluster.replicas if replica.status)
    return next((each.keys[0] for status in statuses for each in status.pending if each.dot == dot and each.keys), None)


def _place(
    cluster: ClusterState, replica: ObservedReplica, dot: Dot, issued_us: int | None, labels: dict[str, str]
) -> Place:
    address, status = replica.address, replica.status
    if _covers(replica.clock, dot):
        return Place(address, "has it", "good", _since(cluster, address, dot, issued_us))
    if replica.clock is None or not replica.is_reachable:
        silent = f", no sign of life for {span(replica.silent_for_s)}" if replica.silent_for_s is not None else ""
        return Place(address, "unknown", "note", f"It does not respond{silent}.")
    pending = next((each for each in status.pending if each.dot == dot), None) if status else None
    if pending is not None:
        cause = pending.waits_for
        detail = f"It was received {span(pending.since_s)} ago. {_where(cluster, cause)}"
        return Place(address, "pending", "warn", detail, update_name(cause, labels), update_query(cause))
    return Place(address, "not yet", "bad", _where(cluster, dot))


def _since(cluster: ClusterState, address: str, dot: Dot, issued_us: int | None) -> str:
    if address == address_of(dot[0]):
        return "It issued the update."
    applied_us = _applied_us(cluster, address, dot)
    if applied_us is None:
        return ""
    if issued_us is None:
        return f"Applied at {time_of_day_ms(applied_us)} UTC."
    later_s = (applied_us - issued_us) / 1e6
    return f"Applied {span(later_s) if later_s >= 10 else f'{later_s * 1000:,.0f} ms'} after its issue."


def _where(cluster: ClusterState, dot: Dot) -> str:
    """Say which replicas could send ``dot``."""
    having = [replica for replica in cluster.replicas if _covers(replica.clock, dot)]
    reachable = [replica.address for replica in having if replica.is_reachable]
    if reachable:
        return f"{listed(reachable)} {'has' if len(reachable) == 1 else 'have'} what is missing."
    if having:
        return f"Only {listed([replica.address for replica in having])} had what is missing, without contact now."
    return "No replica is known to have what is missing."


def _covers(clock: Clock | None, dot: Dot) -> bool:
    return clock is not None and clock.get(dot[0], 0) >= dot[1] > 0
