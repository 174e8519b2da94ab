"""Unreached seeds: addresses of ``VIEW`` at which no replica has ever answered this one, and why. Pure.

A replica that has reached nobody looks like the first of its cluster, and serves alone. It cannot know whether that is
meant, so it warns, in its log, status, metrics and dashboard, for as long as it lasts. The warning begins after
``after_s``, because replicas that start together do not answer at once. An address that was removed from the view is
not missed.

A replica that has answered once and is down is something else: it is a member, and the view shows it as down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from replication.refusals import Refusal, describe_one
from replication.seeds import Seeds

FailureKind = Literal["closed", "name", "route", "silent", "tls", "broken", "stranger"]
"""Why a request brought no reply of a replica. Labels of the metrics, so they are not renamed."""

TEXTS: Final[Mapping[FailureKind, str]] = {
    "closed": "nobody listens there",
    "name": "its name does not resolve",
    "route": "no network route leads there",
    "silent": "it does not answer in time",
    "tls": "TLS failed; see KV_TLS_CA, and whether every replica has KV_TLS_CERT or none",
    "broken": "the connection breaks; see whether every replica has KV_TLS_CERT or none",
    "stranger": "what answers there is no replica of Causeway",
}

LOOKUP_FAILS: Final = "this name has never resolved: {}"
LOOKUP_IN_VAIN: Final = "no replica has ever answered at the addresses that this name leads to"
"""Of the name in ``KV_VIEW_DNS``, which counts like an address of ``VIEW``."""


class Unreached(NamedTuple):
    """One address, or the name that is looked up.

    ``kind``: a ``FailureKind`` or a ``RefusalKind``. ``text``: the same in words.
    ``since_s``: when this replica began to ask there (monotonic seconds). ``setting``: the variable that names it.
    """

    address: str
    kind: str
    text: str
    since_s: float
    setting: str = "VIEW"


class UnreachedSeeds:
    """Why the last request to each unanswered seed failed. Not thread-safe.

    ``after_s``: how long an address is asked in vain before it counts as unreached.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._failures: dict[str, FailureKind] = {}

    def note_failure(self, address: str, kind: FailureKind) -> None:
        """Note why a request to ``address`` brought no reply."""
        self._failures[address] = kind

    def follow(self, unanswered: Mapping[str, float]) -> None:
        """Forget the addresses that are not in ``unanswered`` any more."""
        if self._failures:
            self._failures = {at: kind for at, kind in self._failures.items() if at in unanswered}

    def all(
        self, missed: Iterable[tuple[str, float]], refusals: Mapping[str, Refusal], now_s: float
    ) -> list[Unreached]:
        """Return the unreached ones among ``missed`` (address, since when it is asked), sorted by address.

        ``refusals``: of live replicas, by address. A replica that refuses this one was not reached either.
        """
        unreached = []
        for address, since_s in sorted(missed):
            if now_s - since_s < self._after_s:
                continue
            refusal = refusals.get(address)
            if refusal is not None:
                unreached.append(Unreached(address, refusal.kind, describe_one(refusal), since_s))
                continue
            kind = self._failures.get(address)
            if kind is not None:  # Otherwise the first request there is still in flight.
                unreached.append(Unreached(address, kind, TEXTS[kind], since_s))
        return unreached


def unreached_name(name: str, failure: str, seeds: Seeds, now_s: float, *, after_s: float) -> list[Unreached]:
    """Return the name that lookups use, in a list, if it has led to no other replica for ``after_s``.

    ``name``: the value of ``KV_VIEW_DNS``. ``failure``: why it has never resolved; empty if it has.
    """
    if seeds.has_met_others or now_s - seeds.since_s < after_s:
        return []
    if failure:
        return [Unreached(name, "name", LOOKUP_FAILS.format(failure), seeds.since_s, "KV_VIEW_DNS")]
    if seeds.has_discovered_others:
        return [Unreached(name, "silent", LOOKUP_IN_VAIN, seeds.since_s, "KV_VIEW_DNS")]
    return []
