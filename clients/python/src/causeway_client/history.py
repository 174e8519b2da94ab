"""What a session has seen: its causal metadata, and how responses change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .results import Metadata


@dataclass(slots=True)
class History:
    """What a session has seen. The session's lock guards it.

    ``metadata``: replaced, never changed in place, because requests in flight share it.
    ``lost``: the parts of the causal past that were lost: replica id -> (first, last) counter.
    ``follows``: ids of other sessions' operations that the next recorded operation follows.
    """

    metadata: Metadata
    lost: dict[str, tuple[int, int]] = field(default_factory=dict)
    follows: tuple[str, ...] = ()

    def follow(self, metadata: Metadata, operation: str) -> None:
        """Add what another session has seen up to ``operation`` (an id; "" if it is unknown)."""
        self.follows += (operation,) if operation else ()
        self.metadata = join_metadata(self.metadata, metadata)

    def take_follows(self) -> tuple[str, ...]:
        """Return ``follows`` and clear it."""
        follows, self.follows = self.follows, ()
        return follows

    def add_response(self, sent: Metadata, returned: Metadata | None, lost: Mapping[str, tuple[int, int]]) -> None:
        """Add what a response to a request with the metadata ``sent`` contains."""
        if returned is not None:
            self.metadata = advance(self.metadata, sent, returned)
        for replica, (first, last) in lost.items():
            known = self.lost.get(replica, (first, last))
            self.lost[replica] = (min(first, known[0]), max(last, known[1]))


def advance(current: Metadata, sent: Metadata, returned: Metadata) -> Metadata:
    """Return the session's metadata after a response with the metadata ``returned``.

    ``current``: the session's metadata now. ``sent``: the metadata of the request.

    ``returned`` covers ``sent``, but may leave out entries: those of lost updates, and those that a marker replaces
    (docs/contract.md, section 2.8). So ``returned`` takes the place of ``sent``. If other threads have changed the
    metadata since the request, keep what they added or raised as well. An entry that the response left out goes only
    if no thread has changed it since.
    """
    if current == sent:
        return dict(returned)
    kept = {replica: n for replica, n in current.items() if replica in returned or sent.get(replica) != n}
    return join_metadata(kept, returned)


def join_metadata(a: Metadata, b: Metadata) -> dict[str, int]:
    """Return the entries of both, the higher counter of each replica id, in a new mapping: requests share ``a``."""
    joined = dict(a)
    for replica, counter in b.items():
        if counter > joined.get(replica, 0):
            joined[replica] = counter
    return joined
