"""The polling helpers of all tests: wait for a condition with a deadline, or observe that it stays true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    *,
    timeout_s: float = 10.0,
    what: str | Callable[[], object] = "the condition is true",
    every_s: float = 0.02,
) -> T:
    """Call ``condition`` until it returns a true value, and return that value.

    Fails the test after ``timeout_s`` seconds. The failure shows ``what`` (a text, or a function that returns what
    helps to find the cause) and the last result. The condition is checked at least once, and once more at the deadline.

    An ``OSError`` counts as a false result: a replica that is starting or stopping refuses connections. (The
    exceptions of ``requests`` are ``OSError`` too.) Any other exception fails the test at once.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        is_last = time.monotonic() >= deadline_s
        last: object
        try:
            result = condition()
        except OSError as exc:
            last = exc
        else:
            if result:
                return result
            last = result
        if is_last:
            details = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {timeout_s:g} s: {details}; last result: {last!r}")
        time.sleep(max(0.0, min(every_s, deadline_s - time.monotonic())))


def assert_stays(condition: Callable[[], object], *, for_s: float, every_s: float = 0.1) -> None:
    """Fail unless ``condition`` is true all the time for ``for_s`` seconds.

    Use it for promises that something does not happen: then there is no condition to wait for.
    """
    end_s = time.monotonic() + for_s
    while time.monotonic() < end_s:
        assert condition()
        time.sleep(every_s)
    assert condition()
