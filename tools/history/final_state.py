"""Check the final state of a run: that replicas agree, and that no acknowledged write is missing.

Three checks, from outside to inside:

* ``check_convergence`` compares the replicas with each other;
* ``check_durability`` compares the final state with what clients saw;
* ``check_survivors`` compares each replica with a complete record of all updates, as a simulation has it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from tools.history.checker import check
from tools.history.operations import Operation, Value, with_ids
from tools.history.report import Report, Violation

FINAL_SESSION = "(final state)"
NO_LIMIT = 1 << 60


def check_convergence(states: Mapping[str, Mapping[str, object]]) -> Report:
    """Check that all replicas have the same final state; the pattern is Divergence.

    ``states``: replica -> key -> any comparable value, for example the winner or all siblings. A missing key is None.
    """
    report = Report(checked=len(states))
    keys = sorted({key for state in states.values() for key in state})
    for key in keys:
        report.reads += 1
        found: list[tuple[object, list[str]]] = []
        for replica, state in states.items():
            value = state.get(key)
            for other, replicas in found:
                if other == value:
                    replicas.append(replica)
                    break
            else:
                found.append((value, [replica]))
        if len(found) > 1:
            parts = "; ".join(f"{', '.join(replicas)}: {value!r}" for value, replicas in found)
            report.violations.append(Violation("Divergence", f"replicas differ on {key!r}: {parts}", (), (key,)))
    return report


def check_durability(
    operations: Sequence[Operation],
    final: Mapping[str, Sequence[Value]],
    *,
    arbitration: bool = True,
    exact: bool = False,
    limit: int = 20,
) -> Report:
    """Check that each acknowledged write is in the final state, or was replaced or deleted, as far as clients can know.

    ``final``: key -> its values once all replicas agree, either the winner first or the winner alone; a missing key is
    absent. The check adds one read of all keys by a client that has every session's metadata, and reports the
    violations of this read: a write of which only an older version is left, an absent key that no delete excuses, or a
    winner that contradicts other reads. A lost write that was concurrent to the winner is not detected: that needs a
    complete record (``check_survivors``).
    """
    history = with_ids(operations)
    last = {op.session: op.id for op in history if op.status in ("ok", "lost")}
    keys = sorted({key for op in history for key, _ in op.writes} | set(final))
    reads = tuple((key, final[key][0] if final.get(key) else None) for key in keys)
    siblings = tuple((key, value) for key in keys for value in final.get(key, ())[1:])
    end = Operation(FINAL_SESSION, "list", reads=reads, siblings=siblings, id=FINAL_SESSION, after=tuple(last.values()))
    report = check([*history, end], arbitration=arbitration, exact=exact, limit=NO_LIMIT)
    ours = [found for found in report.violations if FINAL_SESSION in found.operations]
    report.truncated = len(ours) > limit
    report.violations = ours[:limit]
    return report


class Survivor(msgspec.Struct):
    """The complete record of one update that some replica issued, as a simulation knows it."""

    # Update id.
    update: str
    # Keys that it writes, and keys that it deletes.
    puts: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()
    # (key, update id) of each version that it removed.
    replaces: tuple[tuple[str, str], ...] = ()
    # The arbitration order is (timestamp, replica).
    timestamp: int = 0
    replica: str = ""
    expiring: bool = False
    # Whether the last replica that had it died.
    lost: bool = False


def check_survivors(
    updates: Iterable[Survivor], final: Mapping[str, Mapping[str, Sequence[str]]], *, limit: int = 20
) -> Report:
    """Compare the versions that each replica has in the end with those that it must have.

    ``final``: replica -> key -> update ids of its versions, the winner first. Patterns:

    * LostWrite: a version is missing although nothing replaced it;
    * Resurrection: a version is present although it was replaced or deleted;
    * UnknownVersion: a version is present that its update did not write;
    * WrongWinner: the winner does not have the highest (timestamp, replica);
    * ClockOrder: an update's timestamp is not above that of a version it replaced, which CyclicCF assumes.

    Lost updates, the versions that they replaced, and expiring updates may be present or missing.
    """
    known = {update.update: update for update in updates}
    replaced = {pair for update in known.values() if not update.lost for pair in update.replaces}
    excused = {pair for update in known.values() if update.lost for pair in update.replaces}
    required: dict[str, set[str]] = {}
    for update in known.values():
        for key in update.puts:
            pair = (key, update.update)
            if not update.lost and not update.expiring and pair not in replaced and pair not in excused:
                required.setdefault(key, set()).add(update.update)
    report = Report(checked=len(known))
    violations = [*_clock_order(known)]
    for replica, state in final.items():
        for key in sorted(required.keys() | state.keys()):
            report.reads += 1
            present = state.get(key, ())
            violations += [
                Violation("LostWrite", f"{replica} lacks {name} of {key!r}, which nothing replaced", (name,), (key,))
                for name in sorted(required.get(key, set()) - set(present))
            ]
            violations += _check_versions(replica, key, present, known, replaced)
    report.truncated = len(violations) > limit
    report.violations = violations[:limit]
    return report


def _clock_order(known: Mapping[str, Survivor]) -> Iterable[Violation]:
    for update in known.values():
        for key, name in update.replaces:
            other = known.get(name)
            if other is not None and other.timestamp >= update.timestamp:
                text = f"{update.update} replaced {name} of {key!r}, but its timestamp {update.timestamp} is not above"
                yield Violation("ClockOrder", f"{text} {other.timestamp}", (name, update.update), (key,))


def _check_versions(
    replica: str,
    key: str,
    present: Sequence[str],
    known: Mapping[str, Survivor],
    replaced: Collection[tuple[str, str]],
) -> Iterable[Violation]:
    for name in present:
        if name not in known or key not in known[name].puts:
            yield Violation(
                "UnknownVersion", f"{replica} has {name} of {key!r}, but {name} did not write it", (name,), (key,)
            )
        elif (key, name) in replaced:
            text = f"{replica} has {name} of {key!r}, which was replaced or deleted"
            yield Violation("Resurrection", text, (name,), (key,))
    ranked = [(known[name].timestamp, known[name].replica, name) for name in present if name in known]
    if ranked and present[0] in known and max(ranked)[:2] != ranked[0][:2]:
        text = f"{replica} returns {present[0]} of {key!r}, but {max(ranked)[2]} has the higher (timestamp, replica)"
        yield Violation("WrongWinner", text, tuple(present), (key,))
