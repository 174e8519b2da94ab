"""``RequestDenied``: raised by the guard and the CORS check; the edge turns it into a response."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from replication.refusals import RefusalKind

SignReply = Callable[[int, bytes], str]
"""Returns the proof for a response, given its status and body."""


class RequestDenied(Exception):
    """The request is rejected with ``status``, ``error``, ``hint`` (what to send) and ``headers``.

    ``sign``: signs the response; None if the sender has not proven the cluster secret. A request with a valid signature
    can still be denied, for example because its time is too far off. ``rejected``: the reason that a peer's program
    reads (replication/refusals.py).
    """

    def __init__(
        self,
        status: int,
        error: str,
        headers: Iterable[tuple[str, str]] = (),
        sign: SignReply | None = None,
        rejected: RefusalKind = "secret",
        *,
        hint: str,
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.headers, self.sign = status, error, headers, sign
        self.rejected = rejected
        self.hint = hint
