"""The data of the key pages: a list of keys by prefix, and everything that the local replica knows about one key."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal
from urllib.parse import urlencode

import msgspec

from kvsite.dashboard.cards import QueueItem
from kvsite.dashboard.formatting import counted, iso, short_labels, size, span, update_name, update_query
from store.address import is_canonical
from store.clock import address_of
from store.values import Base64Text, JsonText, as_json, base64_length

PAGE_SIZE = 50
"""Keys per page."""

MAX_VALUE_CHARS_IN_LIST, MAX_VALUE_CHARS = 120, 4000
"""Characters shown of a value. A link leads to the whole value."""

MAX_LINE_CHARS = 60
"""A JSON value that is longer is shown indented, over several lines."""


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


Order = Literal["name", "largest", "oldest", "newest"]

ORDERS: Final[Mapping[Order, str]] = {
    "name": "by name",
    "largest": "largest first",
    "oldest": "oldest first",
    "newest": "newest first",
}
"""Order of the list -> its name on the page."""


@dataclass(frozen=True, slots=True)
class KeySearch:
    """What to list: keys with ``prefix`` behind ``after``, or the last ones before ``before``, in ``order``.

    Only a list by name has pages.
    """

    prefix: str = ""
    after: str = ""
    before: str = ""
    conflicts: bool = False
    order: Order = "name"

    def query(self, **more: str) -> str:
        """Return the query string of the first page of this search, or with ``more``, of another page."""
        parameters = {
            "prefix": self.prefix,
            "conflicts": "true" if self.conflicts else "",
            "order": "" if self.order == "name" else self.order,
            **more,
        }
        return urlencode({name: text for name, text in parameters.items() if text})


def key_search(parameters: Mapping[str, str]) -> KeySearch:
    """Return the search in the query string of a request. Unknown values count as absent."""
    order = parameters.get("order", "")
    return KeySearch(
        prefix=parameters.get("prefix", ""),
        after=parameters.get("after", ""),
        before=parameters.get("before", ""),
        conflicts=parameters.get("conflicts") == "true",
        order=order if order in ORDERS else "name",  # type: ignore[arg-type]  # mypy does not narrow to the literals
    )


@dataclass(frozen=True, slots=True)
class FoundKeys:
    """The result of a search. ``keys``: entries of ``list_keys``; by name, up to ``PAGE_SIZE + 1``.

    ``total``: how many keys the search has in all. ``is_whole``: whether all of them were looked at to rank them.
    """

    keys: Sequence[Mapping[str, Any]]
    total: int
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class KeyListPage:
    """The search and its result. ``next_query``, ``previous_query``: query strings; empty if there is no such page.

    ``summary``: how many keys there are. ``is_running``: whether a replica runs in this process.
    """

    search: KeySearch
    rows: tuple[KeyRow, ...]
    next_query: str = ""
    previous_query: str = ""
    summary: str = ""
    is_running: bool = True

    @property
    def first_query(self) -> str:
        """The query string of the first page."""
        return self.search.query()

    @property
    def orders(self) -> list[tuple[str, str, bool]]:
        """Each order: its value, its name, and whether it is this one."""
        return [(order, name, order == self.search.order) for order, name in ORDERS.items()]


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

    ``update_query``, ``raw_query``: query strings of the page of its update, and of the value as it is stored.
    ``note``: says that the value was cut, or how it is encoded; empty if neither. ``parts``: of a value that merges.
    """

    written_by: str
    update_query: str
    raw_query: str
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
    ``note``: what became of the key, or of a delete of it; may be empty.
    ``is_running``: whether a replica runs in this process.
    """

    versions: tuple[VersionCard, ...]
    pending: tuple[QueueItem, ...]
    count: int = 0
    is_running: bool = True
    kind: str = ""
    merged: str = ""
    note: str = ""

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


def key_list_page(found: FoundKeys | None, members: Sequence[str], search: KeySearch) -> KeyListPage:
    """Return a page of the list.

    ``found``: None if no replica runs in this process. ``members``: addresses, from which the short labels are made.
    """
    if found is None:
        return KeyListPage(search, (), is_running=False)
    labels = short_labels(members)
    has_more = len(found.keys) > PAGE_SIZE
    # Going backwards, the key too many is the first one.
    shown = found.keys[-PAGE_SIZE:] if search.before else found.keys[:PAGE_SIZE]
    has_previous = has_more if search.before else bool(search.after)
    has_next = bool(search.before) or has_more
    return KeyListPage(
        search,
        tuple(_key_row(each, labels) for each in shown),
        next_query=search.query(after=shown[-1]["key"]) if has_next and shown else "",
        previous_query=search.query(before=shown[0]["key"]) if has_previous and shown else "",
        summary=_summary(found, search),
    )


def _summary(found: FoundKeys, search: KeySearch) -> str:
    total = counted(found.total, "key")
    which = f"{total} in conflict" if search.conflicts else total
    if search.prefix:
        which += " with this prefix"
    if search.order == "name" or found.total <= len(found.keys):
        return f"{which}."
    kind = ORDERS[search.order].partition(" ")[0]
    looked_at = "" if found.is_whole else " Only the first 100,000 keys by name were looked at."
    return f"{which}. The {counted(len(found.keys), f'{kind} key')} are shown.{looked_at}"


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
        tuple(
            _version_card(explanation["key"], version, labels, is_winner=i == 0)
            for i, version in enumerate(explanation["versions"])
        ),
        tuple(_queue_item(update, labels) for update in explanation["pending"]),
        explanation["version_count"],
        kind=merged["type"] if merged else "",
        merged=_whole_or_start(merged["value"]) if merged and merged["value"] is not None else "",
        note=explanation["note"],
    )


def _whole_or_start(text: msgspec.Raw) -> str:
    encoded = bytes(text)
    value, note = _shortened(encoded, MAX_VALUE_CHARS, len(encoded))
    return value if note else _indented(value)


def _indented(value: str) -> str:
    """Return a JSON text over several lines, unless it fits into one."""
    if len(value) <= MAX_LINE_CHARS:
        return value
    return msgspec.json.format(value, indent=2)


def raw_value(explanation: Mapping[str, Any], version: str) -> tuple[bytes, bool] | None:
    """Return the whole value of one version of a key, and whether it is JSON; None if it is not available.

    ``version``: its dot as text. Values that are too long together are not available here; the API returns them.
    """
    for each in explanation["versions"]:
        origin, counter = each["dot"]
        if f"{origin}:{counter}" == version and (text := each["value"]) is not None:
            if isinstance(text, Base64Text):
                return base64.b64decode(b"".join(text).strip(b'"')), False
            return bytes(text), True
    return None


def _version_card(key: str, version: Mapping[str, Any], labels: Mapping[str, str], *, is_winner: bool) -> VersionCard:
    text = version["value"]
    if text is None:
        value, note = (
            "",
            f"Not shown, because the values of this key are too long together: {size(version['value_bytes'])}.",
        )
    else:
        text = text if isinstance(text, Base64Text) else bytes(text)
        value, note = _shortened(text, MAX_VALUE_CHARS, version["value_bytes"])
        value = _indented(value) if not note else value
    origin, counter = version["dot"]
    expires_in_s = version["expires_in_s"]
    return VersionCard(
        written_by=update_name((origin, counter), labels),
        update_query=f"{update_query((origin, counter))}&{urlencode({'key': key})}",
        raw_query=urlencode({"key": key, "version": f"{origin}:{counter}"}),
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
    value = bytes(part["value"])[: 4 * MAX_VALUE_CHARS_IN_LIST].decode("utf-8", "ignore")[:MAX_VALUE_CHARS_IN_LIST]
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
        update_query=update_query(tuple(update["dot"])),
        waits_for_query=update_query(tuple(update["waits_for"])),
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
