"""How questions of clients that may not wait are dated (replication/loss.py)."""

from __future__ import annotations

import pytest

from replication.loss import LOSS_QUERY_KEPT_S, MAX_LOSS_QUERIES, LossQueries

A, B = "a:1@0000000000000001", "b:1@0000000000000001"


@pytest.fixture
def questions() -> LossQueries:
    return LossQueries()


def test_a_question_that_comes_again_has_the_date_of_its_first_time(questions: LossQueries) -> None:
    assert questions.token({A: (0, 5)}, 10) == 10
    assert questions.token({A: (0, 5)}, 20) == 10
    assert questions.token({A: (2, 4)}, 30) == 10, "whoever had 5 had 4"


def test_more_than_was_asked_for_is_a_new_question(questions: LossQueries) -> None:
    questions.token({A: (0, 5)}, 10)
    assert questions.token({A: (0, 6)}, 20) == 20
    assert questions.token({A: (0, 5)}, 30) == 20, "the same answers are waited for"


def test_a_question_is_as_young_as_the_youngest_of_its_parts(questions: LossQueries) -> None:
    questions.token({A: (0, 5)}, 10)
    assert questions.token({A: (0, 5), B: (0, 1)}, 20) == 20
    assert questions.token({A: (0, 5)}, 30) == 10


def test_questions_are_forgotten_some_time_after_they_were_asked(questions: LossQueries) -> None:
    questions.token({A: (0, 5)}, 10)
    questions.expire(100.0)
    questions.expire(100.0 + LOSS_QUERY_KEPT_S - 0.1)
    assert questions.token({A: (0, 5)}, 20) == 10
    questions.expire(100.0 + LOSS_QUERY_KEPT_S)
    assert questions.token({A: (0, 5)}, 30) == 30


def test_clients_cannot_make_it_remember_without_end(questions: LossQueries) -> None:
    for index in range(MAX_LOSS_QUERIES + 10):
        questions.token({f"x{index}": (0, 1)}, 10)
    assert questions.token({"x0": (0, 1)}, 20) == 10
    assert questions.token({f"x{MAX_LOSS_QUERIES}": (0, 1)}, 20) == 20, "dated anew each time, as there is no room"
