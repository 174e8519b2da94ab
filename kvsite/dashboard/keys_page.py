"""The data of the key pages: a list of keys by prefix, and everything that the local replica knows about one key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlencode

import msgspec

from kvsite.dashboard.cards import QueueItem
from kvsite.dashboard.formatting import iso, short_labels, size, span, update_name
from replication.address import is_canonical
from store.clock import address_of
from store.values import Base64Text, JsonText, as_json, base64_length

PAGE_SIZE = 50
"""Keys per page."""

MAX_VALUE_CHARS_IN_LIST, MAX_VALUE_CHARS = 120, 4000
"""Characters shown of a value. The API returns the whole value."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key in the list. ``query``: query string of its page; ``written_by``: the update that wrote the winner.

    ``kind``: of the value; empty if it is JSON.
    """

    key: str
    query: str
    value: str
    kind: str
    size: str
    versions: int
    written_by: str
    written_at: str


@dataclass(frozen=True, slots=True)
class KeyListPage:
    """The search and its result. ``next_query``: query string of the next page; empty on the last page.

    ``is_running``: whether a replica runs in this process.
    """

    prefix: str
    conflicts: bool
    after: str
    rows: tuple[KeyRow, ...]
    next_query: str
    is_running: bool = True

    @property
    def first_query(self) -> str:
        """The query string of the first page."""
        return urlencode(_search_parameters(self.prefix, conflicts=self.conflicts))


@dataclass(frozen=True, slots=True)
class MemberTag:
    """Whether a member has applied a version, as far as the local replica knows."""

    address: str
    text: str
    tone: str
    state: str


@dataclass(frozen=True, slots=True)
class PastEntry:
    """An entry of a causal past."""

    label: str
    replica_id: str
    counter: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a value that merges: ``name`` is a replica, an element or a field; ``text`` says what it has."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class VersionCard:
    """One version of a key: the winner or a sibling.

    ``note``: says that the value was cut, or how it is encoded; empty if neither. ``parts``: of a value that merges.
    """

    written_by: str
    origin: str
    counter: int
    is_winner: bool
    value: str
    note: str
    written_at: str
    expires: str
    parts: tuple[Part, ...]
    past: tuple[PastEntry, ...]
    members: tuple[MemberTag, ...]


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One key. ``count``: how many versions it has; ``versions`` may show fewer.

    ``kind``, ``merged``: if the versions merge, the kind of the value, and the value; else empty.
    ``is_running``: whether a replica runs in this process.
    """

    versions: tuple[VersionCard, ...]
    pending: tuple[QueueItem, ...]
    count: int = 0
    is_running: bool = True
    kind: str = ""
    merged: str = ""

    @property
    def summary(self) -> str:
        """How many values the key has."""
        count, shown = self.count, len(self.versions)
        if self.kind:
            return (
                f"A {self.kind}." if count == 1 else f"A {self.kind}. {count} concurrent versions merge to one value."
            )
        if not count:
            return "This key does not exist on this replica."
        if count == 1:
            return "One value."
        rest = f" The first {shown} are shown." if shown < count else ""
        return f"{count} concurrent values. A read returns the first one, the winner.{rest}"


def key_list_page(
    keys: Sequence[Mapping[str, Any]] | None, members: Sequence[str], *, prefix: str, after: str, conflicts: bool
) -> KeyListPage:
    """Return a page of the list.

    ``keys``: up to ``PAGE_SIZE + 1`` keys (``NodeInspector.keys``); None if no replica runs in this process.
    ``members``: addresses, from which the short labels are made.
    """
    labels = short_labels(members)
    rows = tuple(_key_row(each, labels) for each in (keys or ())[:PAGE_SIZE])
    next_query = ""
    if keys and len(keys) > PAGE_SIZE:
        parameters = _search_parameters(prefix, conflicts=conflicts)
        next_query = urlencode({**parameters, "after": keys[PAGE_SIZE - 1]["key"]})
    return KeyListPage(prefix, conflicts, after, rows, next_query, is_running=keys is not None)


def _search_parameters(prefix: str, *, conflicts: bool) -> dict[str, str]:
    return {**({"prefix": prefix} if prefix else {}), **({"conflicts": "true"} if conflicts else {})}


def _key_row(entry: Mapping[str, Any], labels: Mapping[str, str]) -> KeyRow:
    stored, kind = entry["value"], entry["type"]
    text = as_json(stored) if kind == "bytes" else stored
    value, _ = _shortened(text, MAX_VALUE_CHARS_IN_LIST, entry["value_bytes"])
    return KeyRow(
        key=entry["key"],
        query=urlencode({"key": entry["key"]}),
        value=value,
        kind="" if kind == "json" else kind,
        size=size(entry["value_bytes"]),
        versions=entry["versions"],
        written_by=update_name(entry["dot"], labels),
        written_at=_date_and_time(entry["timestamp"]),
    )


def key_page(explanation: Mapping[str, Any] | None, members: Sequence[str]) -> KeyPage:
    """Return the page of a key.

    ``explanation``: from ``NodeInspector.explain``; None if no replica runs in this process.
    ``members``: see ``key_list_page``.
    """
    if explanation is None:
        return KeyPage((), (), is_running=False)
    labels = short_labels(members)
    merged = explanation["merged"]
    return KeyPage(
        tuple(_version_card(version, labels, is_winner=i == 0) for i, version in enumerate(explanation["versions"])),
        tuple(_queue_item(update, labels) for update in explanation["pending"]),
        explanation["version_count"],
        kind=merged["type"] if merged else "",
        merged=_whole_or_start(merged["value"]) if merged and merged["value"] is not None else "",
    )


def _whole_or_start(text: msgspec.Raw) -> str:
    encoded = bytes(text)
    return _shortened(encoded, MAX_VALUE_CHARS, len(encoded))[0]


def _version_card(version: Mapping[str, Any], labels: Mapping[str, str], *, is_winner: bool) -> VersionCard:
    text = version["value"]
    if text is None:
        value, note = (
            "",
            f"Not shown, because the values of this key are too long together: {size(version['value_bytes'])}.",
        )
    else:
        text = text if isinstance(text, Base64Text) else bytes(text)
        value, note = _shortened(text, MAX_VALUE_CHARS, version["value_bytes"])
    origin, counter = version["dot"]
    expires_in_s = version["expires_in_s"]
    return VersionCard(
        written_by=update_name((origin, counter), labels),
        origin=origin,
        counter=counter,
        is_winner=is_winner,
        value=value,
        note=note,
        written_at=_date_and_time(version["timestamp"]),
        expires="" if expires_in_s is None else f"in {span(expires_in_s)}",
        parts=tuple(_part(part, labels) for part in version.get("parts", ())),
        past=tuple(
            PastEntry(labels.get(address_of(id_), address_of(id_)), id_, n)
            for id_, n in sorted(version["past"].items())
        ),
        members=tuple(_member_tag(member) for member in version["members"] if is_canonical(member["address"])),
    )


def _part(part: Mapping[str, Any], labels: Mapping[str, str]) -> Part:
    if "net" in part:
        name = "ended replicas" if part["ended"] else labels.get(address_of(part["replica"]), part["replica"])
        return Part(name, f"{part['net']:+,}")
    if "element" in part:
        added_by = ", ".join(update_name((origin, counter), labels) for origin, counter in part["added_by"])
        return Part(str(part["element"]), f"added by {added_by}")
    value = _whole_or_start(part["value"])[:MAX_VALUE_CHARS_IN_LIST]
    return Part(part["field"], f"{value}, set by {update_name(tuple(part['set_by']), labels)}")


def _member_tag(member: Mapping[str, Any]) -> MemberTag:
    text, tone = {True: ("has it", "good"), False: ("not yet", "warn"), None: ("unknown", "note")}[member["has"]]
    return MemberTag(member["address"], text, tone, "" if member["self"] else member["state"])


def _queue_item(update: Mapping[str, Any], labels: Mapping[str, str]) -> QueueItem:
    return QueueItem(
        update=update_name(tuple(update["dot"]), labels),
        effect="deletes it" if update["deletes"] else "writes it",
        waits_for=update_name(tuple(update["waits_for"]), labels),
        duration=span(update["since_s"]),
    )


def _shortened(value: JsonText, limit: int, total_bytes: int) -> tuple[str, str]:
    """Return the start of a value as text, and a note on its size or encoding if the text is not the whole value.

    ``value`` may itself be only the first bytes of ``total_bytes``.
    """
    if isinstance(value, Base64Text):
        text = b"".join(islice(value, 1, 2)).strip(b'"').decode()  # the first piece, which is longer than any limit
        if len(text) <= limit and len(value) == base64_length(total_bytes):
            return text, f"{total_bytes:,} byte{'' if total_bytes == 1 else 's'} in base64."
        return f"{text[:limit]}…", f"The first {min(limit, len(text)):,} characters of {size(total_bytes)} in base64."
    text = value[: 4 * limit].decode("utf-8", "ignore")
    if len(text) <= limit and len(value) == total_bytes:
        return text, ""
    return f"{text[:limit]}…", f"The first {min(limit, len(text)):,} characters of {size(total_bytes)}."


def _date_and_time(timestamp_us: int) -> str:
    return iso(timestamp_us).replace("T", " ").removesuffix("+00:00")
