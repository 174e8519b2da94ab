"""What the store refuses to do, as facts; the API turns them into HTTP.

    StoreError
    ├── Refused        the gate is closed: joining, leaving or removed
    ├── DependenciesMissing     the client's causal past has not arrived here
    ├── PreconditionFailed       a precondition (If-Match, If-None-Match) does not hold
    ├── OutOfMemory    KV_MAX_MEMORY is reached; only what frees memory is still done
    ├── Busy           as many requests wait already as are allowed
    ├── TooManyWatchers, TooManyAckWaits   the same of those that watch, and of writes that wait for acks
    └── BadUpdate      a peer sent an update that cannot be (the peer's fault)

None of them leaves a trace: whatever raises one of these has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping


class StoreError(Exception):
    """Base of all that the store raises on purpose."""


class NotServing(StoreError):
    """This replica does not serve clients now; ``reason`` is a sentence for the client."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DependenciesMissing(StoreError):
    """The causal past of a request is not here yet.

    ``missing``: replica id -> (counter that is here, counter that is needed).
    ``retry_after_s``: whole seconds after which to try again.
    """

    def __init__(self, missing: Mapping[str, tuple[int, int]], retry_after_s: int = 1) -> None:
        super().__init__("Causal dependencies not satisfied; try again later")
        self.missing = dict(missing)
        self.retry_after_s = retry_after_s


class TooManyDeferred(DependenciesMissing):
    """As many requests wait for their causal past as may wait at once: this one is not let in."""


class TooManyWatchers(StoreError):
    """As many requests watch a key as may watch at once (KV_MAX_WATCHERS)."""


class TooManyAckWaits(StoreError):
    """As many writes wait for the acks of other members as may wait at once; this one was not made."""


class PreconditionFailed(StoreError):
    """A precondition does not hold.

    ``metadata``: the clock to answer with; ``etag``: of the version that is there, None when the key is absent.
    """

    def __init__(self, metadata: Mapping[str, int], etag: str | None) -> None:
        super().__init__("Precondition failed")
        self.metadata = dict(metadata)
        self.etag = etag


class OutOfMemory(StoreError):
    """The data would grow beyond KV_MAX_MEMORY."""


class BadUpdate(StoreError):
    """An update that no correct replica can have issued; nothing of it was taken."""
