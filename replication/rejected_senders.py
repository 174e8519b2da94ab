"""Rejected senders: who has sent messages that this replica rejected, by the address that the sender claims.

A replica with another cluster secret may be in nobody's view, so nobody calls it and nobody is refused by it
(refusals.py): only its own messages show that it exists. Its requests name its address (``SENDER``). Nothing proves
that name, because whoever lacks the secret can prove nothing. So it is shown to operators as a claim, and decides
nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

from replication.refusals import TEXTS, RefusalKind
from store.address import is_canonical

SENDER: Final = "X-Causeway-Sender"
"""Header of requests between replicas: the address of the sender. The proof does not cover it."""

CLAIMED_SENDER: Final = "HTTP_" + SENDER.upper().replace("-", "_")
"""The WSGI variable of that header."""

MAX_REJECTED_SENDERS: Final = 16
"""Addresses that are remembered."""

REMEMBERED_S: Final = 60.0
"""An address is forgotten when its last message was rejected this long ago."""

MAX_ADDRESS_CHARS: Final = 300
"""A longer name is no address."""

REJECTED_TEXTS: Final[dict[str, str]] = TEXTS | {
    "name": "it calls this replica by a name that is not accepted here; see KV_ALLOWED_HOSTS",
    "message": "its messages are not valid here; the log of this replica says why",
}
"""What is the case, and what to do, as the replica that rejects sees it."""


class RejectedSender(NamedTuple):
    """The last rejection of one claimed address. ``source``: the IP address. ``at_s``: monotonic seconds."""

    address: str
    kind: RefusalKind
    source: str
    at_s: float


class RejectedSenders:
    """Remembers at most ``MAX_REJECTED_SENDERS`` claimed addresses, for ``REMEMBERED_S`` each. Thread-safe."""

    def __init__(self, now_s: Callable[[], float] = monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._senders: dict[str, RejectedSender] = {}
        """Claimed address -> its last rejection, the oldest first."""

    def note(self, address: str, source: str, kind: RefusalKind) -> None:
        """Note that a message was rejected. ``address``: as its sender claims it; ignored if it is no address."""
        if not address or len(address) > MAX_ADDRESS_CHARS or not is_canonical(address):
            return
        now_s = self._now_s()
        with self._lock:
            self._forget_old(now_s)
            self._senders.pop(address, None)
            if len(self._senders) >= MAX_REJECTED_SENDERS:
                # Whoever claims many addresses displaces his own ones, not those that come from elsewhere.
                counts = Counter(sender.source for sender in self._senders.values())
                busiest = max(counts.values())
                del self._senders[next(at for at, each in self._senders.items() if counts[each.source] == busiest)]
            self._senders[address] = RejectedSender(address, kind, source, now_s)

    def all(self) -> list[RejectedSender]:
        """Return the addresses that are remembered, sorted."""
        with self._lock:
            self._forget_old(self._now_s())
            return sorted(self._senders.values())

    def _forget_old(self, now_s: float) -> None:
        self._senders = {at: each for at, each in self._senders.items() if now_s - each.at_s < REMEMBERED_S}
