"""The knobs of replication, as one frozen object handed down by the shell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """How replicas exchange and how they judge each other. Times are seconds."""

    sync_interval_s: float = 1.0
    """Time between two exchanges with a peer that nothing else calls for. Shorter heals faster and costs more."""

    down_after_s: float = 3.0
    """A replica that was not heard of for so long is out of everybody's view; at least twice ``sync_interval_s``."""

    pace_s: float = 0.004
    """Least time between two exchanges with a peer that carry new writes there. A write after a pause leaves at once;
    under load many share one exchange. Longer saves work and adds to the replication lag."""

    pace_round_trips: float = 2.0
    """The same as a multiple of how long an exchange takes at present (replication/pacing.py)."""

    pace_times_late: float = 50.0
    """The same as a multiple of how late threads wake at present (replication/pacing.py)."""

    max_pace_s: float = 0.08
    """What pacing comes to at most, however busy the machine is."""

    batch_updates: int = 1000
    """Updates in one message at most; more go with the next exchange, at once."""

    batch_bytes: int = 256 * 1024
    """Estimated bytes of updates in one message at most (a single update is sent whatever its size)."""

    piece_rest_times: float = 1.0
    """How long a receiver rests after each piece of a snapshot, as a multiple of how long it took. Without a rest a
    giver that is half busy with its clients is more than busy while it gives, and they wait (docs/benchmarks)."""

    max_piece_rest_s: float = 0.1
    """What that rest comes to at most: a piece may have been late for other reasons."""

    snapshot_piece_bytes: int = 256 * 1024
    """Estimated bytes of one piece of a snapshot."""

    max_snapshots: int = 4
    """Snapshots handed out at the same time at most; a further receiver is asked to come back."""

    max_members: int = 1024
    """Addresses in the register at most: a bound on what peers can make this replica remember."""

    @property
    def suspect_after_s(self) -> float:
        """Age of the last contact from which a member is suspect."""
        return self.down_after_s / 2

    @property
    def silent_after_s(self) -> float:
        """Age of the last contact from which a member is down: a tenth early, so that it has left every view *within*
        ``down_after_s``."""
        return self.down_after_s * 0.9
