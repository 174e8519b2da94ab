"""Updates for tests: Hypothesis strategies for all that fits the wire form, and a reader for the log."""

from __future__ import annotations

from hypothesis import strategies as st

from store.clock import MAX_COUNTER
from store.log import UpdateLog
from store.versions import Update, Version, Write, decode_update

texts = st.text(min_size=1, max_size=8)
counters = st.integers(1, MAX_COUNTER - 1)
timestamps = st.integers(0, 2**62 - 1)
clocks = st.dictionaries(texts, counters, max_size=3)
deadlines = st.one_of(st.none(), timestamps)
writes = st.builds(
    Write,
    st.text(max_size=8),
    st.one_of(st.none(), st.binary(max_size=20)),
    st.lists(st.tuples(texts, counters), max_size=2).map(tuple),
    deadlines,
)
updates = st.builds(Update, texts, counters, timestamps, clocks, st.lists(writes, max_size=3).map(tuple))
versions = st.builds(Version, st.binary(max_size=20), texts, counters, timestamps, clocks, deadlines)


def logged_updates(log: UpdateLog, origin: str) -> list[Update]:
    """Return all updates of ``origin`` in the log, the oldest first."""
    origin_log = log._origins.get(origin)
    return [decode_update(entry.encoded) for entry in origin_log.entries_from(origin_log.first)] if origin_log else []
