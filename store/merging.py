"""Values that merge: counters, sets and maps (contract 2.10).

Each write of such a value stores its whole *state*. Versions that do not know of each other are joined when they are
read, and the next PATCH replaces them by their join. Joins are commutative, associative and idempotent, so all replicas
that hold the same versions show the same value. How updates travel, and which versions a write replaces, is the same as
for plain values (store/versions.py).

A state has two parts:

* **Entries** say which writes of the key the state contains. An entry is a range of counters of one origin, from
  ``birth`` to ``last``. Only its origin ever extends it. So of two entries with the same origin and birth, the one with
  the higher ``last`` contains the other. In a counter each entry has the net amount of its writes, ``net``.
* **Items**, of sets and maps, are the elements or fields, each with the dots of the writes that added it. A join keeps
  a dot if both states have it, or if the other state's entries do not contain it. If they do, the other side has seen
  the dot and removed it. So a concurrent add wins over a remove.

**Why entries have a birth.** A delete may remove a state with an origin's latest entry, while a concurrent PATCH keeps
an older form of it. If the origin extended the older form, two different entries would have the same name. So an origin
extends an entry only if it is known to be its latest; otherwise it begins a new one (``Tips``). It also begins one if
the net amount would not be a 64-bit integer, which is what the stored form takes. If these become too many, the next
one takes their place: a join drops the entries of an origin below its ``floor``.

**Folding.** Every start of a replica is a new origin, and a counter would get a new entry each time. So entries of
ended origins are folded into one, in two steps. First a PATCH *marks* them: they get its dot as ``fold``. When every
member has applied a version with the mark, and this replica has applied what they had then (``is_settled``), and holds
no other version of the key, a PATCH replaces the marked entries by one *base*, named by the mark, with their sum. A
join drops entries whose mark names a base that it contains. That is exact: each member has applied the same updates of
the key, deletes included, so it holds the marked version and no other. Whatever it writes afterwards has all of the
marked entries, with the mark, or the base, or begins anew after a delete. Entries of ended origins in sets and maps
need no base. They are dropped in one step, once no dot of theirs is left.

Sources: Shapiro et al. 2011 (state-based counters and sets); Bieniusa et al. 2012 (observed-remove sets without
tombstones); Almeida, Baquero 2019 (why counters need entries for each origin).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from store.clock import MAX_COUNTER, Dot

MergingKind = Literal["counter", "set", "map"]

Element = str | int | float
"""An element of a set. A float that is a whole number up to ``MAX_UINT`` is an int (``element_of``)."""

MAX_ITEMS: Final = 10_000
"""Most elements of a set, or fields of a map, after a PATCH that adds some."""

MAX_OWN_ENTRIES: Final = 8
"""Most entries of one origin in a state (see "Why entries have a birth")."""

MAX_TIPS: Final = 10_000
"""Keys whose latest own entry a replica remembers."""

MIN_INT, MAX_INT = -(2**63), 2**63 - 1

MAX_UINT: Final = 2**64 - 1
"""Highest whole number in JSON values, elements of sets included."""


class MergeError(Exception):
    """A PATCH that cannot be applied: it would make a sum too large."""


class TooManyItems(MergeError):
    """A PATCH that would give a value more than ``MAX_ITEMS`` items."""


class EntryName(NamedTuple):
    """``birth``: own counter of the origin's first write in the entry. A base has the dot of its mark as name."""

    origin: str
    birth: int
    is_base: bool = False


class Entry(NamedTuple):
    """``last``: own counter of the origin's latest write in it. ``net``: sum of its increments. ``fold``: its mark."""

    last: int
    net: int = 0
    fold: Dot | None = None


class Field(NamedTuple):
    """What one write set a field of a map to: its hybrid time in microseconds, and the value as JSON."""

    timestamp: int
    value: bytes


Item = Mapping[Dot, Field | None]
"""The dots of the writes that added an element (None), or set a field. Never changed: elements share equal ones."""


NO_DOTS: Final[Item] = {}


@dataclass(slots=True)
class State:
    """The state of a value that merges. Operations return new states.

    ``floors``: origin -> counter below which its entries are contained in a later one.
    ``renewed``: when, in hybrid time, and by whom the time to live was last changed; None: never.
    """

    kind: MergingKind
    entries: dict[EntryName, Entry] = field(default_factory=dict)
    items: dict[Element, Item] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    renewed: tuple[int, str] | None = None

    def contains(self, dot: Dot) -> bool:
        """Return whether the state contains the write ``dot``, even if nothing of it is left."""
        origin, counter = dot
        if counter < self.floors.get(origin, 0):
            return True
        return any(
            name.origin == origin and not name.is_base and name.birth <= counter <= entry.last
            for name, entry in self.entries.items()
        )

    def total(self) -> int:
        """Return the sum of a counter."""
        return sum(entry.net for entry in self.entries.values())


# -- joining -----------------------------------------------------------------------------------------------------------


def join(states: Iterable[State]) -> State:
    """Return the join of states of one kind."""
    return reduce(_join, states)


def _join(one: State, other: State) -> State:
    floors = _highest(one.floors, other.floors)
    entries: dict[EntryName, Entry] = dict(one.entries)
    for name, entry in other.entries.items():
        mine = entries.get(name)
        entries[name] = entry if mine is None else max(mine, entry, key=_entry_order)
    items = one.items
    if one.items or other.items:
        items = _join_items(one, other)
    renewed = max((stamp for stamp in (one.renewed, other.renewed) if stamp is not None), default=None)
    return State(one.kind, _without_folded(entries, floors), items, floors, renewed)


def _entry_order(entry: Entry) -> tuple[int, Dot]:
    return (entry.last, entry.fold or ("", 0))


def _highest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {origin: max(one.get(origin, 0), other.get(origin, 0)) for origin in one.keys() | other.keys()}


def _without_folded(entries: dict[EntryName, Entry], floors: Mapping[str, int]) -> dict[EntryName, Entry]:
    """Drop the entries that are below the floor of their origin, or whose mark names a base."""
    bases = {(name.origin, name.birth) for name in entries if name.is_base}
    if not bases and not floors:
        return entries
    return {
        name: entry
        for name, entry in entries.items()
        if entry.fold not in bases and (name.is_base or name.birth >= floors.get(name.origin, 0))
    }


def _join_items(one: State, other: State) -> dict[Element, Item]:
    is_in_one, is_in_other = _contained(one), _contained(other)
    items: dict[Element, Item] = {}
    for element, mine in one.items.items():
        theirs = other.items.get(element, NO_DOTS)
        if mine is theirs or mine == theirs:
            items[element] = mine
            continue
        dots = {dot: what for dot, what in mine.items() if dot in theirs or not is_in_other(dot)}
        dots |= {dot: what for dot, what in theirs.items() if dot in mine or not is_in_one(dot)}
        if dots:
            items[element] = mine if dots == mine else dots
    for element, theirs in other.items.items():
        if element not in one.items:
            dots = {dot: what for dot, what in theirs.items() if not is_in_one(dot)}
            if dots:
                items[element] = theirs if len(dots) == len(theirs) else dots
    return items


def _contained(state: State) -> Callable[[Dot], bool]:
    """Return ``state.contains``, in constant time for each dot."""
    known: dict[Dot, bool] = {}

    def contains(dot: Dot) -> bool:
        is_known = known.get(dot)
        if is_known is None:
            is_known = known[dot] = state.contains(dot)
        return is_known

    return contains


# -- operations --------------------------------------------------------------------------------------------------------


class Increment(NamedTuple):
    """Add ``amount``, which may be negative, to a counter."""

    amount: int


class SetChange(NamedTuple):
    """Add elements to a set and remove elements from it."""

    add: tuple[Element, ...] = ()
    remove: tuple[Element, ...] = ()


class MapChange(NamedTuple):
    """Set fields of a map, to values as JSON, and unset fields."""

    set: tuple[tuple[str, bytes], ...] = ()
    unset: tuple[str, ...] = ()


Operation = Increment | SetChange | MapChange

KINDS: Final[Mapping[type[Operation], MergingKind]] = {Increment: "counter", SetChange: "set", MapChange: "map"}


def creates(operation: Operation | None) -> bool:
    """Return whether the operation creates an absent key: one that only takes away does not."""
    match operation:
        case Increment():
            return True
        case SetChange(add, _):
            return bool(add)
        case MapChange(fields, _):
            return bool(fields)
    return False


def applied(state: State, operation: Operation | None, dot: Dot, timestamp: int, tip: int | None) -> State:
    """Return the state after a write with this dot and hybrid time. Raises MergeError.

    ``operation`` None: only the time to live changes. ``tip``: own counter of the origin's latest write of the key, as
    far as it is known.
    """
    amount = operation.amount if isinstance(operation, Increment) else 0
    if _excess(state.total() + amount) > _excess(state.total()):
        raise MergeError("The sum of the counter would not be a 64-bit integer")
    entries, floors = _extended(state, dot, tip, amount)
    items = state.items
    if isinstance(operation, SetChange):
        items = dict(items)
        for element in operation.remove:
            items.pop(element, None)
        added: Item = {dot: None}
        items |= dict.fromkeys(operation.add, added)
    elif isinstance(operation, MapChange):
        items = dict(items)
        for name in operation.unset:
            items.pop(name, None)
        items |= {name: {dot: Field(timestamp, value)} for name, value in operation.set}
    if len(items) > max(len(state.items), MAX_ITEMS):
        what = "elements" if state.kind == "set" else "fields"
        raise TooManyItems(f"A {state.kind} has at most {MAX_ITEMS} {what}")
    return State(state.kind, entries, items, floors, state.renewed)


def _is_64_bit(number: int) -> bool:
    return MIN_INT <= number <= MAX_INT


def _excess(total: int) -> int:
    """Return how far a sum is outside 64 bits, where concurrent increments may have brought it."""
    return max(MIN_INT - total, total - MAX_INT, 0)


def _extended(state: State, dot: Dot, tip: int | None, amount: int) -> tuple[dict[EntryName, Entry], dict[str, int]]:
    """Return entries and floors with an entry that contains ``dot``, and ``amount``. Raises MergeError."""
    origin, counter = dot
    own = {name: entry for name, entry in state.entries.items() if name.origin == origin and not name.is_base}
    entries, floors = dict(state.entries), state.floors
    for name, entry in own.items():
        is_latest = entry.last == tip and entry.fold is None
        if is_latest and len(own) <= MAX_OWN_ENTRIES and _is_64_bit(entry.net + amount):
            entries[name] = entry._replace(last=counter, net=entry.net + amount)
            return entries, floors
    net = amount
    if len(own) >= MAX_OWN_ENTRIES:
        replaced, net = _replaceable(own, amount)
        kept = [name.birth for name in own.keys() - replaced]
        entries = {name: entry for name, entry in entries.items() if name not in replaced}
        floors = {**floors, origin: min(kept, default=counter)}
    entries[EntryName(origin, counter)] = Entry(counter, net)
    return entries, floors


def _replaceable(own: Mapping[EntryName, Entry], amount: int) -> tuple[set[EntryName], int]:
    """Return the entries, the oldest first, that one entry can replace, and its net amount. Raises MergeError.

    All of them, if that amount is a 64-bit integer; else as many as possible. If ``amount`` is 0, or of another sign
    than the oldest entry, at least that one can be replaced.
    """
    names = sorted(own)
    for count in range(len(names), 0, -1):
        net = amount + sum(own[name].net for name in names[:count])
        if _is_64_bit(net):
            return set(names[:count]), net
    raise MergeError("This replica cannot add so much to the counter: send less, or send it to another replica")


# -- folding -----------------------------------------------------------------------------------------------------------


def folded(state: State, mark: Dot, has_ended: Callable[[str], bool], is_settled: Callable[[], bool]) -> State:
    """Return the state with less about ended origins (see "Folding" in the module).

    ``mark``: the dot of the write that stores the state. ``is_settled``: whether the state is that of the only version
    here, and settled; called only if the answer matters.
    """
    if not any(name.is_base or has_ended(name.origin) for name in state.entries):
        return state
    if state.kind == "counter":
        return _with_marks(_with_bases(state, is_settled), mark, has_ended)
    dots = {dot[0] for item in state.items.values() for dot in item}
    gone = {name.origin for name in state.entries if name.origin not in dots and has_ended(name.origin)}
    if not gone or not is_settled():
        return state
    entries = {name: entry for name, entry in state.entries.items() if name.origin not in gone}
    floors = {origin: floor for origin, floor in state.floors.items() if origin not in gone}
    return State(state.kind, entries, state.items, floors, state.renewed)


def _with_bases(state: State, is_settled: Callable[[], bool]) -> State:
    """Replace marked entries by bases, if the state is settled. Those of a mark stay if their sum is beyond 64 bits."""
    all_sums: dict[Dot, int] = {}
    for entry in state.entries.values():
        if entry.fold is not None:
            all_sums[entry.fold] = all_sums.get(entry.fold, 0) + entry.net
    sums = {mark: net for mark, net in all_sums.items() if _is_64_bit(net)}
    if not sums or not is_settled():
        return state
    entries = {name: entry for name, entry in state.entries.items() if entry.fold not in sums}
    entries |= {EntryName(*dot, is_base=True): Entry(dot[1], net) for dot, net in sums.items()}
    named = {name.origin for name in entries}
    floors = {origin: floor for origin, floor in state.floors.items() if origin in named}
    return State(state.kind, entries, state.items, floors, state.renewed)


def _with_marks(state: State, mark: Dot, has_ended: Callable[[str], bool]) -> State:
    """Mark the entries of ended origins and the bases, if there are several that become one."""
    foldable = [
        name for name, entry in state.entries.items() if entry.fold is None and (name.is_base or has_ended(name.origin))
    ]
    if not foldable or (all(name.is_base for name in foldable) and len(foldable) == 1):
        return state
    entries = dict(state.entries)
    for name in foldable:
        entries[name] = entries[name]._replace(fold=mark)
    return State(state.kind, entries, state.items, state.floors, state.renewed)


# -- what clients see --------------------------------------------------------------------------------------------------


def element_of(value: str | float) -> Element:
    """Return the element for a JSON string or number: 1 and 1.0 are one element."""
    if isinstance(value, float) and value.is_integer() and MIN_INT <= value <= MAX_UINT:
        return int(value)
    return value


def value_of(state: State) -> Any:
    """Return the value as clients see it; fields of maps as ``msgspec.Raw``."""
    if state.kind == "counter":
        return state.total()
    if state.kind == "set":
        texts = [each for each in state.items if isinstance(each, str)]
        return sorted(each for each in state.items if not isinstance(each, str)) + sorted(texts)
    return {name: msgspec.Raw(_winner(item).value) for name, item in sorted(state.items.items(), key=_by_name)}


def _by_name(pair: tuple[Element, Item]) -> str:
    return str(pair[0])


def _winner(item: Item) -> Field:
    """Return the latest of the concurrent values of a field."""
    latest = max(item, key=lambda dot: (item[dot].timestamp, dot))  # type: ignore[union-attr]
    found = item[latest]
    assert found is not None
    return found


# -- stored form -------------------------------------------------------------------------------------------------------

_Counter = Annotated[int, msgspec.Meta(ge=0, lt=MAX_COUNTER)]
_Index = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Time = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
_Origin = Annotated[str, msgspec.Meta(min_length=1, max_length=320)]


class _StoredItems(msgspec.Struct, array_like=True, gc=False):
    """All elements that one write added, or all fields that it set; of fields, the values in the same order."""

    origin: _Index
    counter: _Counter
    names: list[Element]
    timestamp: _Time = 0
    values: list[bytes] | None = None


_Fold = tuple[_Index, _Counter]
_Net = Annotated[int, msgspec.Meta(ge=MIN_INT, le=MAX_INT)]
_StoredEntry = tuple[_Index, _Counter, _Counter, _Net, bool, _Fold | None]
"""Origin, birth, last, net, whether it is a base, and its mark."""


class _StoredState(msgspec.Struct, array_like=True, gc=False):
    """A state on the wire. Origins are named by their index in ``origins``."""

    origins: list[_Origin]
    entries: list[_StoredEntry]
    items: list[_StoredItems] = []
    floors: list[tuple[_Index, _Counter]] = []
    renewed: tuple[_Time, _Index] | None = None


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(_StoredState)


def encode(state: State) -> bytes:
    """Return the state as bytes."""
    origins: dict[str, int] = {}

    def index(origin: str) -> int:
        return origins.setdefault(origin, len(origins))

    entries = [
        (
            index(name.origin),
            name.birth,
            entry.last,
            entry.net,
            name.is_base,
            None if entry.fold is None else (index(entry.fold[0]), entry.fold[1]),
        )
        for name, entry in state.entries.items()
    ]
    by_dot: dict[Dot, tuple[list[Element], list[Field]]] = {}
    for element, item in state.items.items():
        for dot, what in item.items():
            names, fields = by_dot.get(dot) or by_dot.setdefault(dot, ([], []))
            names.append(element)
            if what is not None:
                fields.append(what)
    items = [_stored_items(index(dot[0]), dot[1], *added) for dot, added in by_dot.items()]
    floors = [(index(origin), floor) for origin, floor in state.floors.items()]
    renewed = None if state.renewed is None else (state.renewed[0], index(state.renewed[1]))
    return _encode((list(origins), entries, items, floors, renewed))


def _stored_items(origin: int, counter: int, names: list[Element], fields: list[Field]) -> tuple[Any, ...]:
    if not fields:
        return (origin, counter, names)
    return (origin, counter, names, fields[0].timestamp, [each.value for each in fields])


def decode(kind: MergingKind, encoded: bytes | memoryview) -> State:
    """Return the encoded state. Raises ValueError if the bytes are no state of this kind."""
    try:
        stored = _decoder.decode(encoded)
        names = stored.origins
        entries = {
            EntryName(names[origin], birth, is_base): Entry(
                last, net, None if fold is None else (names[fold[0]], fold[1])
            )
            for origin, birth, last, net, is_base, fold in stored.entries
        }
        items: dict[Element, Item] = {}
        for added in stored.items:
            _add_items(kind, items, (names[added.origin], added.counter), added)
        floors = {names[i]: floor for i, floor in stored.floors}
        renewed = None if stored.renewed is None else (stored.renewed[0], names[stored.renewed[1]])
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError(f"no state of a {kind}: {exc}") from None
    return State(kind, entries, items, floors, renewed)


def _add_items(kind: MergingKind, items: dict[Element, Item], dot: Dot, added: _StoredItems) -> None:
    """Add what one write added. Raises ValueError if a value of this kind cannot have it."""
    values = added.values
    if kind == "counter" or (values is None) is not (kind == "set"):
        raise ValueError(f"no state of a {kind}: it has items of another kind")
    if values is None:
        shared: Item = {dot: None}
        for element in added.names:
            items[element] = shared if element not in items else {**items[element], dot: None}
        return
    if len(values) != len(added.names) or not all(isinstance(name, str) for name in added.names):
        raise ValueError("no state of a map: its fields have no names or no values")
    for name, value in zip(added.names, values, strict=True):
        what = Field(added.timestamp, _checked_json(value))
        items[name] = {dot: what} if name not in items else {**items[name], dot: what}


_ANY_JSON: Final = msgspec.json.Decoder(msgspec.Raw)


def _checked_json(value: bytes) -> bytes:
    """Return ``value``. Raises msgspec.DecodeError unless it is JSON: it becomes a part of responses."""
    _ANY_JSON.decode(value)
    return value


# -- what a replica remembers ------------------------------------------------------------------------------------------


class Tips:
    """Key -> own counter of this replica's latest write of a value that merges, for the latest ``MAX_TIPS`` keys."""

    __slots__ = ("_tips",)

    def __init__(self) -> None:
        self._tips: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tips)

    def get(self, key: str) -> int | None:
        """Return the counter, None if it is unknown."""
        return self._tips.get(key)

    def set(self, key: str, counter: int) -> None:
        """Remember a write of ``key``; forget the key that was not written for the longest time."""
        self._tips[key] = counter
        self._tips.move_to_end(key)
        if len(self._tips) > MAX_TIPS:
            self._tips.popitem(last=False)
