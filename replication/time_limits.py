"""Time limits: which times and incarnations of a message are plausible. Pure.

A hybrid clock follows the highest time that it hears of, and the membership table keeps the highest incarnation, stamp
and horizon. So a single message with a time in the far future would hold for ever: every later change would lose. A
replica therefore rejects a message, as a whole, if any time in it is more than ``max_clock_lead_s`` ahead of the wall
clock here. Times in the past need no limit: they lose by themselves.
"""

from __future__ import annotations

from replication.errors import ClockTooFarOff
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from store.clock import Instant, incarnation_of, start_us_of


def check_times(message: Exchange | SnapshotRequest | SnapshotPiece, now: Instant, max_lead_s: float) -> None:
    """Raise ClockTooFarOff if a time or an incarnation is more than ``max_lead_s`` ahead of the wall clock.

    The times of a message: its own; the timestamps of its updates or versions; the stamps and the horizon of its
    membership table.
    Its incarnations: those of its sender, of its membership entries and of the replicas that the sender has heard.
    """
    limit_us = now.wall_us + round(max_lead_s * 1_000_000)
    latest_us, what = 0, ""
    for time_us, kind in _latest_times(message):
        if time_us > latest_us:
            latest_us, what = time_us, kind
    if latest_us > limit_us:
        ahead_s = (latest_us - now.wall_us) / 1_000_000
        raise ClockTooFarOff(
            f"{what} in a message of {message.sender} is {ahead_s:.0f} s ahead of this replica's wall clock: one of "
            f"the two clocks is wrong (KV_MAX_CLOCK_LEAD allows {max_lead_s:g} s)",
            ahead_s,
            is_serving=isinstance(message, Exchange) and message.state == "serving",
        )


def _latest_times(message: Exchange | SnapshotRequest | SnapshotPiece) -> list[tuple[int, str]]:
    """Return the latest time of each kind in ``message``, in microseconds, and what it is the time of."""
    times = [(start_us_of(incarnation_of(message.sender)), "the incarnation of the sender")]
    if isinstance(message, Exchange):
        times.append((message.time, "the time"))
        if message.batch:
            times.append((max(update.timestamp for update in message.updates), "the timestamp of an update"))
        if message.heard:
            heard = max(map(incarnation_of, message.heard))
            times.append((start_us_of(heard), "an incarnation that was heard of"))
        times.append((message.horizon, "the horizon of the membership table"))
        if message.membership:
            entries = message.membership.values()
            times.append((max(entry.stamp for entry in entries), "the stamp of a membership entry"))
            highest = max(entry.incarnation for entry in entries)
            times.append((start_us_of(highest), "the incarnation of a membership entry"))
    elif isinstance(message, SnapshotPiece):
        times.append((message.time, "the time"))
        stamps = (version.timestamp for _, versions in message.items for version in versions)
        times.append((max(stamps, default=0), "the timestamp of a version"))
    return times
