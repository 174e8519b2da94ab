"""What the views of this floor talk to: one engine and the limits of the edge, bound once at the start.

The server puts a replica together and calls ``bind`` before it takes the first request. Views ask by
function, not by import, so that importing a view never starts a replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from store.settings import RequestLimits

if TYPE_CHECKING:
    from store.engine import Engine


_engine: Engine | None = None
_limits = RequestLimits()


def bind(engine: Engine, limits: RequestLimits) -> None:
    """Make the views serve ``engine`` within ``limits``; a later call replaces both (tests do that)."""
    global _engine, _limits
    _engine, _limits = engine, limits


def engine() -> Engine:
    """Return the bound engine. Raises ``RuntimeError`` where the server forgot to bind one."""
    if _engine is None:
        raise RuntimeError("No engine is bound: call store.api.context.bind() before serving requests.")
    return _engine


def limits() -> RequestLimits:
    """Return the bound limits, SPEC's defaults until then."""
    return _limits
