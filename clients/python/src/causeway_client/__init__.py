"""A Python client for Causeway: sessions that carry causal metadata from request to request and replica to replica.

    with Session(["127.0.0.1:8090", "127.0.0.1:8091"]) as session:
        session.put("greeting", {"en": "hello"})
        session.get("greeting").value                   # {"en": "hello"}, at any replica

``AsyncSession`` is the same for asyncio; it needs ``aiohttp`` (the extra ``async``).

Module ``core`` says what a session promises and what it sends again. ``errors`` lists what a call can raise, and
``results`` what it returns. ``causeway_client.django`` has a cache, sessions and middleware for Django.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    BadExport,
    ClientError,
    DependenciesMissing,
    NotAllowed,
    PreconditionFailed,
    Rejected,
    Unavailable,
    Uncertain,
    WrongType,
)
from .recording import JsonLines
from .results import (
    ABSENT_ETAG,
    KEEP,
    Attempt,
    ChangedKey,
    Changes,
    Delete,
    ExportedKey,
    ExportedVersion,
    Json,
    Metadata,
    Page,
    Patch,
    Put,
    Read,
    Recorder,
    Result,
    Sibling,
    Transacted,
    Written,
)
from .session import Session

if TYPE_CHECKING:
    from .async_session import AsyncSession

__all__ = [
    "ABSENT_ETAG",
    "KEEP",
    "AsyncSession",
    "Attempt",
    "BadExport",
    "ChangedKey",
    "Changes",
    "ClientError",
    "Delete",
    "DependenciesMissing",
    "ExportedKey",
    "ExportedVersion",
    "Json",
    "JsonLines",
    "Metadata",
    "NotAllowed",
    "Page",
    "Patch",
    "PreconditionFailed",
    "Put",
    "Read",
    "Recorder",
    "Rejected",
    "Result",
    "Session",
    "Sibling",
    "Transacted",
    "Unavailable",
    "Uncertain",
    "Written",
    "WrongType",
]


def __getattr__(name: str) -> Any:
    """Import ``AsyncSession`` when it is first used, because it needs ``aiohttp``."""
    if name == "AsyncSession":
        from .async_session import AsyncSession  # noqa: PLC0415

        return AsyncSession
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
