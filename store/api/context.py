"""What the views of this floor talk to: one engine and the limits of the edge, bound once at the start.

The server puts a replica together and calls ``bind`` before it takes the first request. Views ask by
function, not by import, so that importing a view never starts a replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store.engine import Engine


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may carry. Every field is a setting ``KV_<NAME>``; sizes are bytes (SPEC 2)."""

    max_body_bytes: int = 8 * 1024 * 1024
    """A request's body. Has to exceed ``max_value_bytes``, or the largest values cannot be sent."""

    max_key_bytes: int = 512
    """A key as UTF-8. For comparison: memcached 250, S3 1024."""

    max_value_bytes: int = 1024 * 1024
    """A value as compact JSON."""

    max_clock_entries: int = 1024
    """Replica ids in a client's causal metadata."""

    max_batch: int = 1000
    """Keys of one transaction, reads and writes together."""


_engine: Engine | None = None
_limits = Limits()


def bind(engine: Engine, limits: Limits) -> None:
    """Make the views serve ``engine`` within ``limits``; a later call replaces both (tests do that)."""
    global _engine, _limits
    _engine, _limits = engine, limits


def engine() -> Engine:
    """Return the bound engine. Raises ``RuntimeError`` where the server forgot to bind one."""
    if _engine is None:
        raise RuntimeError("No engine is bound: call store.api.context.bind() before serving requests.")
    return _engine


def limits() -> Limits:
    """Return the bound limits, SPEC's defaults until then."""
    return _limits
