"""Errors of replication.

ReplicationError
├── BadMessage           a peer sent something that is not a valid message (the peer's fault)
├── Unreachable          an exchange with a peer failed: no response in time, or not the response of a replica
│   ├── MessageRejected  the peer answered 400: it does not understand our message or does not accept our Host header
│   └── NotTrusted       one side does not accept the other as a member of its cluster
└── DuplicateAddress     another live process uses this replica's address: this process has to stop

A message is applied in steps: first its membership table and clock, then its updates in chunks. A step that raises
``BadMessage`` changes nothing, but the steps before it stay applied. Each of them is valid by itself. After
``Unreachable`` the peer may have applied the message all the same. After ``MessageRejected`` it has not applied the
invalid part.
"""

from __future__ import annotations


class ReplicationError(Exception):
    """Base class of all errors that replication raises on purpose."""


class BadMessage(ReplicationError):
    """A message, or a chunk of its updates, that a correct replica cannot have sent. It is not applied."""


class Unreachable(ReplicationError):
    """An exchange with a peer failed: it did not answer in time, or not as a replica does."""


class MessageRejected(Unreachable):
    """The peer rejected the message: its protocol version differs, or it is not a replica."""


class NotTrusted(Unreachable):
    """The cluster secret, API token or TLS certificate of one side is not valid for the other side."""


class DuplicateAddress(ReplicationError):
    """Another live process answers at this replica's address, and this one is the one to stop (duplicates.py)."""
