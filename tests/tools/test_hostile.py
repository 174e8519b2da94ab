"""The run with hostile inputs, in short, and its inputs. ``make hostile`` runs it for longer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from urllib.parse import parse_qsl

import pytest

from store.feed import BadToken, decode_token
from tests.support.ports import free_ports
from tools.hostile.inputs import Input, Target, random_input
from tools.hostile.run import SECRET, SECURED, TOKEN, attack

TARGET = Target("127.0.0.1:1", "127.0.0.1:1@0000000000000001", ["127.0.0.1:1@0000000000000001"], SECRET, TOKEN)


def inputs(number: int, seed: int) -> list[Input]:
    rng = random.Random(seed)
    return [random_input(rng, TARGET) for _ in range(number)]


def test_the_inputs_are_of_every_kind() -> None:
    kinds = Counter(made.kind for made in inputs(400, 1))
    assert min(kinds.values()) > 3
    assert set(kinds) == {
        "malformed HTTP",
        "request",
        "changed message",
        "invented message",
        "snapshot request",
        "feed",
        "unread stream",
        "stall",
        "hang-up",
    }


def test_some_forged_tokens_are_tokens() -> None:
    """Otherwise a replica would reject them all at the first look."""
    decoded = 0
    for made in inputs(1500, 2):
        if made.kind == "feed":
            query = dict(parse_qsl(made.content.split(b" ")[1].partition(b"?")[2].decode()))
            try:
                token = decode_token(query.get("since", ""), query.get("prefix", ""))
            except BadToken:
                continue
            decoded += bool(token.clock)
    assert decoded > 15


@pytest.mark.processes
@pytest.mark.parametrize("environment", [{}, SECURED], ids=["open", "secured"])
def test_replicas_withstand_hostile_inputs(environment: Mapping[str, str]) -> None:
    result = attack(300, 20_261_127, free_ports(3), environment)
    assert not result.faults
    assert result.statuses[200] > 0, "some inputs are valid"
    assert result.statuses[400] > 15
    if environment:
        assert result.statuses[401] > 2
        assert result.statuses[403] > 2
