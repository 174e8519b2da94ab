"""Settings of replication, as one frozen object that is passed in. Times are seconds, sizes are bytes.

Operators set the fields that are declared with ``setting`` (docs/settings.md). The other fields are internal: only
tests, the simulation and benchmarks change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from store.environment import Section, seconds, setting, whole_number

PEER_RESPONSES_BYTES: Final = 32 * 1024 * 1024
"""Bytes of all large responses to peers in progress. One is about 256 KiB, or a single update."""

MAX_PEER_RESPONSES: Final = 32
"""Large responses to peers in progress at once. Each holds a thread of the server until the peer has read it."""

OPERATOR_RESPONSES_BYTES: Final = 16 * 1024 * 1024
"""Bytes of all large statuses, metrics, pages of the dashboard and their files in progress."""

MAX_OPERATOR_RESPONSES: Final = 16
"""Such responses in progress at once."""


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """How replicas exchange updates, and when they consider each other down."""

    expected_members: int = setting(
        1,
        "KV_EXPECT",
        whole_number(1, 1024, "members"),
        Section.ADDRESSES,
        "The replica does not become ready before this many members, itself included, have met once. Set it to the "
        "size of the cluster, the same on every replica, so that a replica with a wrong `VIEW` does not serve alone. A "
        "replica that restarts needs only one live member that remembers the others. See "
        "[a replica that is alone](operations.md#a-replica-that-is-alone).",
    )

    down_after_s: float = setting(
        3.0,
        "KV_DOWN_AFTER",
        seconds(0.1, 3600),
        Section.TIME,
        "A member that has been silent for this long leaves the view of every replica. A shorter time detects "
        "failures sooner and more often mistakes slow members for dead ones. It must be at least twice "
        "`KV_SYNC_INTERVAL`.",
    )

    sync_interval_s: float = setting(
        1.0,
        "KV_SYNC_INTERVAL",
        seconds(0.01, 600),
        Section.TIME,
        "Pause between two anti-entropy exchanges with the same member. A shorter pause repairs differences sooner "
        "and costs one small request per member and interval. Writes do not wait for it: the replica sends them at "
        "once.",
    )

    max_clock_lead_s: float = setting(
        86_400.0,
        "KV_MAX_CLOCK_LEAD",
        seconds(60, 31_536_000),
        Section.TIME,
        "A message with a time that is further ahead of this replica's wall clock than this is rejected. It must "
        "be more than the wall clocks of any two members differ by. It bounds how far a wrong clock, or a message that "
        "no correct replica has sent, can push times and incarnations forward.",
    )

    pace_s: float = 0.004
    """Shortest time between two exchanges that carry new writes to the same peer. The first write after a pause leaves
    at once; under load several writes share one exchange. A longer time saves work and adds replication lag."""

    pace_round_trips: float = 2.0
    """The same limit as a multiple of the present duration of an exchange (replication/pacing.py)."""

    pace_times_late: float = 50.0
    """The same limit as a multiple of the present delay with which threads wake up (replication/pacing.py)."""

    max_pace_s: float = 0.08
    """Upper bound of the three limits above, however busy the machine is."""

    batch_updates: int = 1000
    """Most updates in one message. The next exchange, which follows at once, carries more."""

    batch_bytes: int = 256 * 1024
    """Most estimated bytes of updates in one message. A single larger update is sent whole."""

    chunk_updates: int = 64
    """Updates of one message that are applied in one step, without other requests in between."""

    piece_rest_times: float = 1.0
    """Pause of a receiver after each piece of a snapshot, as a multiple of the time that the piece took. Without the
    pause, clients of the sender would wait while it sends the snapshot (see
    docs/decisions/0026-snapshot-receivers-rest.md)."""

    max_piece_rest_s: float = 0.1
    """Upper bound of that pause: a piece can be late for other reasons."""

    snapshot_piece_bytes: int = 256 * 1024
    """Estimated bytes in one piece of a snapshot."""

    max_snapshots: int = 4
    """Snapshots that a replica sends at the same time. A further receiver has to request again later."""

    max_reserve_bytes: int = 16 * 1024 * 1024
    """By how much the log may grow beyond its limit while receivers of snapshots catch up (replication/reserve.py)."""

    snapshots_at_once: int = 4
    """Snapshots of a row that a replica pulls one after another. This one and each further one is followed by a pause;
    see ``replication.snapshots.SnapshotPauses``."""

    snapshot_rest_times: float = 4.0
    """Longest such pause, as a multiple of the time that the last snapshot took. The first is as long as that."""

    max_snapshot_rest_s: float = 60.0
    """Upper bound of such a pause, however long a snapshot takes."""

    snapshot_row_s: float = 10.0
    """A snapshot that a replica begins to pull this much later than it could belongs to a new row."""

    max_members: int = 1024
    """Most addresses in the membership table. It limits the memory that peers can use in this replica."""

    kept_removed: int = 256
    """Removed addresses that the membership table keeps; the oldest ones beyond are forgotten."""

    forget_after_s: float = 10.0
    """How long a replica keeps a removed address at least, so that others, and the removed replica, hear of the removal
    by its name. A full table forgets earlier."""

    @property
    def suspect_after_s(self) -> float:
        """Seconds since the last contact after which a member is suspect."""
        return self.down_after_s / 2

    @property
    def ask_after_s(self) -> float:
        """Seconds without a message of a member itself after which others are asked about it.

        Idle members send each other a message at least once per sync interval. From the moment at which a replica asks,
        it may take another interval until the next exchange; the answer has to be here before the member looks silent.
        """
        return max(0.0, min(1.1 * self.sync_interval_s, self.silent_after_s - 1.5 * self.sync_interval_s))

    @property
    def silent_after_s(self) -> float:
        """Seconds since the last contact after which a member is down. It is 0.9 of ``down_after_s``, so that the
        member has left every view within ``down_after_s``."""
        return self.down_after_s * 0.9
