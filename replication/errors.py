"""What can go wrong between replicas.

ReplicationError
├── BadMessage      what arrived is no message of ours (the peer's fault); nothing of it was taken
├── Unreachable     a peer did not answer in time, or not with a message of ours
│   ├── MessageRejected     it says that what we sent is no message of its protocol; nothing was taken
│   └── NotTrusted  it does not prove that it is of this cluster, or does not take us for one; nothing was taken
└── AddressTaken    another live process uses this replica's address: this one has to stop
"""

from __future__ import annotations


class ReplicationError(Exception):
    """Base of all that replication raises on purpose."""


class BadMessage(ReplicationError):
    """What a peer sent cannot be a message of a correct replica; the state is as before."""


class Unreachable(ReplicationError):
    """A peer could not be asked; it may or may not have got the message."""


class MessageRejected(Unreachable):
    """The peer does not understand us: its protocol is of another version, or it is no replica."""


class NotTrusted(Unreachable):
    """One of the two sides does not take the other for a replica of its cluster: secret, token, clock, certificate."""


class DuplicateAddress(ReplicationError):
    """Another process with a higher incarnation talks under this replica's address."""
