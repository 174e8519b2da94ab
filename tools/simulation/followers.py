"""Followers of the change feed in a simulated world: they poll at random replicas, and their copies are checked.

Whenever a response has ``more`` false, the follower's copy must equal the table of the replica that answered, under the
prefix. Keys with a deadline are left out: each replica judges deadlines by its own wall clock.

The random choices here are not drawn from the world's generator, so a seed names the same run with and without them.
"""

from __future__ import annotations

from random import Random

from replication.replica import Replica
from store.clock import Clock, join
from store.errors import DependenciesMissing
from store.feed import Changes, FeedToken, Search, adopt, begin_search
from store.versions import Versions, state_etag
from tools.simulation.world import Host, World

PREFIXES = ("", "k", "k1", "t")
PAUSE_S = 0.5
SEARCHES = 0.3
"""Share of the polls that search first, as the engine does after many changes. The response comes later, at most
``SEARCH_S``: meanwhile the replica goes on."""

SEARCH_S = 0.5
MAX_READS = 1000
"""A follower that reads this often at a replica that does not change must have a complete copy."""


class Follower:
    """One client that keeps a copy of the keys with ``prefix``, as contract 2.9 tells it to.

    ``copy``: key -> its versions. ``is_snapshot``: whether the copy is a causal snapshot now.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.token: FeedToken | None = None
        self.copy: dict[str, Versions] = {}
        self.is_snapshot = False
        self._listed: set[str] | None = None

    def take(self, changes: Changes) -> None:
        """Apply one response."""
        self.token = changes.token
        self.is_snapshot = not changes.more
        if not changes.is_reset:
            self._listed = None
        elif self._listed is None:
            self._listed = set()
        for key, versions in changes.keys.items():
            if self._listed is not None:
                self._listed.add(key)
            if versions:
                self.copy[key] = versions
            else:
                self.copy.pop(key, None)
        if self._listed is not None and not changes.more:
            self.copy = {key: versions for key, versions in self.copy.items() if key in self._listed}
            self._listed = None


class Followers:
    """All followers of one run. ``violations``: what was wrong with their copies."""

    def __init__(self, world: World, seed: int, count: int) -> None:
        self._world = world
        self._rng = Random(f"followers of {seed}")
        self.violations: list[str] = []
        self.all = [Follower(self._rng.choice(PREFIXES)) for _ in range(count)]
        self._is_over = False

    def begin(self) -> None:
        """Let every follower poll again and again."""
        for follower in self.all:
            self._world.at(self._world.now_s + self._rng.random(), self._poll, follower)

    def _poll(self, follower: Follower) -> None:
        if self._is_over:
            return
        hosts = [host for host in self._world.live() if _serving(host)]
        pause_s = self._rng.expovariate(1 / PAUSE_S)
        if hosts:
            host, max_bytes = self._rng.choice(hosts), self._rng.choice([1, 600, 1_000_000])
            if follower.token is not None and self._rng.random() < SEARCHES:
                pause_s += self._search(follower, host, max_bytes)
            else:
                self._try_to_read(follower, host, max_bytes)
        self._world.at(self._world.now_s + pause_s, self._poll, follower)

    def _search(self, follower: Follower, host: Host, max_bytes: int) -> float:
        """Search at ``host`` now, and read there later. Return how much later."""
        replica = host.replica
        assert replica is not None
        assert follower.token is not None
        now = self._world.now(host)
        token = adopt(replica.store, follower.token, now)
        search = None if token.since is None else begin_search(replica.store, token, follower.prefix, now)
        if search is not None:
            search.run()
            self._world.counts["feed_searches"] += 1
        later_s = self._rng.uniform(0, SEARCH_S)

        def read_later() -> None:
            if host.replica is replica and _serving(host) and not self._is_over:
                self._try_to_read(follower, host, max_bytes, token, search)

        self._world.at(self._world.now_s + later_s, read_later)
        return later_s

    def _try_to_read(
        self,
        follower: Follower,
        host: Host,
        max_bytes: int,
        adopted: FeedToken | None = None,
        search: Search | None = None,
    ) -> None:
        try:
            self._read(follower, host, {}, max_bytes, adopted, search)
        except DependenciesMissing:
            self._world.counts["feeds_deferred"] += 1

    def _read(
        self,
        follower: Follower,
        host: Host,
        lost: Clock,
        max_bytes: int,
        adopted: FeedToken | None = None,
        search: Search | None = None,
    ) -> None:
        """Read once at ``host``.

        ``lost``: origin -> the first counter of the token's past that is lost. ``adopted``, ``search``: the follower's
        token, if this replica has adopted it before, and what a search for it has found.
        """
        replica = host.replica
        assert replica is not None
        now = self._world.now(host)
        token = adopted
        if token is None and follower.token is not None:
            token = adopt(replica.store, follower.token, now)
        past = {} if token is None else token.clock
        past = {origin: min(counter, lost.get(origin, counter + 1) - 1) for origin, counter in past.items()}
        past = {origin: counter for origin, counter in past.items() if counter}
        found = replica.store.changes(token, follower.prefix, past, now, max_bytes=max_bytes, search=search)
        self._world.counts["feeds"] += 1
        self._world.counts["feed_resets"] += found.is_reset
        follower.take(found)
        if follower.is_snapshot:
            self._check(follower, replica)

    def _check(self, follower: Follower, replica: Replica) -> None:
        table = replica.store.table.copy()
        for key in table.keys() | follower.copy.keys():
            if not key.startswith(follower.prefix):
                continue
            there, here = table.get(key, ()), follower.copy.get(key, ())
            if any(version.expires is not None for version in (*there, *here)):
                continue
            if state_etag(there) != state_etag(here):
                self.violations.append(
                    f"Feed: at {replica.id} a copy of {follower.prefix!r} has {state_etag(here)} of {key!r}, "
                    f"not {state_etag(there)}"
                )

    def finish(self) -> None:
        """Let each follower read at every serving replica until its copy is complete."""
        self._is_over = True
        for follower in self.all:
            for host in self._world.live():
                if _serving(host):
                    self._finish_at(follower, host)

    def _finish_at(self, follower: Follower, host: Host) -> None:
        replica = host.replica
        assert replica is not None
        lost: Clock = {}
        if follower.token is not None and not replica.store.is_causal(follower.token.clock):
            wanted = join({}, follower.token.clock)
            token = replica.loss.fetch(wanted)
            self._world.pump(host)
            self._world.run_until(self._world.now_s + 3.0)
            lost = {origin: first for origin, (first, _) in replica.loss.unrecoverable(wanted, token).items()}
        for _ in range(MAX_READS):
            try:
                self._read(follower, host, lost, 600)
            except DependenciesMissing as exc:
                self.violations.append(f"Feed: {replica.id} defers a follower that misses {exc.missing}")
                return
            lost = {}
            if follower.is_snapshot:
                return
        self.violations.append(f"Feed: the feed of {follower.prefix!r} at {replica.id} does not end")


def _serving(host: Host) -> bool:
    return host.replica is not None and host.replica.state == "serving"
