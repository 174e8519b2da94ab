"""Builders of operations, and hand-written histories: legal ones, and one for each pattern."""

from __future__ import annotations

import msgspec

from tools.history import (
    Operation,
    Value,
    check,
)

Pairs = dict[str, Value | None]


def put(session: str, **writes: Value | None) -> Operation:
    return Operation(session, "put", writes=tuple(writes.items()))


def get(session: str, **reads: Value | None) -> Operation:
    return Operation(session, "get", reads=tuple(reads.items()))


def delete(session: str, key: str) -> Operation:
    return Operation(session, "delete", writes=((key, None),))


def changed(operation: Operation, **changes: object) -> Operation:
    return msgspec.structs.replace(operation, **changes)


def patterns(history: list[Operation], **flags: bool) -> list[str]:
    return [violation.pattern for violation in check(history, **flags).violations]


# Hand-written histories. The name of each says what happens in it.

CLEAN = {
    "nothing at all": [],
    "a key without a write is absent": [get("a", x=None)],
    "the session of a write and another session read it": [put("a", x="1"), get("a", x="1"), get("b", x="1")],
    "a session may miss a concurrent write": [put("a", x="1"), get("b", x=None)],
    "a session may read an old value if the new one is not in its causal past": [
        put("a", x="1"),
        put("a", x="2"),
        get("b", x="1"),
    ],
    "two readers of two concurrent writes each see one of them": [
        put("a", x="1"),
        put("b", x="2"),
        get("c", x="1"),
        get("d", x="2"),
    ],
    "readers of both agree on the winner": [
        put("a", x="1"),
        put("b", x="2"),
        get("c", x="1"),
        get("c", x="2"),
        get("d", x="1"),
        get("d", x="2"),
        get("d", x="2"),
    ],
    "deleted, then absent": [put("a", x="1"), delete("a", "x"), get("a", x=None)],
    "absent because of a delete that is not in the reader's causal past": [
        put("a", x="1"),
        delete("b", "x"),
        get("a", x=None),
    ],
    "a write survives a concurrent delete": [
        put("a", x="1"),
        get("b", x="1"),
        delete("b", "x"),
        put("a", x="2"),
        get("b", x="2"),
    ],
    "after a delete of the winner the older sibling is visible": [
        put("a", x="1"),
        put("b", x="2"),
        get("c", x="1"),
        get("c", x="2"),
        get("d", x="2"),
        delete("e", "x"),
        get("d", x="1"),
    ],
    "expired": [changed(put("a", x="1"), expiring=True), get("a", x=None)],
    "clocks differ: the value is expired at one replica and not at another": [
        changed(put("a", x="1"), expiring=True),
        get("b", x="1"),
        get("b", x=None),
        get("b", x="1"),
    ],
    "a write replaces an expiring one in the reader's causal past": [
        changed(put("a", x="1"), expiring=True),
        put("a", x="2"),
        get("a", x="2"),
    ],
    "an expiring version beside a later write, at whose replica it had expired already": [
        changed(put("a", x="1"), expiring=True),
        put("a", x="2"),
        changed(get("b", x="2"), siblings=(("x", "1"),)),
    ],
    "a write that timed out may have happened": [
        changed(put("a", x="1"), status="unknown"),
        get("b", x="1"),
        get("a", x=None),
        get("a", x="1"),
    ],
    "a write that timed out may not have happened": [
        put("a", x="1"),
        changed(put("a", x="2"), status="unknown"),
        get("a", x="1"),
    ],
    "a delete that timed out may have happened late": [
        put("a", x="1"),
        changed(delete("a", "x"), status="unknown"),
        get("a", x="1"),
        get("a", x=None),
    ],
    "a transaction reads before it writes": [
        put("a", x="1"),
        Operation("a", "txn", reads=(("x", "1"), ("y", None)), writes=(("x", "2"), ("y", "2"))),
        get("a", x="2", y="2"),
    ],
    "one value of a transaction was replaced": [
        put("a", x="1", y="1"),
        get("b", x="1"),
        put("b", y="2"),
        get("c", x="1", y="2"),
    ],
    "a read returns all siblings": [
        put("a", x="1"),
        put("b", x="2"),
        changed(get("c", x="2"), siblings=(("x", "1"),)),
        get("c", x="2"),
    ],
    "a lost write disappears, and the value that it replaced is back": [
        put("a", x="1"),
        changed(put("a", x="2"), status="lost"),
        get("b", x="2"),
        get("b", x="1"),
        get("a", x="1"),
    ],
    "a rejected write did not happen": [changed(put("a", x="1"), status="failed"), get("a", x=None)],
}

VIOLATING = {
    "a value is read before its write, across sessions": (
        "CyclicCO",
        [get("a", x="1"), put("a", y="1"), get("b", y="1"), put("b", x="1")],
    ),
    "a transaction that reads its own write": (
        "CyclicCO",
        [Operation("a", "txn", reads=(("x", "1"),), writes=(("x", "1"),))],
    ),
    "a value that nobody wrote": ("ThinAirRead", [put("a", x="1"), get("a", x="2")]),
    "the value of a rejected write": ("ThinAirRead", [changed(put("a", x="1"), status="failed"), get("b", x="1")]),
    "a version that another operation wrote": (
        "ThinAirRead",
        [
            changed(put("a", x="1"), update="r:1"),
            changed(put("a", x="2"), update="r:2"),
            changed(get("b", x="1"), versions=("r:2",)),
        ],
    ),
    "a session does not read its own write": ("WriteCORead", [put("a", x="1"), put("a", x="2"), get("a", x="1")]),
    "reads are not monotonic": (
        "WriteCORead",
        [put("a", x="1"), put("a", x="2"), get("b", x="2"), get("b", x="1")],
    ),
    "a read misses the cause of an earlier read": (
        "WriteCORead",
        [put("a", x="1"), put("a", x="2"), put("a", y="1"), get("b", y="1"), put("b", z="1"), get("c", z="1", x="1")],
    ),
    "a read misses a write in metadata that was handed over": (
        "WriteCORead",
        [put("a", x="1"), put("a", x="2"), changed(get("b", x="1"), after=("a#1",))],
    ),
    "a read returns a sibling that was replaced": (
        "WriteCORead",
        [put("a", x="1"), put("a", x="2"), put("b", x="3"), changed(get("a", x="3"), siblings=(("x", "1"),))],
    ),
    "the photo is missing from the album": (
        "WriteCOInitRead",
        [put("a", x="1"), put("a", y="1"), get("b", y="1"), get("b", x=None)],
    ),
    "a delete that precedes the write excuses nothing": (
        "WriteCOInitRead",
        [put("a", x="1"), delete("a", "x"), put("a", x="2"), get("a", x=None)],
    ),
    "a delete that follows the read excuses nothing": (
        "WriteCOInitRead",
        [put("a", x="1"), get("a", x=None), delete("a", "x")],
    ),
    "a deleted value reappears": ("DeletedRead", [put("a", x="1"), delete("a", "x"), get("a", x="1")]),
    "a value that another session deleted reappears": (
        "DeletedRead",
        [put("a", x="1"), get("b", x="1"), delete("b", "x"), put("b", y="1"), get("c", y="1"), get("c", x="1")],
    ),
    "half a transaction": ("FracturedRead", [put("a", x="1", y="1"), get("b", x="1", y=None)]),
    "half a transaction, and an older value of the other key": (
        "FracturedRead",
        [put("a", x="1", y="1"), put("a", x="2", y="2"), get("b", x="2", y="1")],
    ),
    "a listing returns an effect without its cause": (
        "WriteCORead",
        [put("a", x="1"), put("a", x="2"), put("a", y="1"), get("b", x="1", y="1")],
    ),
    "two readers know both writes and return different winners": (
        "CyclicCF",
        [put("a", x="1"), put("b", x="2"), get("c", x="1"), get("c", x="2"), get("d", x="2"), get("d", x="1")],
    ),
    "the winner changes back": (
        "CyclicCF",
        [put("a", x="1"), put("b", x="2"), get("c", x="1"), get("c", x="2"), get("c", x="1")],
    ),
    "two transactions win one key each": (
        "CyclicCF",
        [put("a", x="1", y="1"), put("b", x="2", y="2"), get("c", x="1", y="2")],
    ),
    "v2 replaces v1, v3 loses to v1 and wins against v2 (a clock that went back)": (
        "CyclicCF",
        [
            put("a", x="1"),
            put("b", x="3"),
            get("c", x="3"),
            get("c", x="1"),
            get("d", x="1"),
            put("d", x="2"),
            get("d", x="3"),
        ],
    ),
    "a delete that precedes both writes does not explain a change of the winner": (
        "CyclicCF",
        [
            put("o", x="0"),
            delete("o", "x"),
            changed(put("a", x="1"), after=("o#1",)),
            changed(put("b", x="2"), after=("o#1",)),
            get("c", x="1"),
            get("c", x="2"),
            get("c", x="1"),
        ],
    ),
    "two updates with one dot": (
        "DotReuse",
        [changed(put("a", x="1"), update="r:1"), changed(put("b", y="1"), update="r:1")],
    ),
}
