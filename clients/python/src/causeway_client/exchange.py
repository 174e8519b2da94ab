"""What the core asks of a transport, and what the transport returns: requests, responses, failures and pauses.

A call is a generator. It yields a command, gets the outcome, and returns the result of the call:

    Send(…)   -> Response or Failure      one HTTP request to one replica
    Pause(…)  -> None                     wait
    Ask(…)    -> what the function returned; an exception of the function is raised in the generator

``Session`` carries out the commands with ``requests`` and ``time.sleep``, ``AsyncSession`` with ``aiohttp`` and
``asyncio.sleep``. Tests do it without either.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from .results import Json

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Clock:
    """How a session reads the time: ``monotonic`` for deadlines, ``wall`` for recorded operations."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request. ``replica``: base URL. ``path``: encoded, with the query; send it exactly so.

    ``timeout_s``: how long the attempt may take without a response.
    ``is_stream``: do not read the body of a 200; the response has a ``stream`` instead.
    """

    replica: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    timeout_s: float
    is_stream: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Call ``function`` with ``argument``. A function of an ``AsyncSession`` may return an awaitable."""

    function: Callable[[Any], Any]
    argument: Any


class Stream(Protocol):
    """The body of a response, read part by part. Close it: it has a connection of its own."""

    def receive(self, timeout_s: float, /) -> Any:
        """Return the next bytes, empty at the end, or a ``Failure``. That of an ``AsyncSession`` is a coroutine.

        ``timeout_s``: how long to wait for them.
        """

    def close(self) -> None:
        """Close the connection, unless the body was read to its end. May be called several times."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response, or one with a ``stream`` in place of ``content``. Names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    stream: Stream | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """No whole response arrived. ``maybe_sent``: the request may have reached the replica."""

    reason: str
    maybe_sent: bool


Command: TypeAlias = Send | Pause | Ask
Steps: TypeAlias = Generator[Command, Any, T]
"""A call in progress."""

NO_RESPONSE: Final = "no response in time"

TLS_ALERT: Final = r"\x15\x03"
"""How the answer of a server with TLS to plain HTTP begins, in the texts of the HTTP libraries' errors."""

BUSY: Final = frozenset(
    {
        "Too many request bodies at once; try again",
        "Too many large responses are in progress; try again later",
    }
)
"""Errors of a 503 that a replica sends without metadata: it has not read the body that has it, or it has no room."""


def decode(content: bytes) -> dict[str, Json] | None:
    """Return the JSON object of a response; None if it is something else."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def is_from_replica(response: Response, body: Mapping[str, Json] | None) -> bool:
    """Return whether a 503 is a replica's, and not one that a proxy made.

    A replica sends 503 only before it applies anything, so the write can be sent again. A proxy may send 503 after it
    has forwarded the request. Every 503 of ``/kvs`` names an error and repeats the request's metadata, or has one of
    the texts in ``BUSY``.
    """
    if body is None or not isinstance(body.get("error"), str):
        return False
    return (
        isinstance(body.get("causal-metadata"), dict)
        or "x-causal-metadata" in response.headers
        or body["error"] in BUSY
    )


def retry_after_s(header: str | None, wall_s: float) -> float:
    """Return the delay in a Retry-After header, seconds; 0 if there is none or it is malformed.

    ``wall_s``: now, Unix seconds.
    """
    if not header:
        return 0.0
    try:
        seconds = float(header)
        return seconds if 0.0 <= seconds < float("inf") else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - wall_s)
    except ValueError:
        return 0.0


def broken(exc: BaseException) -> str:
    """Return the reason of a ``Failure`` whose connection broke."""
    text = str(exc).replace("\\\\", "\\")  # aiohttp quotes the answer twice.
    advice = ": the replica answers with TLS, so its URL begins with https://" if TLS_ALERT in text else ""
    return f"the connection broke ({type(exc).__name__}){advice}"
