"""The inspector: a list of keys by size or age is bounded, and does not keep the lock."""

from __future__ import annotations

import pytest

from kvsite.config import Config
from kvsite.server import build
from replication import inspector as inspector_module
from replication.explain import rank_keys
from replication.inspector import NodeInspector
from store.engine import read_clocks
from store.versions import Change


@pytest.fixture
def inspector() -> NodeInspector:
    """The inspector of a replica with 25 keys, of which the last by name is the largest."""
    made = build(Config(), pytest.fail).node.inspector
    for n in range(25):
        made._replica.store.put(Change(f"k/{n:02}", b"1" * (n + 1)), {}, read_clocks())
    return made


def test_the_largest_keys_come_first(inspector: NodeInspector) -> None:
    found, is_whole = inspector.ranked_keys("k/", "largest", 3, conflicts=False)
    assert ([each["key"] for each in found], is_whole) == (["k/24", "k/23", "k/22"], True)


def test_only_so_many_keys_are_looked_at_and_the_lock_is_released_in_between(
    inspector: NodeInspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector_module, "MAX_RANKED", 20)
    monkeypatch.setattr(inspector_module, "RANKED_AT_ONCE", 5)
    pieces = []
    rank = rank_keys

    def rank_and_count(*args: object, **options: object) -> object:
        found = rank(*args, **options)  # type: ignore[arg-type]  # any arguments
        pieces.append(len(found[0]))
        return found

    monkeypatch.setattr(inspector_module, "rank_keys", rank_and_count)
    found, is_whole = inspector.ranked_keys("k/", "largest", 1, conflicts=False)
    assert ([each["key"] for each in found], is_whole) == (["k/19"], False)
    assert pieces == [5] * 4


def test_an_explanation_says_in_words_what_became_of_a_key(inspector: NodeInspector) -> None:
    assert inspector.explain("k/03")["note"] == ""
    inspector._replica.store.put(Change("k/03", None), {}, read_clocks())
    assert inspector.explain("k/03")["note"].endswith(" deleted this key.")
