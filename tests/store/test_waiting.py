"""The index of requests that wait for a change under a prefix."""

from __future__ import annotations

import threading
from random import Random

from store.waiting import PrefixIndex, Waiter


def test_a_change_wakes_the_requests_whose_prefix_its_key_has() -> None:
    index, rng, lock = PrefixIndex(), Random(1), threading.RLock()
    texts = ["", "a", "ab", "abc", "b", "ba", "abab", "abcabc"]
    for _ in range(300):
        waiters = {text: Waiter(lock) for text in rng.sample(texts, rng.randrange(1, 8))}
        for text, waiter in waiters.items():
            index.add(waiter, text)
        key = "".join(rng.choices("abc", k=rng.randrange(1, 8)))
        with lock:
            index.changed([key])
        assert {text for text, waiter in waiters.items() if waiter.is_awake} == {
            text for text in waiters if key.startswith(text)
        }
        for text, waiter in waiters.items():
            index.remove(waiter, text)
        assert not index
