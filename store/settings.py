"""The limits of one replica's data, as one frozen object handed down by the shell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What bounds the data of one replica. Sizes are bytes, times are seconds."""

    max_log_bytes: int = 64 * 1024 * 1024
    """Estimated size of the updates kept for peers that lack them; a peer that needs more pulls a snapshot."""

    log_segment_bytes: int = 256 * 1024
    """Encoded updates of one origin that are put together in one piece of memory when they are so many. More of them
    in a log of more than 1 GiB, which would come to too many pieces (``store.log.MAX_SEGMENTS``)."""

    max_memory_bytes: int = 0
    """Estimated size of keys and versions beyond which clients' writes are refused; 0 means no limit."""

    max_pending: int = 100_000
    """Updates that may wait for their causal past. One more is not taken: its sender offers it again."""

    max_deferred: int = 64
    """Requests that may wait for their causal past at once; one more is refused at once."""

    max_watchers: int = 64
    """Requests that may watch a key at once; one more is refused at once."""

    max_ack_waits: int = 64
    """Writes that may wait for acks of other members at once; one more is refused before it is made."""

    defer_timeout_s: float = 1.0
    """How long a request waits for its causal past where it does not say itself; 0 means not at all."""
