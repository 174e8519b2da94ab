"""The key table, compared with a dictionary: lookups, order, conflicts, expiry, bytes."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from store.table import KEY_COST_BYTES, MAX_STALE_DEADLINES, VERSION_COST_BYTES, KeyRange, KeyTable, cost
from store.versions import Version, Versions

keys = st.one_of(
    st.sampled_from(["a", "ab", "abc", "b", "é", "\U0001f600", "a\uffff"]), st.text(min_size=1, max_size=3)
)


class Tables(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = KeyTable()
        self.model: dict[str, Versions] = {}
        self.counter = 0
        self.wall_us = 0

    def version(self, value: bytes, expires_in: int | None, origin: str) -> Version:
        self.counter += 1
        expires = None if expires_in is None else self.wall_us + expires_in
        return Version(value, origin, self.counter, self.counter, {}, expires)

    @rule(
        key=keys,
        drawn=st.lists(st.tuples(st.binary(max_size=9), st.one_of(st.none(), st.integers(1, 9))), max_size=3),
        keep=st.booleans(),
    )
    def set(self, key: str, drawn: list[tuple[bytes, int | None]], keep: bool) -> None:
        """Set some new versions of a key, and perhaps keep the present ones."""
        new = [self.version(value, expires, f"r{number}") for number, (value, expires) in enumerate(drawn)]
        versions = (*reversed(new), *(self.model.get(key, ()) if keep else ()))
        self.table.set(key, versions)
        self.model.pop(key, None)
        if versions:
            self.model[key] = versions

    @rule(later=st.integers(0, 5))
    def expire(self, later: int) -> None:
        self.wall_us += later
        expired = {version.dot for _, version in self.table.expire(self.wall_us)}
        expected = set()
        for key, versions in list(self.model.items()):
            kept = tuple(v for v in versions if v.expires is None or v.expires > self.wall_us)
            expected |= {version.dot for version in versions if version not in kept}
            self.model.pop(key)
            if kept:
                self.model[key] = kept
        assert expired == expected
        assert self.table.next_deadline > self.wall_us

    @rule(data=st.dictionaries(keys, st.binary(max_size=9), max_size=4))
    def replace(self, data: dict[str, bytes]) -> None:
        """Replace the table as a snapshot does: some keys stay, others are new."""
        stay = dict(list(self.model.items())[::2])
        self.model = {**stay, **{key: (self.version(value, 3, "r1"),) for key, value in data.items()}}
        self.table.replace(self.model)

    @rule(prefix=st.just("") | keys, after=st.just("") | keys, end=st.just("") | keys, reverse=st.booleans())
    def list_keys(self, prefix: str, after: str, end: str, reverse: bool) -> None:
        wanted = KeyRange(prefix, after, end, reverse)
        expected = [key for key in sorted(self.model) if key.startswith(prefix) and (not end or key < end)]
        assert self.table.count(KeyRange(prefix, end=end)) == len(expected)
        expected = [key for key in expected if not after or (key < after if reverse else key > after)]
        expected = expected[::-1] if reverse else expected
        assert list(self.table.keys(wanted)) == expected
        assert self.table.count(wanted) == len(expected)
        conflicting = [key for key in expected if len(self.model[key]) > 1]
        assert list(self.table.conflicting_keys(wanted)) == conflicting

    @invariant()
    def table_equals_the_dictionary(self) -> None:
        assert self.table.copy() == self.model
        assert len(self.table) == len(self.model)
        assert list(self.table.keys(KeyRange())) == sorted(self.model)
        assert self.table.conflicts == sum(len(versions) > 1 for versions in self.model.values())
        assert self.table.bytes == sum(cost(key, versions) for key, versions in self.model.items())
        assert self.table.get("absent key") == ()

    @invariant()
    def next_deadline_is_not_after_any_deadline(self) -> None:
        deadlines = [v.expires for versions in self.model.values() for v in versions if v.expires is not None]
        assert self.table.next_deadline <= min(deadlines, default=float("inf"))


TestTables = Tables.TestCase
TestTables.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def version(counter: int, expires: int | None = None, value: bytes = b"1") -> Version:
    return Version(value, "r1", counter, counter, {}, expires)


def test_version_expires_at_its_deadline() -> None:
    table = KeyTable()
    table.set("x", (version(1, 100),))
    assert table.expire(99) == []
    assert [version.dot for _, version in table.expire(100)] == [("r1", 1)]
    assert table.get("x") == ()
    assert table.expire(1000) == []


def test_only_the_version_with_a_passed_deadline_expires() -> None:
    table = KeyTable()
    table.set("x", (version(2), version(1, 100)))
    assert table.conflicts == 1
    table.expire(100)
    assert table.get("x") == (version(2),)
    assert table.conflicts == 0


def test_deadline_of_a_replaced_version_does_not_remove_its_successor() -> None:
    table = KeyTable()
    table.set("x", (version(1, 100),))
    table.set("x", (version(2),))
    assert table.expire(100) == []
    assert table.get("x") == (version(2),)


def test_stale_deadlines_are_bounded() -> None:
    table = KeyTable()
    for counter in range(1, 10 * MAX_STALE_DEADLINES):
        table.set("x", (version(counter, 10**9 + counter),))
    assert len(table._deadlines) <= MAX_STALE_DEADLINES + 3
    assert table.next_deadline <= 10**9 + 10 * MAX_STALE_DEADLINES
    assert len(table.expire(2 * 10**9)) == 1


def test_copy_does_not_change_with_the_table() -> None:
    table = KeyTable()
    table.set("x", (version(1),))
    copy = table.copy()
    table.set("x", (version(2),))
    table.set("y", (version(3),))
    assert copy == {"x": (version(1),)}


def test_cost_of_a_key() -> None:
    assert cost("key", ()) == 0
    assert cost("key", (version(1, value=b"12345"),)) == KEY_COST_BYTES + 3 + VERSION_COST_BYTES + 5
    assert cost("key", (version(1), version(2))) == KEY_COST_BYTES + 3 + 2 * (VERSION_COST_BYTES + 1)


def test_keys_are_listed_in_code_point_order() -> None:
    table = KeyTable()
    for counter, key in enumerate(["b", "a", "é", "B", "a/b", "\U0001f600", "\uffff"], 1):
        table.set(key, (version(counter),))
    assert list(table.keys(KeyRange())) == ["B", "a", "a/b", "b", "é", "\uffff", "\U0001f600"]
    assert list(table.keys(KeyRange("a", "a"))) == ["a/b"]
    assert list(table.keys(KeyRange("a", ""))) == ["a", "a/b"]
    assert list(table.keys(KeyRange("a", "zzz"))) == []
    assert list(table.keys(KeyRange("b", "a"))) == ["b"]
