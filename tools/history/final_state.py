"""The end of a run: whether replicas agree, and whether what they hold is what must be left."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from tools.history.checker import check
from tools.history.operations import Operation, Value, named
from tools.history.report import Report, Violation

FINAL_SESSION = "(final state)"
NO_LIMIT = 1 << 60


def check_convergence(states: Mapping[str, Mapping[str, object]]) -> Report:
    """Compare final states: replica -> key -> anything comparable (value, or all siblings). An absent key is None."""
    report = Report(checked=len(states))
    keys = sorted({key for state in states.values() for key in state})
    for key in keys:
        report.reads += 1
        held: list[tuple[object, list[str]]] = []
        for replica, state in states.items():
            value = state.get(key)
            for other, replicas in held:
                if other == value:
                    replicas.append(replica)
                    break
            else:
                held.append((value, [replica]))
        if len(held) > 1:
            parts = "; ".join(f"{', '.join(replicas)}: {value!r}" for value, replicas in held)
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
    """Ask whether each acknowledged write is in the final state, or replaced, or deleted, as far as clients can know.

    ``final``: key -> its values once all replicas agree, the winner first, or the winner alone; a key that is missing
    is absent. The final state is judged as one more read, by a client that has every session's metadata: a write that
    only an older one is left of is lost, one that no delete excuses too, and so is a winner that others contradict.
    A concurrent write that silently vanished behind a winner needs full knowledge: ``check_survivors``.
    """
    whole = named(operations)
    last = {op.session: op.id for op in whole if op.status in ("ok", "lost")}
    keys = sorted({key for op in whole for key, _ in op.writes} | set(final))
    reads = tuple((key, final[key][0] if final.get(key) else None) for key in keys)
    siblings = tuple((key, value) for key in keys for value in final.get(key, ())[1:])
    end = Operation(FINAL_SESSION, "list", reads=reads, siblings=siblings, id=FINAL_SESSION, after=tuple(last.values()))
    report = check([*whole, end], arbitration=arbitration, exact=exact, limit=NO_LIMIT)
    ours = [found for found in report.violations if FINAL_SESSION in found.operations]
    report.truncated = len(ours) > limit
    report.violations = ours[:limit]
    return report


class Survivor(msgspec.Struct):
    """All that a simulation knows of one update that some replica issued."""

    update: str
    puts: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()
    # (key, update id) of each version that it removed.
    replaces: tuple[tuple[str, str], ...] = ()
    timestamp: int = 0
    replica: str = ""
    expiring: bool = False
    # It died with the last replica that had it.
    lost: bool = False


def check_survivors(
    updates: Iterable[Survivor], final: Mapping[str, Mapping[str, Sequence[str]]], *, limit: int = 20
) -> Report:
    """Compare what each replica holds in the end with what it must hold, by full knowledge.

    ``final``: replica -> key -> update ids of its versions, the winner first. Patterns: LostWrite (it is gone and
    nothing replaced it), Resurrection (it is there although it was replaced or deleted), UnknownVersion, WrongWinner
    (not the highest (timestamp, replica)), ClockOrder (a timestamp not above one that the update replaced: the
    assumption behind CyclicCF). Updates that were lost, and what they replaced, may be there or not; expiring ones too.
    """
    known = {update.update: update for update in updates}
    replaced = {pair for update in known.values() if not update.lost for pair in update.replaces}
    excused = {pair for update in known.values() if update.lost for pair in update.replaces}
    must: dict[str, set[str]] = {}
    for update in known.values():
        for key in update.puts:
            pair = (key, update.update)
            if not update.lost and not update.expiring and pair not in replaced and pair not in excused:
                must.setdefault(key, set()).add(update.update)
    report = Report(checked=len(known))
    found = [*_clock_order(known)]
    for replica, state in final.items():
        for key in sorted(must.keys() | state.keys()):
            report.reads += 1
            held = state.get(key, ())
            found += [
                Violation("LostWrite", f"{replica} lacks {name} of {key!r}, which nothing replaced", (name,), (key,))
                for name in sorted(must.get(key, set()) - set(held))
            ]
            found += _judge_versions(replica, key, held, known, replaced)
    report.truncated = len(found) > limit
    report.violations = found[:limit]
    return report


def _clock_order(known: Mapping[str, Survivor]) -> Iterable[Violation]:
    for update in known.values():
        for key, name in update.replaces:
            other = known.get(name)
            if other is not None and other.timestamp >= update.timestamp:
                text = f"{update.update} replaced {name} of {key!r} but its timestamp {update.timestamp} is not above"
                yield Violation("ClockOrder", f"{text} {other.timestamp}", (name, update.update), (key,))


def _judge_versions(
    replica: str,
    key: str,
    held: Sequence[str],
    known: Mapping[str, Survivor],
    replaced: Collection[tuple[str, str]],
) -> Iterable[Violation]:
    for name in held:
        if name not in known or key not in known[name].puts:
            yield Violation(
                "UnknownVersion", f"{replica} holds {name} of {key!r}, which never wrote it", (name,), (key,)
            )
        elif (key, name) in replaced:
            text = f"{replica} holds {name} of {key!r}, which was replaced or deleted"
            yield Violation("Resurrection", text, (name,), (key,))
    ranked = [(known[name].timestamp, known[name].replica, name) for name in held if name in known]
    if ranked and held[0] in known and max(ranked)[:2] != ranked[0][:2]:
        text = f"{replica} shows {held[0]} of {key!r}, but {max(ranked)[2]} has the higher (timestamp, replica)"
        yield Violation("WrongWinner", text, tuple(held), (key,))
