"""msgspec 0.22 crashes if two threads use a type for the first time at once, so modules use their types at import."""

from __future__ import annotations

import subprocess
import sys

from tools.paths import REPOSITORY

RACE = """
import sys, threading
sys.path.insert(0, {root!r})
from replication.messages import Exchange, decode, encode
body = encode(Exchange("a:1@0000000000000001", 1, 1, 1, {{}}, 0, "serving"))
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(6)
def first_use():
    barrier.wait()
    decode(body, Exchange)
threads = [threading.Thread(target=first_use) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_many_threads_can_decode_their_first_message_at_once() -> None:
    for _ in range(12):
        done = subprocess.run([sys.executable, "-c", RACE.format(root=str(REPOSITORY))], timeout=60, check=False)
        assert done.returncode == 0, f"the process died with {done.returncode}"
