"""Storms: megabytes of writes per second at one replica, more than the logs keep, so that replicas need snapshots."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from causeway_client import ClientError, Delete, Rejected, Session
from tools.netns.cluster import NetnsCluster
from tools.soak.clients import RoundContext, uncounted_session

LOG_BYTES = 512 * 1024
"""``KV_MAX_LOG_BYTES`` of the replicas of a soak: less than a storm writes in a second."""

BYTES_PER_S = 2_000_000
VALUE_BYTES = 64 * 1024
STORM_KEYS = 24
"""Storms overwrite the same keys, so the data stays small: 1.5 MiB."""


def storm_keys(prefix: str) -> list[str]:
    """Return the keys that storms of a round write."""
    return [f"{prefix}storm{n:02}" for n in range(STORM_KEYS)]


def shortened(value: Any) -> Any:
    """Return what the record keeps of a value of a storm: its unique beginning. Other values stay the same."""
    return value.partition(" ")[0] if isinstance(value, str) else value


def storm(
    context: RoundContext, name: str, replica: str, seconds: float, rng: random.Random, is_over: Callable[[], bool]
) -> None:
    """Write about ``BYTES_PER_S`` for ``seconds``, preferably at ``replica``."""
    keys = storm_keys(context.prefix)
    began_s, written = time.monotonic(), 0

    def record(operation: Mapping[str, Any]) -> None:
        pairs = [(key, shortened(value)) for key, value in operation.get("writes", ())]
        context.recorder({**operation, "writes": pairs})

    with uncounted_session(context, context.replicas, name, record) as session:
        session.stick_to(replica)
        number = 0
        while not is_over() and time.monotonic() < began_s + seconds:
            value = f"{name}:{number} ".ljust(VALUE_BYTES, "x")
            number += 1
            try:
                session.put(rng.choice(keys), value)
                written += VALUE_BYTES
            except Rejected as exc:
                context.problem(f"a write of a storm was rejected: {exc}")
                break
            except ClientError as exc:
                context.note(f"{name}: {exc}")
            time.sleep(max(0.0, began_s + number * VALUE_BYTES / BYTES_PER_S - time.monotonic()))
    with context.counts.lock:
        context.counts.storm_bytes += written
    context.note(f"{name} wrote {written / 1e6:.1f} MB in {time.monotonic() - began_s:.1f} s")


def delete_storm_keys(cluster: NetnsCluster, prefix: str) -> None:
    """Delete what the storms of a round wrote, so that the data does not grow from round to round."""
    with Session(cluster.addresses) as session:
        session.transaction([], [Delete(key) for key in storm_keys(prefix)])
