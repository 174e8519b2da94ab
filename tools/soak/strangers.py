"""Addresses that come and go: replicas that serve for some seconds and leave for good, and addresses without a replica.

Both are changes of the view that the numbered replicas have to live with. A *guest* is a replica that starts under an
address that was never used before, joins, serves and leaves. A *ghost* is an address that is added with PUT /view
although nobody answers there, and removed again.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import subprocess
import time
from collections.abc import Callable, Sequence

import requests

from causeway_client import ClientError, Rejected
from kvsite.healthcheck import answers_ready
from store.address import split_address
from tools.netns.client import send
from tools.netns.cluster import NetnsCluster
from tools.netns.errors import NetnsError
from tools.soak.clients import KEYS, RoundContext, uncounted_session
from tools.soak.results import Results

JOIN_LIMIT_S = 15.0
"""A guest that is not ready after this time leaves without having served."""

FIRST_PORT = 20_000
"""Of guests. Ghosts have lower ports."""

GUEST_OPERATIONS_PER_S = 20.0
ATTEMPT_TIMEOUT_S = 2.0
"""Of one request to ``/view``."""


class Strangers:
    """Makes guests and ghosts. The methods block, so call them in threads of their own.

    ``is_over``: the load of the round ends, so end early.
    """

    def __init__(
        self, cluster: NetnsCluster, results: Results, context: RoundContext, is_over: Callable[[], bool]
    ) -> None:
        self._cluster = cluster
        self._results = results
        self._timeline = results.timeline
        self._context = context
        self._is_over = is_over

    # -- guests ---------------------------------------------------------------------------------------

    def guest(self, ending: str, rng: random.Random, number: int) -> None:
        """Start guest ``number`` of the run, let it serve, and make it leave for good.

        ``ending``: "drained", "killed", or "removed" (before it is asked to stop). Each guest is removed in the end.
        """
        address, process = self._cluster.start_guest(FIRST_PORT + number)
        timeline, i = self._timeline, self._timeline.replicas + number
        self._results.guests.append(f"http://{address}")
        has_joined = False
        try:
            has_joined = self._wait_ready(address, process)
            if has_joined:
                self._use(address, rng, number)
            if process.poll() is not None:
                self._context.problem(f"guest {address} stopped by itself, exit code {process.returncode}")
            if ending == "removed":
                timeline.removals.setdefault(i, []).append(time.monotonic())
                self.remove([address])
            left_s = time.monotonic()
            if ending == "killed":
                timeline.kills.setdefault(i, []).append(left_s)
                process.kill()
            else:
                process.terminate()
            ends = timeline.drains if process.wait(12) == 0 else timeline.kills
            if ending != "killed":
                ends.setdefault(i, []).append(left_s)
        finally:
            process.kill()
            process.wait(10)
            if process.stdin:
                process.stdin.close()
            # A slow start may end after the removal, and a process that starts adds itself.
            if ending != "removed" or not has_joined:
                timeline.removals.setdefault(i, []).append(time.monotonic())
                self.remove([address])

    def _wait_ready(self, address: str, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + JOIN_LIMIT_S
        while not self._is_over() and process.poll() is None and time.monotonic() < deadline:
            if answers_ready("http", *split_address(address)):
                return True
            time.sleep(0.05)
        return False

    def _use(self, address: str, rng: random.Random, number: int) -> None:
        """Read and write at a guest. The session follows what a client has seen elsewhere."""
        context = self._context
        name = f"r{self._results.round}guest{number}"
        with uncounted_session(context, [address], name, context.recorder) as session:
            other = rng.choice(context.clients).session
            if last := other.last_successful_operation:
                session.follow(other.metadata, after=last)
            until_s = time.monotonic() + rng.uniform(0.5, 3.0)
            for n in itertools.count():
                if self._is_over() or time.monotonic() > until_s:
                    return
                key = f"{context.prefix}{rng.randrange(KEYS):02}"
                try:
                    session.put(key, f"{name}:{n}") if rng.random() < 0.5 else session.get(key)
                    context.counts.guest_operations += 1
                except Rejected as exc:
                    context.problem(f"guest {address} rejected a request: {exc}")
                    return
                except ClientError as exc:
                    context.note(f"guest {address}: {exc}")
                    return
                time.sleep(1 / GUEST_OPERATIONS_PER_S)

    # -- ghosts ---------------------------------------------------------------------------------------

    def ghosts(self, addresses: Sequence[str], stay_s: float) -> None:
        """Add addresses at which nobody answers, and remove them ``stay_s`` seconds later."""
        for address in addresses:
            for i in self._serving():
                if self._change_view(i, "PUT", address):
                    break
        until_s = time.monotonic() + stay_s
        while not self._is_over() and time.monotonic() < until_s:
            time.sleep(0.05)
        self.remove(addresses)

    def ghost_addresses(self, count: int) -> list[str]:
        """Return ``count`` addresses that were never used before: half of dead hosts, half of closed ports."""
        network = self._cluster.network
        addresses = []
        for n in itertools.islice(self._results.ghost_numbers, count):
            host = network.hosts[-1] if n % 2 else f"10.77.{network.slot}.{100 + n // 2 % 100}"
            addresses.append(f"{host}:{1000 + n // 2}")
        return addresses

    def remove(self, addresses: Sequence[str]) -> None:
        """Remove addresses from the view, at every replica that serves, and at one at least.

        At each of them, because a removal that a single replica knows is lost if that replica is killed.
        """
        for address in addresses:
            deadline = time.monotonic() + JOIN_LIMIT_S
            while True:
                outcomes = [self._change_view(i, "DELETE", address) for i in self._serving()]
                if any(outcomes):
                    break
                if time.monotonic() > deadline:
                    self._context.problem(f"no replica removed {address} within {JOIN_LIMIT_S:g} s")
                    return
                time.sleep(0.1)
        self._results.strangers_removed += len(addresses)

    def _serving(self) -> list[int]:
        now_s = time.monotonic()
        return [i for i in range(self._timeline.replicas) if self._timeline.is_serving(i, now_s, now_s)]

    def _change_view(self, i: int, method: str, address: str) -> bool:
        with contextlib.suppress(requests.RequestException, NetnsError):
            response = send(self._cluster, i, method, "/view", {"socket-address": address}, timeout_s=ATTEMPT_TIMEOUT_S)
            return response.status in (200, 201, 404)
        return False
