"""What a call can raise.

    ClientError
    ├── Rejected                    4xx or 507: the replica rejected the request; nothing was changed
    │   ├── NotAllowed              401, 403: the token is missing, unknown, or does not allow this request or key
    │   ├── WrongType               409: the key holds another type of value than the operation changes
    │   └── PreconditionFailed      412: the key's version is not the one in ``if_match`` or ``if_none_match``
    ├── Unavailable                 no replica answered in time; nothing was changed
    │   └── DependenciesMissing     … and the replicas that could be reached lack part of the session's causal past
    ├── Uncertain                   a write was sent and its outcome is unknown: it may have been or may yet be applied
    └── BadExport                   an export broke off, or is damaged: the keys that it has yielded are not all keys

Arguments that can never be valid (an empty key, NaN in a value) raise ``ValueError`` or ``TypeError`` before a request
is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ClientError(Exception):
    """Base class of the client's errors. ``replica``: base URL of the replica that was tried last; "" if none was."""

    replica: str = ""


class Rejected(ClientError):
    """The replica rejected the request (4xx, 507). Nothing was changed. Do not send the same request again.

    ``status``: the HTTP status. ``error``: the replica's error text. ``body``: its whole response.
    """

    def __init__(self, replica: str, status: int, body: Mapping[str, Any]) -> None:
        self.replica, self.status, self.body = replica, status, body
        self.error = str(body.get("error") or body.get("detail") or "no reason given")
        super().__init__(f"{replica} answered {status}: {self.error}")


class NotAllowed(Rejected):
    """401 or 403: the token is missing, unknown, or does not allow this request or a key in it (``error``)."""


class WrongType(Rejected):
    """409: the key holds another type of value, or versions that cannot merge. Nothing was changed."""


class PreconditionFailed(Rejected):
    """412: the version of the key is not the one in ``if_match`` or ``if_none_match``. Nothing was changed.

    ``etag``: the current version, which counts as seen by the session; ``ABSENT_ETAG`` if the key is absent. Of a
    transaction, it belongs to the first key whose condition does not hold.
    """

    def __init__(self, replica: str, status: int, body: Mapping[str, Any], etag: str | None) -> None:
        super().__init__(replica, status, body)
        self.etag = etag


class Unavailable(ClientError):
    """No replica answered before the deadline. Nothing was changed, so it is safe to try again later.

    ``attempts``: (replica, reason) of each attempt, in order.
    """

    def __init__(self, attempts: Sequence[tuple[str, str]]) -> None:
        self.attempts = tuple(attempts)
        self.replica = attempts[-1][0] if attempts else ""
        last_reasons = dict(attempts)
        text = "; ".join(f"{replica}: {reason}" for replica, reason in last_reasons.items())
        super().__init__(text or "no time was left for an attempt")


class DependenciesMissing(Unavailable):
    """The replicas that could be reached lack part of the session's causal past and did not get it in time.

    ``missing``: replica id -> [counter that the replica has, counter that it needs], from the last such response.
    """

    def __init__(self, attempts: Sequence[tuple[str, str]], missing: Mapping[str, Any]) -> None:
        super().__init__(attempts)
        self.missing = dict(missing)


class Uncertain(ClientError):
    """A write was sent and its outcome is unknown: it may have been applied, or may yet be applied.

    The session's metadata does not cover the write, so there is no promise when this session sees it. To find out, read
    the key. To make sure, write again (the documentation of ``retry_writes`` says what that can cause).
    """

    def __init__(self, replica: str, reason: str) -> None:
        self.replica = replica
        super().__init__(f"outcome unknown at {replica}: {reason}")


class BadExport(ClientError):
    """An export is not complete, or damaged. It may have yielded keys: discard them, and export again.

    ``reason``: what is wrong with it.
    """

    def __init__(self, replica: str, reason: str) -> None:
        self.replica, self.reason = replica, reason
        super().__init__(f"{replica}: {reason}" if replica else reason)
