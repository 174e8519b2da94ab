"""Loss queries of requests that do not wait: which token they get (replication/loss.py).

A gap ``A: (0, 5)`` means: this replica has no update of A, and the request needs update 5. The second argument of
``token`` is the serial of the last exchange that has begun; a new query gets it as its token.
"""

from __future__ import annotations

import pytest

from replication.loss import LOSS_QUERY_KEPT_S, MAX_LOSS_QUERIES, LossQueries

A, B = "a:1@0000000000000001", "b:1@0000000000000001"


@pytest.fixture
def queries() -> LossQueries:
    return LossQueries()


def test_a_repeated_query_has_the_token_of_the_first_one(queries: LossQueries) -> None:
    assert queries.token({A: (0, 5)}, 10) == 10
    assert queries.token({A: (0, 5)}, 20) == 10
    assert queries.token({A: (2, 4)}, 30) == 10, "a replica that has update 5 has update 4"


def test_a_query_for_a_higher_counter_has_a_new_token(queries: LossQueries) -> None:
    queries.token({A: (0, 5)}, 10)
    assert queries.token({A: (0, 6)}, 20) == 20
    assert queries.token({A: (0, 5)}, 30) == 20, "the higher counter covers the lower one"


def test_a_query_for_several_gaps_has_the_youngest_of_their_tokens(queries: LossQueries) -> None:
    queries.token({A: (0, 5)}, 10)
    assert queries.token({A: (0, 5), B: (0, 1)}, 20) == 20
    assert queries.token({A: (0, 5)}, 30) == 10


def test_a_query_expires(queries: LossQueries) -> None:
    queries.token({A: (0, 5)}, 10)
    queries.expire(100.0)
    queries.expire(100.0 + LOSS_QUERY_KEPT_S - 0.1)
    assert queries.token({A: (0, 5)}, 20) == 10
    queries.expire(100.0 + LOSS_QUERY_KEPT_S)
    assert queries.token({A: (0, 5)}, 30) == 30


def test_the_number_of_queries_is_limited(queries: LossQueries) -> None:
    first_update_missing = (0, 1)
    for index in range(MAX_LOSS_QUERIES + 1):
        queries.token({f"x{index}": first_update_missing}, 10)
    assert queries.token({"x0": first_update_missing}, 20) == 10
    beyond_the_limit = {f"x{MAX_LOSS_QUERIES}": first_update_missing}
    assert queries.token(beyond_the_limit, 20) == 20, "not remembered, because there is no room"
