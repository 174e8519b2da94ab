"""Errors of the store. They carry facts; the API turns them into HTTP responses.

    StoreError
    ├── NotServing            this replica does not serve clients: it joins, leaves, or was removed
    ├── DependenciesMissing   part of the request's causal past has not been applied here
    ├── PreconditionFailed    a condition (If-Match, If-None-Match) does not hold
    ├── KeyAbsent             a PATCH that creates nothing names an absent key
    ├── WrongKind             a PATCH names a key that holds something else
    ├── BadPatch              a PATCH cannot be applied to what the key holds
    ├── ValueTooLarge         a PATCH would make a value too large
    ├── ResponseTooLarge      a response would be longer than KV_MAX_RESPONSE_BYTES
    ├── TooManySearches       as many requests search among old changes of the feed as may
    ├── OutOfMemory           KV_MAX_MEMORY is reached; only writes that free memory succeed
    └── BadUpdate             a peer sent an update that no correct replica issues

A client's operation that raises one of these has written nothing. ``BadUpdate`` concerns one update of a message: the
updates before it in the message stay received.
"""

from __future__ import annotations

from collections.abc import Mapping


class StoreError(Exception):
    """Base class of the errors above."""


class NotServing(StoreError):
    """This replica does not serve clients now. ``reason``: the error text for the client."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DependenciesMissing(StoreError):
    """Part of a request's causal past has not been applied here yet.

    ``missing``: replica id -> (counter that is here, counter that is needed).
    ``retry_after_s``: whole seconds after which the client should try again.
    """

    def __init__(self, missing: Mapping[str, tuple[int, int]], retry_after_s: int = 1) -> None:
        super().__init__("Causal dependencies not satisfied; try again later")
        self.missing = dict(missing)
        self.retry_after_s = retry_after_s


class PreconditionFailed(StoreError):
    """A condition of a write does not hold.

    ``key``: the first one whose condition does not hold. ``etag``: its entity tag. ``metadata``: causal metadata of the
    response; it covers the current winner.
    """

    def __init__(self, key: str, metadata: Mapping[str, int], etag: str) -> None:
        super().__init__("Precondition failed")
        self.key = key
        self.metadata = dict(metadata)
        self.etag = etag


class KeyAbsent(StoreError):
    """A PATCH that creates nothing names an absent key.

    ``key``: its name. ``metadata``: causal metadata of the response; it covers the delete of the key.
    """

    def __init__(self, key: str, metadata: Mapping[str, int]) -> None:
        super().__init__("Key does not exist")
        self.key = key
        self.metadata = dict(metadata)


class WrongKind(StoreError):
    """A PATCH names a key that holds something else. The text says what it holds.

    ``key``: its name. ``metadata``: causal metadata of the response; it covers what the key holds. ``etag``: its entity
    tag.
    """

    def __init__(self, message: str, key: str, metadata: Mapping[str, int], etag: str) -> None:
        super().__init__(message)
        self.key = key
        self.metadata = dict(metadata)
        self.etag = etag


class BadPatch(StoreError):
    """A PATCH cannot be applied to what the key holds. The text says why."""


class ValueTooLarge(StoreError):
    """A PATCH would make a value longer, or give it more items, than allowed. The text says what is allowed."""


class ResponseTooLarge(StoreError):
    """The response would be longer than ``limit_bytes`` (KV_MAX_RESPONSE_BYTES). The text says what is too much."""

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(f"{what}: a response has at most {limit_bytes} bytes (KV_MAX_RESPONSE_BYTES)")


class TooManySearches(StoreError):
    """As many requests of the change feed as may (store/searches.py) wait for a search among many changes."""


class OutOfMemory(StoreError):
    """The write would grow the data beyond KV_MAX_MEMORY."""


class BadUpdate(StoreError):
    """A peer sent an update that no correct replica issues. Nothing of the update was applied."""
