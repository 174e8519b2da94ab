"""What the edge says to who may not come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

SignReply = Callable[[int, bytes], str]
"""From a reply's status and body to the proof that it carries."""


class Turned(Exception):
    """The request may not come in. ``sign``: for the reply, where the sender has proven the secret all the same."""

    def __init__(
        self, status: int, error: str, headers: Iterable[tuple[str, str]] = (), sign: SignReply | None = None
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.headers, self.sign = status, error, headers, sign
