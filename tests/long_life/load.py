"""Send reads and writes to one replica at a constant rate, and measure their latency. A process of its own.

    python -m tests.long_life.load HOST:PORT REQUESTS_PER_SECOND KEYS

It stops when its standard input closes. Then it prints a JSON list of [due time (monotonic s), latency (s), method].
The latency counts from the due time, so it includes any delay that an earlier slow request causes. A response other
than 200 or 201 ends the process with an error.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from http.client import HTTPConnection

from store.address import split_address

THREADS = 4

Sample = tuple[float, float, str]


def send_requests(
    address: str, rate: float, keys: int, offset_s: float, stop: threading.Event, out: list[Sample]
) -> None:
    """Send ``rate`` requests per second over one connection until ``stop`` is set. Every second one is a PUT."""
    connection = HTTPConnection(*split_address(address), timeout=10)
    rng = random.Random(offset_s)
    due_s, number = time.monotonic() + offset_s, 0
    while not stop.wait(max(0.0, due_s - time.monotonic())):
        method = "PUT" if number % 2 else "GET"
        body = json.dumps({"value": f"{number:064}"}) if number % 2 else None
        connection.request(
            method, f"/kvs/k{rng.randrange(keys):06}", body, {"Content-Type": "application/json"} if body else {}
        )
        response = connection.getresponse()
        response.read()
        if response.status not in (200, 201):
            raise SystemExit(f"{method}: {response.status}")
        out.append((due_s, time.monotonic() - due_s, method))
        due_s, number = due_s + 1 / rate, number + 1


def main(address: str, rate: str, keys: str) -> None:
    stop = threading.Event()
    samples: list[Sample] = []
    threads = [
        threading.Thread(
            target=send_requests, args=(address, float(rate) / THREADS, int(keys), n / float(rate), stop, samples)
        )
        for n in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    json.dump(samples, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
