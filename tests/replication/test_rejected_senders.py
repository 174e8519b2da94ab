"""Rejected senders: bounded, forgotten after a minute, and a stranger displaces only claims of his own."""

from __future__ import annotations

from typing import get_args

import pytest

from replication.refusals import RefusalKind
from replication.rejected_senders import MAX_REJECTED_SENDERS, REJECTED_TEXTS, REMEMBERED_S, RejectedSenders

A, B = "10.0.0.1:8090", "10.0.0.2:8090"


class Time:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_a_sender_is_remembered_for_a_minute_after_its_last_message() -> None:
    time = Time()
    senders = RejectedSenders(time)
    senders.note(A, "10.0.0.1", "name")
    time.now_s += REMEMBERED_S - 1
    senders.note(A, "10.0.0.1", "secret")
    senders.note(B, "10.0.0.2", "secret")
    time.now_s += REMEMBERED_S - 1
    assert [(each.address, each.kind) for each in senders.all()] == [(A, "secret"), (B, "secret")]
    time.now_s += 1
    assert senders.all() == []


def test_a_flood_of_claims_from_one_place_is_bounded_and_displaces_no_other_claim() -> None:
    senders = RejectedSenders(Time())
    senders.note(A, "10.0.0.1", "secret")
    senders.note(B, "10.0.0.2", "secret")
    for n in range(10 * MAX_REJECTED_SENDERS):
        senders.note(f"10.9.9.9:{n + 1}", "10.9.9.9", "secret")
    assert len(senders.all()) == MAX_REJECTED_SENDERS
    assert {A, B} < {each.address for each in senders.all()}


@pytest.mark.parametrize("claim", ["", "<b>x</b>", "10.0.0.1", "10.0.0.1:8090 ", "x" * 100_000 + ":1"])
def test_what_is_no_address_is_ignored(claim: str) -> None:
    senders = RejectedSenders(Time())
    senders.note(claim, "10.0.0.1", "secret")
    assert senders.all() == []


def test_every_reason_has_a_text() -> None:
    assert set(REJECTED_TEXTS) == set(get_args(RefusalKind))
