"""Liveness: which replicas can be reached, as observed from heartbeats.

Every message carries a *heartbeat*, a number that its sender raises with each message. Replicas also report the last
heartbeat that they have heard of every other replica. An old heartbeat that is reported again proves nothing, so
reports cannot keep a dead replica alive, over however many hops they come.

A reply to our own request is a sign of life whatever its heartbeat, and its heartbeat counts from then on. So a
heartbeat that was invented, and is above all real ones, cannot make a replica look silent that answers us.

Reports matter only where the direct path is cut. So a replica asks for them: each message names the replicas of which
its sender has had no message for ``ask_after_s`` (``unheard``), and the next message to it reports those. Between idle
replicas that all reach each other, no message reports anything. Some peers get a report of everybody, twice per sync
interval: those of version 1; those with another membership table; those that do not answer, because what they ask may
not arrive here; and those that join, because they have to learn who has been silent for long.

Sources: gossip-style failure detection by rising heartbeats, van Renesse, Minsky, Hayden (1998); the states alive,
suspect and down as in SWIM, Das et al. (2002).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from replication.messages import LastHeard
from replication.settings import ReplicationSettings


class Contact(NamedTuple):
    """The last sign of life of one replica: its heartbeat, and when it was heard (own monotonic seconds).

    ``direct_s``: when a message of its own was last heard; minus infinity if there are only reports of others.
    """

    heartbeat: int
    at_s: float
    direct_s: float = float("-inf")


class Liveness:
    """The last contact of every replica id that was heard of. Not thread-safe. Times are monotonic seconds."""

    def __init__(self, settings: ReplicationSettings) -> None:
        self._settings = settings
        self._contacts: dict[str, Contact] = {}

    def hear(self, replica: str, heartbeat: int, at_s: float) -> None:
        """Record a sign of life of the id ``replica``; ignore a heartbeat that is not above the last one."""
        known = self._contacts.get(replica)
        if known is None:
            self._contacts[replica] = Contact(heartbeat, at_s)
        elif known.heartbeat < heartbeat:
            self._contacts[replica] = Contact(heartbeat, max(at_s, known.at_s), known.direct_s)

    def hear_request(self, replica: str, heartbeat: int, at_s: float) -> None:
        """Record a request of the id ``replica`` itself; ignore a heartbeat that is not above the last one."""
        known = self._contacts.get(replica)
        if known is None or known.heartbeat < heartbeat:
            self._contacts[replica] = Contact(heartbeat, at_s, at_s)

    def hear_reply(self, replica: str, heartbeat: int, at_s: float) -> None:
        """Record that the id ``replica`` has answered a request that was in flight until now."""
        self._contacts[replica] = Contact(heartbeat, at_s, at_s)

    def unheard(self, replicas: Collection[str], now_s: float) -> list[str]:
        """Return those of ``replicas`` that have not been heard themselves for ``ask_after_s``."""
        before_s, contacts = now_s - self._settings.ask_after_s, self._contacts
        return [id_ for id_ in replicas if (known := contacts.get(id_)) is None or known.direct_s <= before_s]

    def report(self, replicas: Collection[str], now_s: float) -> dict[str, LastHeard]:
        """Return what to report to peers: the last contact of each id in ``replicas`` that was heard of."""
        return {
            replica: LastHeard(contact.heartbeat, max(0, round((now_s - contact.at_s) * 1000)))
            for replica, contact in self._contacts.items()
            if replica in replicas
        }

    def last_contact(self, replica: str) -> float | None:
        """Return when the id ``replica`` was last heard of, None if never."""
        contact = self._contacts.get(replica)
        return contact.at_s if contact else None

    def is_silent(self, replica: str, since_s: float, now_s: float) -> bool:
        """Return whether the id ``replica`` has been silent for so long that it counts as down.

        ``since_s``: the start of its silence if it was never heard of.
        """
        contact = self._contacts.get(replica)
        return now_s - (contact.at_s if contact else since_s) >= self._settings.silent_after_s

    def forget(self, is_obsolete: Callable[[str], bool]) -> None:
        """Forget the replica ids for which ``is_obsolete`` holds: they prove nothing any more and would pile up."""
        self._contacts = {id_: contact for id_, contact in self._contacts.items() if not is_obsolete(id_)}
