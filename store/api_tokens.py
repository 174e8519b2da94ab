"""API tokens: the value of ``KV_API_TOKENS``, parsed once for the server and for the commands. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

Access = Literal["read", "write"]

MIN_TOKEN_CHARACTERS: Final = 8

_ACCESS: Final[Mapping[str, Access]] = {"read": "read", "write": "write"}
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_TOKEN: Final = re.compile(r"[!-~]+")
"""Visible ASCII. An Authorization header cannot carry other characters in a way that all clients agree on."""


class ApiToken(NamedTuple):
    """One entry of ``KV_API_TOKENS``: a name for the log, the secret text, and what it permits."""

    name: str
    token: str
    access: Access

    def __repr__(self) -> str:
        """Show the name without the secret."""
        return f"ApiToken(name={self.name!r}, access={self.access!r})"


def parse_api_tokens(text: str) -> tuple[ApiToken, ...]:
    """Return the entries of a comma-separated list of ``name:token:read`` or ``name:token:write``.

    The token itself may contain colons. Raises ``ValueError``, which names a wrong entry by its position, because its
    text may contain a secret.
    """
    tokens: list[ApiToken] = []
    for position, item in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        name, _, rest = item.partition(":")
        token, _, access = rest.rpartition(":")
        is_token = _TOKEN.fullmatch(token) and len(token) >= MIN_TOKEN_CHARACTERS
        if not _NAME.fullmatch(name) or not is_token or access not in _ACCESS:
            raise ValueError(
                f"entry {position} is not name:token:read|write with a token of at least {MIN_TOKEN_CHARACTERS} "
                "visible ASCII characters"
            )
        tokens.append(ApiToken(name, token, _ACCESS[access]))
    for what in ("name", "token"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ValueError(f"contains the same {what} twice")
    if not tokens:
        raise ValueError("is set but contains no token")
    return tuple(tokens)


def parse_token(text: str) -> str:
    """Return a token that a client sends. Raises ``ValueError`` if a header cannot carry it."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("must be visible ASCII characters")
    return text


def first_write_token(tokens: Iterable[ApiToken]) -> str:
    """Return the first token that permits writing, or an empty text if there is none."""
    return next((token.token for token in tokens if token.access == "write"), "")
