"""Followers: clients of a soak that keep a copy of a prefix, through all faults, by the change feed.

A follower goes on at a random replica whenever it likes, and whenever the present one fails, with the token of its last
response. Half a round of responses cannot be repeated: each one continues the last one, whichever replica sent it. All
responses are in the recorded history, so the checker says whether the copy was a causal snapshot whenever ``more`` was
false and whether it ever went backwards. After the round, each follower goes on at every replica until its copy is
complete. It then has to equal the final state.

Pollers use the client (``Session.changes``); their requests count. Streamers read server-sent events; theirs do not.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from causeway_client import ClientError, Rejected
from tools.event_stream import BROKEN, StreamFollower
from tools.soak.clients import ATTEMPT_TIMEOUT_S, CountingSession, RoundContext
from tools.soak.storm import shortened

POLLERS, STREAMERS = 4, 2
"""How many followers a round has."""

PREFIXES = ("", "0", "1", "2")
"""What followers follow, behind the prefix of the round. The first one includes the large values of storms."""

WAIT_S = 0.3
"""How long a poll may be held. Short, because the next request should meet the next fault."""

PAUSE_S = 0.25
"""Mean pause between two requests of a poller, or between two events of a streamer: a slow consumer."""

STREAM_S = 4.0
"""A streamer stays this long at one replica, on average."""


class Poller:
    """A follower by long polls. ``name``: of its session."""

    def __init__(self, context: RoundContext, name: str, prefix: str, rng: random.Random) -> None:
        self.name = name
        self._context = context
        self._rng = rng
        self._prefix = context.prefix + prefix
        self._token = ""
        self._session = CountingSession(context, name, record=_shortening(context.recorder))

    def work(self) -> None:
        """Follow the prefix until the load of the round ends."""
        while not self._context.is_over():
            if self._rng.random() < 0.3:
                self._session.stick_to(self._rng.choice(self._session.replicas))
            try:
                self._poll(WAIT_S)
            except Rejected as exc:
                self._context.problem(f"follower {self.name} was rejected: {exc}")
                return
            except ClientError as exc:
                self._context.note(f"follower {self.name}: {exc}")
            time.sleep(self._rng.uniform(0, 2 * PAUSE_S))

    def finish(self, timeout_s: float) -> None:
        """Go on at each replica until the copy is complete. Record a problem if it takes longer than ``timeout_s``."""
        for url in self._session.replicas:
            deadline = time.monotonic() + timeout_s
            is_complete, reason = False, "the copy is not complete"
            while not is_complete and time.monotonic() < deadline:
                self._session.stick_to(url)
                try:
                    is_complete = not self._poll(0) and self._session.replica == url
                except ClientError as exc:
                    reason = str(exc)
            if not is_complete:
                self._context.problem(f"follower {self.name} does not end at {url} after the heal: {reason}")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _poll(self, wait_s: float) -> bool:
        """Receive one response; return whether it has ``more``."""
        found = next(self._session.changes(self._prefix, since=self._token, wait_s=wait_s))
        self._token = found.next
        self._context.counts.note_feed(reset=found.reset, more=found.more)
        return found.more


class Streamer:
    """A follower by server-sent events. ``name``: of its session."""

    def __init__(self, context: RoundContext, name: str, prefix: str, rng: random.Random) -> None:
        self.name = name
        self._context = context
        self._rng = rng
        self._follower = StreamFollower(name, context.prefix + prefix, _shortening(context.recorder))
        self._urls = [f"http://{address}" for address in context.replicas]

    def work(self) -> None:
        """Follow the prefix until the load of the round ends."""
        while not self._context.is_over():
            until_s = time.monotonic() + self._rng.uniform(0, 2 * STREAM_S)
            with contextlib.suppress(*BROKEN):
                for body in self._follower.follow(self._rng.choice(self._urls), timeout_s=ATTEMPT_TIMEOUT_S):
                    self._count(body)
                    if self._context.is_over() or time.monotonic() > until_s:
                        break
                    time.sleep(self._rng.uniform(0, 2 * PAUSE_S))
            time.sleep(0.05)

    def finish(self, timeout_s: float) -> None:
        """Go on at each replica until the copy is complete. Record a problem if it takes longer than ``timeout_s``."""
        for url in self._urls:
            deadline = time.monotonic() + timeout_s
            is_complete, reason = False, "the copy is not complete"
            while not is_complete and time.monotonic() < deadline:
                try:
                    for body in self._follower.follow(url, timeout_s=ATTEMPT_TIMEOUT_S):
                        self._count(body)
                        is_complete = not body["more"]
                        if is_complete:
                            break
                except BROKEN as exc:
                    reason = str(exc)
            if not is_complete:
                self._context.problem(f"follower {self.name} does not end at {url} after the heal: {reason}")

    def close(self) -> None:
        """Nothing stays open."""

    def _count(self, body: Mapping[str, Any]) -> None:
        self._context.counts.note_losses(body, time.monotonic())
        self._context.counts.note_feed(reset=body["reset"], more=body["more"])


Follower = Poller | Streamer


def new_followers(context: RoundContext, round_number: int, rng: random.Random) -> list[Follower]:
    """Return the followers of a round."""
    kinds: list[type[Poller | Streamer]] = [*[Poller] * POLLERS, *[Streamer] * STREAMERS]
    prefixes = [PREFIXES[n % len(PREFIXES)] for count in (POLLERS, STREAMERS) for n in range(count)]
    return [
        kind(context, f"r{round_number}follower{n}", prefix, random.Random(rng.random()))
        for n, (kind, prefix) in enumerate(zip(kinds, prefixes, strict=True))
    ]


def _shortening(record: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
    """Return ``record`` for operations whose reads may be values of storms."""

    def shortened_record(operation: Mapping[str, Any]) -> None:
        record({**operation, "reads": [(key, shortened(value)) for key, value in operation.get("reads", ())]})

    return shortened_record
