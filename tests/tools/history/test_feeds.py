"""Records of change feeds: a good one passes, and every mutation of it is a violation."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.tools.history.histories import changed, delete, patterns, put
from tools.history import Operation, Value, check, check_durability, check_feeds, dump, load, shrink
from tools.management.commands.check_history import Command

Reads = dict[str, Value | None]


def response(reads: Reads, *, reset: bool = False, more: bool = False, prefix: str = "") -> Operation:
    return Operation("eve", "changes", reads=tuple(reads.items()), reset=reset, more=more, prefix=prefix)


def chained(responses: list[Operation]) -> list[Operation]:
    """Return the responses with tokens, each of which continues the one before it."""
    return [
        changed(each, since=f"T{number}" if number else "", next=f"T{number + 1}")
        for number, each in enumerate(responses)
    ]


WRITES = [
    put("ann", a="1"),
    put("ann", a="2", b="2"),
    put("ann", c="1"),
    delete("ann", "b"),
    put("ann", d="1"),
    put("ann", b="3", c="3"),
    put("ann", e="1"),
]
FINAL: dict[str, list[Value]] = {"a": ["2"], "b": ["3"], "c": ["3"], "d": ["1"], "e": ["1"]}

FEED = [
    response({"a": "1"}, reset=True),
    response({"a": "2", "b": "2"}),
    response({"c": "1"}),
    response({"b": None, "d": "1"}),
    response({"b": "3"}, more=True),
    response({"c": "3", "e": "1"}),
    response({}),
]
"""What Eve receives: the transaction of b and c arrives in two responses."""

RESET = [
    *FEED[:3],
    # Another replica has forgotten the changes since. Of the keys, b is gone meanwhile.
    response({"a": "2"}, reset=True, more=True),
    response({"c": "1", "d": "1"}, reset=True),
    *FEED[4:],
]
BEGUN_AGAIN = [
    *FEED[:3],
    response({"a": "2"}, reset=True, more=True),
    response({}, more=True),  # The replica has forgotten the beginning of the reset.
    response({"a": "2", "c": "1"}, reset=True, more=True),
    response({"d": "1"}, reset=True),
    *FEED[4:],
]
RESTARTED = [*chained(FEED[:4]), *chained([response({"a": "2", "c": "3", "b": "3", "d": "1", "e": "1"}, reset=True)])]


def violations(responses: list[Operation]) -> set[str]:
    """Return the patterns that are found in the history of the writes and ``responses``, and at its end."""
    history = [*WRITES, *responses]
    return {found.pattern for report in (check(history), check_feeds(history, FINAL)) for found in report.violations}


@pytest.mark.parametrize(
    "responses", [chained(FEED), FEED, chained(RESET), chained(BEGUN_AGAIN), RESTARTED], ids=lambda each: str(len(each))
)
def test_a_good_record_has_no_violation(responses: list[Operation]) -> None:
    history = [*WRITES, *responses]
    assert violations(responses) == set()
    assert check_durability(history, FINAL).ok
    assert check_feeds(history, FINAL).reads == len(FINAL)
    assert check(history).reads > len(responses)
    assert load(dump(history)) == history


def without(number: int, *keys: str) -> list[Operation]:
    """Return the good record without some changes of one response."""
    reads = tuple(pair for pair in FEED[number].reads if pair[0] not in keys)
    return [*FEED[:number], changed(FEED[number], reads=reads), *FEED[number + 1 :]]


def altered(number: int, **changes: object) -> list[Operation]:
    return [*FEED[:number], changed(FEED[number], **changes), *FEED[number + 1 :]]


MUTATIONS: dict[str, tuple[str, list[Operation]]] = {
    "half of a transaction": ("FracturedRead", chained(without(5, "c"))),
    "half of another one": ("FracturedRead", chained(without(1, "a"))),
    "a transaction is torn by a response that should say more": ("FracturedRead", chained(altered(4, more=False))),
    "an effect without its cause": ("WriteCORead", chained([FEED[0], *FEED[2:]])),
    "a key is missed": ("WriteCOInitRead", chained([FEED[0], FEED[1], *without(2, "c")[2:]])),
    "a delete is not told": ("DeletedRead", chained(without(3, "b"))),
    "the copy goes back to an older value": ("WriteCORead", chained([*FEED, response({"a": "1"})])),
    "the copy goes back to a deleted value": ("DeletedRead", chained([*FEED[:4], response({"b": "2"}), *FEED[4:]])),
    "a key goes that nobody deleted": ("WriteCOInitRead", chained([*FEED, response({"a": None})])),
    "a value that nobody wrote": ("ThinAirRead", chained([*FEED, response({"a": "7"})])),
    "a reset that does not list a key": ("WriteCOInitRead", chained([*FEED, response({"a": "2"}, reset=True)])),
    "a response is missing in the record": ("FeedGap", [*chained(FEED)[:2], *chained(FEED)[3:]]),
    "a token skips": ("FeedGap", [*chained(FEED)[:2], changed(chained(FEED)[2], since="T9")]),
    "the first response is no reset": ("FeedGap", chained(altered(0, reset=False))),
    "a reset in the middle that does not say so": (
        "DeletedRead",
        chained([*FEED[:3], response({"a": "2", "c": "1", "d": "1"}), *FEED[4:]]),
    ),
    "the last change is not told": ("FeedDiffers", chained(without(5, "e"))),
    "the last response is not received": ("FeedUnfinished", chained(FEED[:5])),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_of_a_good_record_is_a_violation(name: str) -> None:
    pattern, responses = MUTATIONS[name]
    assert pattern in violations(responses)


def test_a_missed_key_is_a_violation_as_soon_as_its_effect_is_told() -> None:
    pattern, responses = MUTATIONS["a key is missed"]
    assert patterns([*WRITES, *responses[:3]]) == []
    assert patterns([*WRITES, *responses[:4]]) == [pattern]


def test_a_prefix_says_nothing_of_other_keys() -> None:
    copy = [response({"b": "2"}, reset=True, prefix="b"), response({"b": "3"}, prefix="b")]
    assert violations(chained(copy)) == set()
    both = [*chained(FEED), *chained(copy)]
    assert patterns([*WRITES, *both]) == ["WriteCORead"], "the session knew better than the second copy"
    assert violations([changed(each, session="fay") for each in chained(copy)] + chained(FEED)) == set()


def test_followers_may_go_back_to_what_a_lost_write_replaced() -> None:
    lost = [put("ann", a="1"), changed(put("bob", a="2"), status="lost")]
    copy = [response({"a": "2"}, reset=True), response({"a": "1"}, reset=True)]
    history = [*lost, *chained(copy)]
    assert patterns(history) == []
    assert check_feeds(history, {"a": ["1"]}).ok


def test_keys_that_expire_are_not_compared_with_the_end() -> None:
    history = [changed(put("ann", a="1"), expiring=True), put("ann", b="1")]
    history += chained([response({"a": "1", "b": "1"}, reset=True)])
    assert check_feeds(history, {"b": ["1"]}).ok
    assert not check_feeds(history, {}).ok


@pytest.mark.parametrize("name", ["half of a transaction", "an effect without its cause", "a token skips"])
def test_a_violation_is_shrunk_to_a_few_operations(name: str, tmp_path: Path) -> None:
    pattern, responses = MUTATIONS[name]
    example = shrink([*WRITES, *responses])
    assert 0 < len(example) <= 4
    assert patterns(example) == [pattern] or pattern == "FeedGap"
    file, out = tmp_path / "history.jsonl", io.StringIO()
    file.write_bytes(dump([*WRITES, *responses]))
    with pytest.raises(CommandError):
        call_command(Command(), str(file), stdout=out)
    assert pattern in out.getvalue()
