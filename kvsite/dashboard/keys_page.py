"""The pages of keys: a list by prefix, and all that the replica asked knows of one key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from kvsite.dashboard.cards import Waiting
from kvsite.dashboard.formatting import address_of, iso, named, short_labels, size, span

PAGE = 50
"""Keys of a page."""

SHOWN_IN_LIST, SHOWN = 120, 4000
"""Characters shown of a value; all of it is for the API to tell."""


@dataclass(frozen=True, slots=True)
class Row:
    """A key. ``query``: of the link to its page; ``versions``: how many it holds; ``written``: by which update."""

    key: str
    query: str
    value: str
    size: str
    versions: int
    written: str
    at: str


@dataclass(frozen=True, slots=True)
class KeysPage:
    """What was searched for, and what was found. ``more``: the query of the next page, empty on the last."""

    prefix: str
    conflicts: bool
    after: str
    rows: tuple[Row, ...]
    more: str
    is_running: bool = True

    @property
    def start(self) -> str:
        """The query of the first page."""
        return urlencode(_searched(self.prefix, conflicts=self.conflicts))


@dataclass(frozen=True, slots=True)
class Has:
    """Whether a member has a version. ``word``: yes, not yet, or unknown."""

    address: str
    word: str
    tone: str
    state: str


@dataclass(frozen=True, slots=True)
class PastEntry:
    """An entry of a causal past."""

    label: str
    title: str
    counter: int


@dataclass(frozen=True, slots=True)
class VersionCard:
    """One version of a key: the winner, or one that is concurrent to it."""

    etag: str
    written: str
    origin: str
    counter: int
    is_winner: bool
    value: str
    value_more: str
    at: str
    expires: str
    past: tuple[PastEntry, ...]
    members: tuple[Has, ...]


@dataclass(frozen=True, slots=True)
class KeyPage:
    """All there is to tell of one key."""

    key: str
    versions: tuple[VersionCard, ...]
    pending: tuple[Waiting, ...]
    is_running: bool = True

    @property
    def summary(self) -> str:
        """What the key is, in words."""
        count = len(self.versions)
        if not count:
            return "This key is absent here."
        return (
            "One value." if count == 1 else f"{count} concurrent values: the first is the one that everybody is shown."
        )


def keys_page(
    found: Sequence[Mapping[str, Any]] | None, members: Sequence[str], *, prefix: str, after: str, conflicts: bool
) -> KeysPage:
    """Return the list. ``found``: up to ``PAGE + 1`` keys (``Node.keys``); ``members``: addresses, for short labels."""
    labels = short_labels(members)
    rows = tuple(_row(each, labels) for each in (found or ())[:PAGE])
    more = ""
    if found and len(found) > PAGE:
        more = urlencode({**_searched(prefix, conflicts=conflicts), "after": found[PAGE - 1]["key"]})
    return KeysPage(prefix, conflicts, after, rows, more, is_running=found is not None)


def _searched(prefix: str, *, conflicts: bool) -> dict[str, str]:
    return {**({"prefix": prefix} if prefix else {}), **({"conflicts": "true"} if conflicts else {})}


def _row(told: Mapping[str, Any], labels: Mapping[str, str]) -> Row:
    text, _ = _shown(told["value"], SHOWN_IN_LIST, told["value_bytes"])
    return Row(
        key=told["key"],
        query=urlencode({"key": told["key"]}),
        value=text,
        size=size(told["value_bytes"]),
        versions=told["versions"],
        written=named(told["dot"], labels),
        at=_moment(told["timestamp"]),
    )


def key_page(told: Mapping[str, Any] | None, key: str, members: Sequence[str]) -> KeyPage:
    """Return the page of ``key``. ``told``: what ``Node.explain`` tells."""
    if told is None:
        return KeyPage(key, (), (), is_running=False)
    labels = short_labels(members)
    return KeyPage(
        key,
        tuple(_version(version, labels, is_winner=i == 0) for i, version in enumerate(told["versions"])),
        tuple(_waiting(update, labels) for update in told["pending"]),
    )


def _version(told: Mapping[str, Any], labels: Mapping[str, str], *, is_winner: bool) -> VersionCard:
    value = bytes(told["value"])
    text, more = _shown(value, SHOWN, len(value))
    origin, counter = told["dot"]
    expires_in_s = told["expires_in_s"]
    return VersionCard(
        etag=told["etag"],
        written=named((origin, counter), labels),
        origin=origin,
        counter=counter,
        is_winner=is_winner,
        value=text,
        value_more=more,
        at=_moment(told["timestamp"]),
        expires="" if expires_in_s is None else f"in {span(expires_in_s)}",
        past=tuple(
            PastEntry(labels.get(address_of(id_), address_of(id_)), id_, n) for id_, n in sorted(told["past"].items())
        ),
        members=tuple(_has(member) for member in told["members"]),
    )


def _has(member: Mapping[str, Any]) -> Has:
    word, tone = {True: ("has it", "good"), False: ("not yet", "warn"), None: ("unknown", "note")}[member["has"]]
    return Has(member["address"], word, tone, "" if member["self"] else member["state"])


def _waiting(told: Mapping[str, Any], labels: Mapping[str, str]) -> Waiting:
    return Waiting(
        named(tuple(told["dot"]), labels),
        "deletes it" if told["deletes"] else "writes it",
        named(tuple(told["waits_for"]), labels),
        span(told["since_s"]),
    )


def _shown(value: bytes, limit: int, whole_bytes: int) -> tuple[str, str]:
    """Return the start of an encoded value as text, and how much there is where that is not all of it."""
    text = value[: 4 * limit].decode("utf-8", "ignore")
    if len(text) <= limit and len(value) == whole_bytes:
        return text, ""
    return f"{text[:limit]}…", f"The first {min(limit, len(text)):,} characters of {size(whole_bytes)}."


def _moment(timestamp_us: int) -> str:
    return iso(timestamp_us).replace("T", " ").removesuffix("+00:00")
