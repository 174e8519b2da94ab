"""Settings of one replica's data and of the requests for it, as frozen objects that are passed in.

Each default stands here and nowhere else. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from store.environment import Section, seconds, setting, whole_number

MAX_BODY_READS: Final = 1024
"""Request bodies that are read at the same time. Each holds a thread."""

MAX_BODY_WAITS: Final = 64
"""Requests that wait for room for their body at the same time. Each holds a thread."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one client request may carry, and how much it may ask for."""

    max_body_bytes: int = setting(
        8 * 1024 * 1024,
        "KV_MAX_BODY_BYTES",
        whole_number(1024, 64 * 1024 * 1024, "bytes"),
        Section.REQUEST,
        "Longest request body. It limits the memory that one request can use. The upper bound keeps the update that "
        "the request becomes, or a key with all its siblings, within one message between replicas (256 MiB).",
    )

    max_key_bytes: int = setting(
        512,
        "KV_MAX_KEY_BYTES",
        whole_number(1, 65536, "bytes"),
        Section.REQUEST,
        "Longest key, encoded in UTF-8. For comparison: memcached 250, S3 1024. Keys are part of URLs, which many "
        "clients and proxies limit to about 8000 bytes.",
    )

    max_value_bytes: int = setting(
        1024 * 1024,
        "KV_MAX_VALUE_BYTES",
        whole_number(1, 64 * 1024 * 1024, "bytes"),
        Section.REQUEST,
        "Longest value, as encoded JSON or as bytes. It must be below `KV_MAX_BODY_BYTES`, because the body also holds "
        "the metadata.",
    )

    max_response_bytes: int = setting(
        8 * 1024 * 1024,
        "KV_MAX_RESPONSE_BYTES",
        whole_number(1024, 256 * 1024 * 1024, "bytes"),
        Section.REQUEST,
        "Longest response. A page of a listing ends before it, with `next`. A transaction that would read more, and "
        "siblings that are longer, get 413. A page has at least one key, and one value is always returned, however "
        "long. All large responses in progress together take at most eight times as much; further ones get 503.",
    )

    max_clock_entries: int = setting(
        1024,
        "KV_MAX_CLOCK_ENTRIES",
        whole_number(1, 1_000_000, "entries"),
        Section.REQUEST,
        "Most entries in the `causal-metadata` of a request. It must exceed the number of replicas.",
    )

    max_batch: int = setting(
        1000,
        "KV_MAX_BATCH",
        whole_number(1, 1_000_000, "keys"),
        Section.REQUEST,
        "Most keys in one transaction, reads and writes together. The writes of a transaction are one update: "
        "replicas send, apply and show it as a whole.",
    )

    body_timeout_s: float = setting(
        10.0,
        "KV_BODY_TIMEOUT",
        seconds(1, 3600),
        Section.TIME,
        "A connection that owes the rest of a request and makes no progress for this long is closed. Progress is 1000 "
        "bytes. If many bodies are unfinished at the same time, one second is enough. Linux only: elsewhere such a "
        "connection stays, within the limits of bodies.",
    )


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Limits of the data that one replica holds, and of the requests that wait in it."""

    max_watchers: int = setting(
        512,
        "KV_MAX_WATCHERS",
        whole_number(0, 2048, "requests"),
        Section.REPLICA,
        "Requests that may watch a key at the same time. With a further one, the request that has watched longest is "
        "answered early, with 304. Each uses a server thread while it waits.",
    )

    max_streams: int = setting(
        256,
        "KV_MAX_STREAMS",
        whole_number(0, 2048, "streams"),
        Section.REPLICA,
        "Event streams of the change feed that may be open at the same time. A further one gets 503. Each uses a "
        "server thread.",
    )

    max_deferred: int = setting(
        512,
        "KV_MAX_DEFERRED",
        whole_number(0, 2048, "requests"),
        Section.REPLICA,
        "Requests that may wait for their causal past at the same time, and also writes that may wait for the acks "
        "of other members (`w`). With a further one, the request that has waited longest is answered early: 503, or "
        "202 for a write, which stands. Each uses a server thread while it waits.",
    )

    max_log_bytes: int = setting(
        64 * 1024 * 1024,
        "KV_MAX_LOG_BYTES",
        whole_number(65536, 1 << 40, "bytes"),
        Section.REPLICA,
        "Estimated size of the recent updates that are kept for members that lack them. A member that needs older "
        "updates pulls a snapshot of all data. A larger log costs memory; a smaller one costs traffic when a member "
        "returns after a long absence.",
    )

    max_memory_bytes: int = setting(
        0,
        "KV_MAX_MEMORY",
        whole_number(0, 1 << 50, "bytes"),
        Section.REPLICA,
        "Estimated size of keys and versions above which the replica rejects clients' writes with 507. `0` means no "
        "limit. Deletes and the updates of other replicas are always accepted: rejecting those would prevent "
        "convergence.",
        default_text="`0` (no limit)",
    )

    max_feed_bytes: int = setting(
        16 * 1024 * 1024,
        "KV_MAX_FEED_BYTES",
        whole_number(65536, 1 << 40, "bytes"),
        Section.REPLICA,
        "Estimated size of the names of recently changed keys that are kept for the change feed. A client whose token "
        "is older gets every key again (`reset`).",
    )

    max_pending: int = setting(
        100_000,
        "KV_MAX_PENDING",
        whole_number(1, 100_000_000, "updates"),
        Section.REPLICA,
        "Updates of other replicas that may wait for their causal past. Further ones stay with their sender, which "
        "offers them again. It limits memory while a third replica is unreachable.",
    )

    max_pending_bytes: int = setting(
        64 * 1024 * 1024,
        "KV_MAX_PENDING_BYTES",
        whole_number(65536, 1 << 40, "bytes"),
        Section.REPLICA,
        "Estimated size of the updates that may wait for their causal past, as `KV_MAX_PENDING` limits their number.",
    )

    defer_timeout_s: float = setting(
        1.0,
        "KV_DEFER_TIMEOUT",
        seconds(0, 60),
        Section.TIME,
        "How long a request without `wait=` waits for its causal past before the replica answers 503. `0`: it does "
        "not wait.",
    )

    log_segment_bytes: int = 256 * 1024
    """Size up to which the log joins encoded updates of one origin into one piece of memory. A log of more than 1 GiB
    uses larger segments, because it would otherwise have more of them than ``store.log.MAX_SEGMENTS``."""
