"""The simulated name service, for replicas that discover each other."""

from __future__ import annotations

from random import Random

from tools.simulation.scheduler import Scheduler

PUBLISHED_WITHIN_S = 2.0
"""The name service learns of a start or an end after this time at most."""


class NameService:
    """Gives processes IP addresses, and returns those of all processes to lookups.

    It is late: for up to ``PUBLISHED_WITHIN_S`` after a start or an end, ``look_up`` does not return a new address, or
    still returns one at which no process or another one is running. ``lookup_loss``: share of lookups without a result.
    """

    def __init__(self, scheduler: Scheduler, rng: Random, hosts: int) -> None:
        self.lookup_loss = 0.2
        self._scheduler = scheduler
        self._rng = rng
        self._pool = [f"ip{n}:1" for n in range(hosts + 2)]
        # IP address -> address of the host whose process has it now.
        self._owners: dict[str, str] = {}
        self._published: set[str] = set()

    def assign(self, host: str) -> str:
        """Give the process that starts at ``host`` a free IP address, which another process often had before."""
        ip = self._rng.choice([ip for ip in self._pool if ip not in self._owners])
        self._owners[ip] = host
        self._publish_later(ip)
        return ip

    def release(self, ip: str) -> None:
        """Take back the IP address of a process that has ended."""
        del self._owners[ip]
        self._publish_later(ip)

    def look_up(self) -> list[str]:
        """Return the published addresses; [] if there are none or the name service does not answer."""
        if self._published and self._rng.random() >= self.lookup_loss:
            return sorted(self._published)
        return []

    def resolve(self, address: str) -> str:
        """Return the address of the host whose process has the IP address ``address``; ``address`` if none has it."""
        return self._owners.get(address, address)

    def _publish_later(self, ip: str) -> None:
        self._scheduler.at(self._scheduler.now_s + self._rng.random() * PUBLISHED_WITHIN_S, self._publish, ip)

    def _publish(self, ip: str) -> None:
        """Make lookups return ``ip`` if a process has it now, and not otherwise."""
        if ip in self._owners:
            self._published.add(ip)
        else:
            self._published.discard(ip)
