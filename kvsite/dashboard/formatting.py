"""Formats numbers, times and addresses for the pages, the same way on each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

from store.clock import Dot, address_of

LAST_US = 253_402_300_799_000_000
"""The last second of the year 9999, Unix time in microseconds."""

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 update``, ``1,200 updates``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def span(seconds: float | None) -> str:
    """Return a duration in one or two units; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    whole = int(seconds)
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S} s"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def ago(seconds: float | None) -> str:
    """Return how long ago something happened; ``never`` for None."""
    return "never" if seconds is None else f"{span(seconds)} ago"


def iso(wall_us: int) -> str:
    """Return a timestamp in UTC, in ISO 8601 format."""
    return _moment(wall_us).isoformat(timespec="milliseconds")


def time_of_day(wall_us: int) -> str:
    """Return the time of day of a timestamp, in UTC."""
    return f"{_moment(wall_us):%H:%M:%S}"


def time_of_day_ms(wall_us: int) -> str:
    """Return the time of day of a timestamp with milliseconds, in UTC."""
    return iso(wall_us)[11:23]


def _moment(wall_us: int) -> datetime:
    """Return a timestamp as a date; the last one there is for all later ones: a ttl may be that long."""
    return datetime.fromtimestamp(min(wall_us, LAST_US) / 1e6, UTC)


def size(number: int | None) -> str:
    """Return a number of bytes with a decimal unit; ``unknown`` for None."""
    if number is None:
        return "unknown"
    amount = float(number)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def rate(per_second: float) -> str:
    """Return a rate per second, with a decimal place only below 10."""
    return f"{per_second:,.0f}/s" if per_second >= 10 or per_second == 0 else f"{per_second:.1f}/s"


def listed(items: Sequence[str], limit: int = 3) -> str:
    """Return ``a, b and c``, or the first ``limit`` items and the number of the others."""
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit:,} more"
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def update_name(dot: Dot, labels: Mapping[str, str]) -> str:
    """Return the name of an update: the short label of its origin and its counter, as in ``10.0.0.1 #42``."""
    address = address_of(dot[0])
    return f"{labels.get(address, address)} #{dot[1]:,}"


def update_query(dot: Dot) -> str:
    """Return the query string of the page of an update."""
    return urlencode({"update": f"{dot[0]}:{dot[1]}"})


def short_labels(addresses: Iterable[str]) -> dict[str, str]:
    """Return address -> label: the part in which the addresses differ (port or host), or the whole address."""
    parts = {address: address.rpartition(":") for address in addresses}
    hosts, ports = {host for host, _, _ in parts.values()}, {port for _, _, port in parts.values()}
    if len(hosts) == 1:
        return {address: f":{port}" for address, (_, _, port) in parts.items()}
    if len(ports) == 1:
        return {address: host for address, (host, _, _) in parts.items()}
    return {address: address for address in parts}
