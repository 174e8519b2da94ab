"""API tokens: the value of ``KV_API_TOKENS``, parsed once for the server and for the commands. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

Access = Literal["read", "write"]

MIN_TOKEN_CHARACTERS: Final = 8

MAX_PREFIXES_NAMED: Final = 3
MAX_PREFIX_CHARACTERS_NAMED: Final = 100
"""How many prefixes of a token an error names, and how much of each."""

_ACCESS: Final[Mapping[str, Access]] = {"read": "read", "write": "write"}
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_TOKEN: Final = re.compile(r"[!-~]+")
"""Visible ASCII. An Authorization header cannot carry other characters in a way that all clients agree on."""


class ApiToken(NamedTuple):
    """One entry of ``KV_API_TOKENS``: a name for the log, the secret text, and what it permits.

    ``prefixes``: the token permits only keys that begin with one of them, as text. Empty: it permits every key. No
    prefix is an empty text.
    """

    name: str
    token: str
    access: Access
    prefixes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Show the entry without the secret."""
        return f"ApiToken(name={self.name!r}, access={self.access!r}, prefixes={self.prefixes!r})"

    def covers(self, text: str) -> bool:
        """Return whether the token permits the key ``text``, or all keys that begin with ``text``."""
        return not self.prefixes or text.startswith(self.prefixes)

    @property
    def scope(self) -> str:
        """The prefixes, for an error: ``'a/', 'b/' or 2 more``."""
        named = [repr(prefix[:MAX_PREFIX_CHARACTERS_NAMED]) for prefix in self.prefixes[:MAX_PREFIXES_NAMED]]
        if further := len(self.prefixes) - len(named):
            named.append(f"{further} more")
        return " or ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def parse_api_tokens(text: str) -> tuple[ApiToken, ...]:
    """Return the entries of a comma-separated list of ``name:token:read|write[:prefix[|prefix…]]``.

    The token itself may contain colons: it ends before the first ``:read`` or ``:write``. Everything after the colon
    that follows is prefixes, which may contain colons too. Raises ``ValueError``, which names a wrong entry by its
    position, because its text may contain a secret.
    """
    tokens: list[ApiToken] = []
    for position, item in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        name, _, rest = item.partition(":")
        fields = rest.split(":")
        at = next((i for i, field in enumerate(fields) if i and field in _ACCESS), 0)
        token = ":".join(fields[:at])
        is_token = _TOKEN.fullmatch(token) and len(token) >= MIN_TOKEN_CHARACTERS
        if not _NAME.fullmatch(name) or not is_token:
            raise ValueError(
                f"entry {position} is not name:token:read|write[:prefix[|prefix…]] with a token of at least "
                f"{MIN_TOKEN_CHARACTERS} visible ASCII characters"
            )
        prefixes = _prefixes(":".join(fields[at + 1 :]), position) if fields[at + 1 :] else ()
        tokens.append(ApiToken(name, token, _ACCESS[fields[at]], prefixes))
    for what in ("name", "token"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ValueError(f"contains the same {what} twice")
    if not tokens:
        raise ValueError("is set but contains no token")
    return tuple(tokens)


def _prefixes(text: str, position: int) -> tuple[str, ...]:
    """Return the prefixes of an entry. Raises ``ValueError``."""
    prefixes = tuple(dict.fromkeys(text.split("|")))
    if "" in prefixes:
        # An empty prefix would permit every key, which is more often a failed substitution than what was meant.
        raise ValueError(
            f"entry {position} has an empty prefix; for a token that permits every key, leave out the colon after "
            "read or write"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"entry {position} has a prefix that is not valid UTF-8") from None
    return prefixes


def parse_token(text: str) -> str:
    """Return a token that a client sends. Raises ``ValueError`` if a header cannot carry it."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("must be visible ASCII characters")
    return text


def first_write_token(tokens: Iterable[ApiToken]) -> str:
    """Return the first token that permits writing, of those without prefixes if there is one; else an empty text."""
    writing = [token for token in tokens if token.access == "write"]
    return next((token.token for token in sorted(writing, key=lambda each: bool(each.prefixes))), "")
