"""Refusals: which live replicas refuse this one, or are refused by it, and what follows for its readiness. Pure.

A replica that a live peer refuses would serve alone: it would take writes that nobody sees, and answer without the data
of the others. So a *joining* replica does not become ready while live replicas refuse it, unless the replicas that
accept it are more. Only outcomes of this replica's own requests count: anybody may send a request in any name. And only
answers that a replica gives: a web server that answers at an address of ``VIEW`` refuses nothing, and a process without
a valid TLS certificate may be anybody.

The replica and those that accept it are *our side*, those that refuse it are the *other side*. The other side outweighs
ours

* if it is at least as large. So two replicas with different secrets that start together are both not ready; of three
  replicas with one odd one, the two that agree become ready;
* or if one of it serves clients, and nobody on our side does: the data are over there.

A replica that *serves* goes on answering clients, whatever its peers say: they count on it (contract P4). It stops to
be ready only if its clock disagrees with those of more live replicas than our side has. That clock is wrong, and
expiry and the order of concurrent writes follow it.

A refusal counts for ``silent_after_s``, as a sign of life does. So a replica that is down refuses nobody, and a refusal
is over when the peer accepts a message, or is removed from the view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import msgspec

RefusalKind = Literal["secret", "name", "protocol", "clock", "full", "message"]
"""Why one replica refuses the other. ``message``: for any other reason, or for one that this release does not know."""

MAX_PARSED_BYTES: Final = 64 * 1024
"""A longer body is no refusal of a replica."""

MAX_NAMED: Final = 3
"""Addresses that a reason names of one kind of refusal; further ones are counted."""

MAX_AHEAD_S: Final = 1e11
"""Bound of a difference between two clocks, about 3000 years."""

AGREE: Final = "set the same KV_CLUSTER_SECRET on every replica"

TEXTS: Final[dict[str, str]] = {
    "secret": f"the cluster secrets differ; {AGREE}",
    "name": "it does not accept the name by which this replica calls it; see KV_ALLOWED_HOSTS",
    "protocol": "its version of the protocol is too far from this one; upgrade one release at a time",
    "clock": "the clocks differ by more than KV_MAX_CLOCK_LEAD; set the wrong one",
    "full": "there is no room for another address in the membership table; remove addresses that are not used",
    "message": "it rejects the messages of this replica; its log says why",
}
"""What is the case, and what to do."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A live replica refuses this one, or is refused by it, for the reason ``kind``.

    ``is_serving``: whether that replica serves clients; True if it does not say. ``ahead_s``: how far its clock is
    ahead of ours (negative: behind), 0 if that is not the reason or not known.
    """

    kind: RefusalKind
    is_serving: bool = True
    ahead_s: float = 0.0


class RejectedBody(msgspec.Struct, frozen=True):
    """The body of a replica's 400, 401 or 403. An earlier release sends only ``error``.

    ``rejected``: a ``RefusalKind``. ``state``: of the replica. ``ahead_s``: how far the sender's clock is ahead of it.
    """

    error: str
    rejected: str = ""
    state: str = "serving"
    ahead_s: float = 0.0


class HealthBody(msgspec.Struct, frozen=True):
    """The body of a replica's answer to a greeting. An earlier release sends no ``state``."""

    healthy: bool
    state: str = "serving"


_decoder: Final = msgspec.json.Decoder(RejectedBody)
_health_decoder: Final = msgspec.json.Decoder(HealthBody)


def refusal_in(status: int, body: bytes) -> Refusal | None:
    """Return the refusal that a response states, None if it is no refusal of a replica."""
    if status not in (400, 401, 403) or len(body) > MAX_PARSED_BYTES:
        return None
    try:
        said = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    kind: RefusalKind = "message" if status == 400 else "secret"
    for known in get_args(RefusalKind):
        if said.rejected == known:
            kind = known
    ahead_s = -max(-MAX_AHEAD_S, min(said.ahead_s, MAX_AHEAD_S)) if kind == "clock" else 0.0
    return Refusal(kind, said.state == "serving", ahead_s)


def refusal_without_proof(status: int, body: bytes) -> Refusal | None:
    """Return the refusal in a response that does not prove our cluster secret, None if it is not of a replica.

    A replica that has no secret accepts a greeting, and states only that it is healthy, and its state.
    """
    if status != 200:
        return refusal_in(status, body)
    if len(body) > MAX_PARSED_BYTES:
        return None
    try:
        said = _health_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Refusal("secret", said.state == "serving") if said.healthy else None


@dataclass(slots=True)
class Standing:
    """The outcome of the last request to one address that a replica answered. Times are monotonic seconds.

    ``refusal``: None if it accepted the request. ``since_s``: since when the outcome has been of this kind.
    ``clock_us``: what its wall clock showed when it last said so, minus the monotonic clock here; None if it has not.
    """

    at_s: float
    since_s: float
    is_serving: bool
    refusal: Refusal | None
    clock_us: int | None = None


class Refusals:
    """The standing of this replica with every address that it asks. Not thread-safe. Times are monotonic seconds.

    ``silent_after_s``: for how long an outcome counts. It holds an entry for each address asked, and forgets those that
    have not answered for that long.
    """

    def __init__(self, silent_after_s: float) -> None:
        self._silent_after_s = silent_after_s
        self._standings: dict[str, Standing] = {}

    def accepted(self, address: str, now_s: float, *, is_serving: bool, wall_us: int) -> bool:
        """Note that the replica at ``address`` accepted a request; return whether that ends a refusal.

        ``wall_us``: what its wall clock shows; 0 if it does not say, which ends no disagreement about clocks.
        """
        known = self._live(address, now_s)
        if known is not None and _is_clock(known) and not wall_us:
            return False
        before_us = known.clock_us if known is not None else None
        clock_us = wall_us - round(now_s * 1e6) if wall_us else before_us
        self._standings[address] = Standing(now_s, now_s, is_serving, None, clock_us)
        return known is not None and known.refusal is not None

    def refused(self, address: str, refusal: Refusal, now_s: float) -> bool:
        """Note a refusal; return whether it is new: the first one there, or of another kind than the last one."""
        known = self._live(address, now_s)
        is_new = known is None or known.refusal is None or known.refusal.kind != refusal.kind
        since_s = now_s if is_new or known is None else known.since_s
        self._standings[address] = Standing(now_s, since_s, refusal.is_serving, refusal)
        return is_new

    def follow(self, asked: Iterable[str], now_s: float) -> None:
        """Forget the addresses that are not asked any more, and those that have been silent for too long."""
        self._standings = {
            address: standing for address in asked if (standing := self._live(address, now_s)) is not None
        }

    def live(self, now_s: float) -> dict[str, Standing]:
        """Return the refusals that count: address -> standing."""
        return {
            address: standing
            for address, standing in sorted(self._standings.items())
            if standing.refusal is not None and self._is_live(standing, now_s)
        }

    def joining_reason(self, now_s: float) -> str:
        """Return why a joining replica must not serve; empty if no refusal is in its way."""
        others = self.live(now_s)
        if not others:
            return ""
        accepting = list(self._accepting(now_s))
        data_are_there = any(standing.is_serving for standing in others.values())
        data_are_here = any(standing.is_serving for standing in accepting)
        outweigh = len(others) >= 1 + len(accepting) or (data_are_there and not data_are_here)
        return describe(others) if outweigh else ""

    def serving_reason(self, now_s: float) -> str:
        """Return why a serving replica is not ready; empty if no refusal is in its way."""
        others = {at: standing for at, standing in self.live(now_s).items() if _is_clock(standing)}
        return describe(others) if len(others) > 1 + sum(1 for _ in self._accepting(now_s)) else ""

    def is_ahead_of_a_peer(self, now_s: float) -> bool:
        """Return whether a live replica refuses this one because times of this one are too far ahead of its clock."""
        return any(standing.refusal.ahead_s < 0 for standing in self.live(now_s).values() if standing.refusal)

    def has_clocks(self, now_s: float) -> bool:
        """Return whether the clocks of a live replica and of this one disagree."""
        return any(map(_is_clock, self.live(now_s).values()))

    def earliest_wall_us(self, now_s: float) -> int | None:
        """Return what the slowest wall clock of the accepting replicas shows now; None if none has said so."""
        clocks = [standing.clock_us for standing in self._accepting(now_s) if standing.clock_us is not None]
        return min(clocks) + round(now_s * 1e6) if clocks else None

    def has_answers(self, now_s: float) -> bool:
        """Return whether any other replica has answered lately."""
        return any(self._is_live(standing, now_s) for standing in self._standings.values())

    def _accepting(self, now_s: float) -> Iterator[Standing]:
        for standing in self._standings.values():
            if standing.refusal is None and self._is_live(standing, now_s):
                yield standing

    def _live(self, address: str, now_s: float) -> Standing | None:
        standing = self._standings.get(address)
        return standing if standing is not None and self._is_live(standing, now_s) else None

    def _is_live(self, standing: Standing, now_s: float) -> bool:
        return now_s - standing.at_s < self._silent_after_s


def _is_clock(standing: Standing) -> bool:
    return standing.refusal is not None and standing.refusal.kind == "clock"


def describe(refusals: dict[str, Standing]) -> str:
    """Return in plain words who refuses this replica, why, and what to do. ``refusals``: at least one."""
    by_kind: dict[str, list[str]] = {}
    for address, standing in refusals.items():
        assert standing.refusal is not None
        by_kind.setdefault(standing.refusal.kind, []).append(f"{address}{_clock_text(standing.refusal)}")
    parts = []
    for kind, addresses in by_kind.items():
        more = f" and {len(addresses) - MAX_NAMED} more" if len(addresses) > MAX_NAMED else ""
        parts.append(f"{', '.join(addresses[:MAX_NAMED])}{more}: {TEXTS[kind]}")
    return "Replica and live peers refuse each other. " + "; ".join(parts)


def describe_one(refusal: Refusal) -> str:
    """Return in plain words why one replica and this one refuse each other."""
    return f"{TEXTS[refusal.kind]}{_clock_text(refusal)}"


def _clock_text(refusal: Refusal) -> str:
    if not refusal.ahead_s:
        return ""
    relation = "ahead of" if refusal.ahead_s > 0 else "behind"
    return f" (its clock is {abs(refusal.ahead_s):.0f} s {relation} ours)"
