"""The naive checker: the definitions, applied to the whole causal order. It shares no code with the fast one."""

from __future__ import annotations

from itertools import product

from tools.history import (
    Operation,
    Report,
    with_ids,
)

STALE = {"WriteCORead", "DeletedRead", "FracturedRead"}


def kinds(report: Report) -> set[str]:
    """Return the patterns of a report; patterns that differ only in the name of the same violation become one."""
    absent = {v.operations for v in report.violations if "finds no value" in v.text}
    found = {
        "missing" if v.operations in absent else "stale" if v.pattern in STALE else v.pattern for v in report.violations
    }
    # The fast checker also reports what it found before it reached a cycle; the naive one reports the cycle only.
    return found & {"CyclicCO", "ThinAirRead"} if "CyclicCO" in found else found


def closure(edges: set[tuple[int, int]], count: int) -> list[list[bool]]:
    reach = [[(a, b) in edges for b in range(count)] for a in range(count)]
    for middle, a in product(range(count), range(count)):
        if reach[a][middle]:
            reach[a] = [x or y for x, y in zip(reach[a], reach[middle], strict=True)]
    return reach


def naive(  # noqa: C901, PLR0912 (one definition)
    history: list[Operation], *, exact: bool = False, served_in_order: bool = False
) -> set[str]:
    """Find the same violations by the definitions alone, over the closure of co. Cubic time."""
    ops = [op for op in with_ids(history) if op.status != "failed"]
    count = len(ops)
    names = {op.id: i for i, op in enumerate(ops)}
    read = [tuple(pair for pair in op.reads + op.siblings if pair[1] is not None) for op in ops]
    read = [pairs if op.status != "unknown" else () for op, pairs in zip(ops, read, strict=True)]
    writer = {pair: i for i, op in enumerate(ops) for pair in op.writes if pair[1] is not None}
    found = {"ThinAirRead" for pairs in read for pair in pairs if pair not in writer}
    co = {(writer[pair], i) for i, pairs in enumerate(read) for pair in pairs if pair in writer}
    served = set()
    for i, j in product(range(count), range(count)):
        a, b = ops[i], ops[j]
        if i < j and a.session == b.session and a.status != "unknown":
            co.add((i, j))
        if i < j and a.replica is not None and a.replica == b.replica and "unknown" not in (a.status, b.status):
            served.add((i, j))
    for j, b in enumerate(ops):
        for name in b.after:
            i = names[name]
            if ops[i].status != "unknown":
                co.add((i, j))
            co |= {(k, j) for k in range(i) if ops[k].session == ops[i].session and ops[k].status != "unknown"}
    everything = closure(co | (served if served_in_order else set()), count)
    if any(everything[i][i] for i in range(count)):
        return found | {"CyclicCO"}
    before = closure(co, count)
    # What the reader, or its replica, has applied: the pasts of all operations that the replica served before.
    visible = [set[int]() for _ in ops]
    for r in range(count):
        at = {r} | ({i for i, j in served if j == r} if served_in_order else set())
        visible[r] = {w for w in range(count) for i in at if before[w][i] or (w == i and i != r)}

    def follows(removal: int, read: int) -> bool:
        return removal == read or before[read][removal]

    def removable(w: int, key: str, r: int) -> bool:
        if exact and ops[w].update is not None:
            if ops[w].expiring:
                return True
            nexts = [
                u for u in range(count) if (key, ops[w].update) in ops[u].replaces and not follows(u, r) and u != w
            ]
            return any((key, None) in ops[u].writes or removable(u, key, r) for u in nexts)
        for d, op in enumerate(ops):
            removes = any(k == key and (v is None or op.expiring) for k, v in op.writes)
            if removes and (d == w or not (before[d][w] or follows(d, r))):
                return True
        return False

    conflicts = set()
    for r, op in enumerate(ops):
        if op.status == "unknown":
            continue
        winners = len(op.reads)
        for index, (key, value) in enumerate(op.reads + op.siblings):
            source = writer.get((key, value)) if value is not None else None
            if value is not None and (source is None or ops[source].status == "lost"):
                continue
            stale = {
                w
                for w in visible[r]
                if source is not None and w != source and ops[w].status != "lost" and key in dict(ops[w].writes)
                if before[source][w] or (exact and (key, ops[source].update) in ops[w].replaces)
            }
            # An expiring version may have expired before the later write, which then did not replace it.
            replaced = {w for w in stale if exact and (key, ops[source or 0].update) in ops[w].replaces}
            if replaced or (stale and not ops[source or 0].expiring):
                found.add("stale")
            for w in visible[r]:
                if w == source or ops[w].status == "lost" or key not in dict(ops[w].writes):
                    continue
                deletes = (key, None) in ops[w].writes
                if source is None:
                    if not deletes and not removable(w, key, r):
                        found.add("missing")
                elif index < winners and not (stale or deletes or before[w][source] or removable(w, key, r)):
                    conflicts.add((w, source))
    order = closure(co | conflicts, count)
    if any(order[i][i] for i in range(count)):
        found.add("CyclicCF")
    return found
