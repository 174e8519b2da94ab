"""Errors of replication.

ReplicationError
├── BadMessage               a peer sent something that is not a valid message (the peer's fault)
│   ├── ClockTooFarOff       a time in it is too far ahead of this replica's wall clock
│   ├── IncompatibleProtocol its version of the protocol is not next to this replica's
│   └── TableFull            the membership table has no room for its addresses
├── Unreachable              an exchange with a peer failed: no response in time, or not the response of a replica
│   ├── MessageRejected      the peer answered 400: it does not accept our message or our Host header
│   └── NotTrusted           one side does not accept the other as a member of its cluster
└── DuplicateAddress         another live process uses this replica's address: this process has to stop

A message is applied in steps: first its membership table and clock, then its updates in chunks. A step that raises
``BadMessage`` changes nothing, but the steps before it stay applied. Each of them is valid by itself. After
``Unreachable`` the peer may have applied the message all the same. After ``MessageRejected`` it has not applied the
invalid part.
"""

from __future__ import annotations

from typing import ClassVar

from replication.refusals import Refusal, RefusalKind
from replication.unreached import FailureKind


class ReplicationError(Exception):
    """Base class of all errors that replication raises on purpose."""


class BadMessage(ReplicationError):
    """A message, or a chunk of its updates, that a correct replica cannot have sent. It is not applied.

    ``kind``: the reason that a 400 names, so that its receiver can tell reasons apart (refusals.py).
    """

    kind: ClassVar[RefusalKind] = "message"


class ClockTooFarOff(BadMessage):
    """A time in a message is ``ahead_s`` seconds ahead of this replica's wall clock, more than is accepted.

    ``is_serving``: whether the sender says that it serves clients.
    """

    kind = "clock"

    def __init__(self, text: str, ahead_s: float, *, is_serving: bool) -> None:
        super().__init__(text)
        self.ahead_s = ahead_s
        self.is_serving = is_serving


class IncompatibleProtocol(BadMessage):
    """The version of a message is neither this replica's nor next to it."""

    kind = "protocol"


class TableFull(BadMessage):
    """The addresses of a message, or of a view change, do not fit into the membership table."""

    kind = "full"


class Unreachable(ReplicationError):
    """An exchange with a peer failed: it did not answer in time, or not as a replica does.

    ``refusal``: set if what answered is a replica that refuses this one. ``failure``: otherwise, why.
    """

    def __init__(self, text: str, refusal: Refusal | None = None, failure: FailureKind = "silent") -> None:
        super().__init__(text)
        self.refusal = refusal
        self.failure = failure


class MessageRejected(Unreachable):
    """The peer rejected the message: its protocol version differs, or it is not a replica."""


class NotTrusted(Unreachable):
    """The cluster secret, API token or TLS certificate of one side is not valid for the other side."""


def refusal_of(exc: Exception) -> Refusal | None:
    """Return the refusal that made an exchange fail, None if it failed for another reason.

    A peer is refused here if a message of it has a time that is too far ahead, or is of an incompatible version, or has
    addresses for which there is no room. Whoever sends bytes that are no message may not be a replica.
    """
    if isinstance(exc, ClockTooFarOff):
        return Refusal(exc.kind, exc.is_serving, exc.ahead_s)
    if isinstance(exc, IncompatibleProtocol | TableFull):
        return Refusal(exc.kind)
    return exc.refusal if isinstance(exc, Unreachable) else None


def failure_of(exc: Exception) -> FailureKind:
    """Return why an exchange failed. Whoever sends bytes that are no message is no replica."""
    return exc.failure if isinstance(exc, Unreachable) else "stranger"


def refusal_stated(exc: BadMessage, *, is_serving: bool) -> Refusal:
    """Return what the sender of a message learns from the 400 with which a replica rejects it because of ``exc``.

    ``is_serving``: whether the replica that rejects it serves clients.
    """
    return Refusal(exc.kind, is_serving, -exc.ahead_s if isinstance(exc, ClockTooFarOff) else 0.0)


class DuplicateAddress(ReplicationError):
    """Another live process answers at this replica's address, and this one is the one to stop (duplicates.py)."""
