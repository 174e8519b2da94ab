"""What must stay flat in a long run: memory of replicas, the table of addresses, and the metadata of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replication.settings import ReplicationSettings

MAX_REMOVED = ReplicationSettings().kept_removed
"""Removed addresses that a replica keeps once the removals are old enough (docs/limits.md)."""

SETTLE_LIMIT_S = 30.0
"""Within this time after the last heal, old removals must be forgotten. (Twice 10 s, and time for the machine.)"""

METADATA_LIMIT_S = 10.0
"""Within this time after a heal, the metadata of clients must be short again."""

MIN_ROUNDS = 6
"""A shorter run has too few samples for a statement about memory."""

BYTES_PER_DATA_BYTE = 1.5
"""How much a process may grow per byte of (estimated) data."""

TOLERANCE = 0.15
NOISE_BYTES = 8 * 1024 * 1024
"""Memory differs by ``TOLERANCE`` and this many bytes from round to round: by when the last storm and restart were."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures of one replica at the end of a round, after it has converged."""

    round: int
    replica: int
    memory_bytes: int
    data_bytes: int
    removed: int
    clock_entries: int


@dataclass
class Growth:
    """The samples of a run, and its peaks under load.

    ``oldest``: the replica whose process runs all the time, because a leak shows only in an old process.
    ``metadata``: entries of the metadata of clients at the end of each round. ``peak_*``: while faults were active.
    ``settled_removed``: removed addresses in the longest table once old ones are forgotten, at the end of the run.
    ``snapshots``: replica id -> how many it has pulled.
    """

    oldest: int = 0
    samples: list[Sample] = field(default_factory=list)
    metadata: list[int] = field(default_factory=list)
    peak_memory_bytes: int = 0
    peak_removed: int = 0
    settled_removed: int = 0
    snapshots: dict[str, int] = field(default_factory=dict)

    def watch(self, status: Mapping[str, Any]) -> None:
        """Add what a replica's status says under load."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, status["memory_bytes"] or 0)
        self.peak_removed = max(self.peak_removed, removed_in(status))
        self.snapshots[status["replica_id"]] = status["snapshots"]["taken"]

    def end_round(self, number: int, statuses: Sequence[Mapping[str, Any]], metadata: int) -> None:
        """Add the figures of the end of a round: the status of each replica, and the entries of clients' metadata."""
        self.metadata.append(metadata)
        for i, status in enumerate(statuses):
            self.watch(status)
            sizes = (status["memory_bytes"] or 0, status["data_bytes"], removed_in(status), len(status["clock"]))
            self.samples.append(Sample(number, i, *sizes))

    def memory(self) -> list[tuple[int, Sample, Sample]]:
        """Return (replica, largest sample of the first third of the run, largest of the last third) per replica.

        Each process but that of ``oldest`` starts again and again, so those compare with the largest of all replicas.
        """
        third = max(1, len(self.metadata) // 3)
        numbers = sorted({sample.replica for sample in self.samples})
        of = {i: [sample for sample in self.samples if sample.replica == i] for i in numbers}
        everybody = [sample for own in of.values() for sample in own[:third]]
        return [
            (i, _largest(own[:third] if i == self.oldest else everybody), _largest(own[-third:]))
            for i, own in of.items()
        ]

    def problems(self, replicas: int) -> list[str]:
        """Return a text for each figure that is not flat."""
        texts = [
            f"round {n + 1}: the metadata of clients has {entries} entries {METADATA_LIMIT_S:g} s after the heal"
            for n, entries in enumerate(self.metadata)
            if entries > max_metadata(replicas)
        ]
        if len(self.metadata) < MIN_ROUNDS:
            return texts
        for i, first, last in self.memory():
            data = max(0, last.data_bytes - first.data_bytes) * BYTES_PER_DATA_BYTE
            if last.memory_bytes > first.memory_bytes * (1 + TOLERANCE) + data + NOISE_BYTES:
                texts.append(
                    f"replica {i}: memory grew from {megabytes(first.memory_bytes)} in the first third of the run to "
                    f"{megabytes(last.memory_bytes)} in the last, data by {megabytes(int(data))}"
                )
        return texts

    def lines(self, longest_metadata: int) -> list[str]:
        """Return the lines of the report. ``longest_metadata``: entries of the longest metadata under load."""
        if not self.samples:
            return []
        last = [sample for sample in self.samples if sample.round == self.samples[-1].round]
        memory = self.memory()
        first, end = next((first, end) for i, first, end in memory if i == self.oldest)
        sizes = (
            f"{megabytes(first.memory_bytes)} in the first third of the run, {megabytes(end.memory_bytes)} in the last"
        )
        others = ", ".join(f"{i} {megabytes(end.memory_bytes)}" for i, _, end in memory if i != self.oldest)
        return [
            f"memory                {sizes}",
            f"    of                replica {self.oldest}, whose process ran all the time",
            f"  others              {others} in the last third",
            f"  peak                {megabytes(self.peak_memory_bytes)}",
            f"  data                at most {megabytes(max(sample.data_bytes for sample in self.samples))}",
            f"removed addresses     {self.settled_removed} in the longest table at the end",
            f"  peak                {self.peak_removed}",
            f"metadata              {self.metadata[0]} entries after round 1, {self.metadata[-1]} after the last",
            f"  peak                {max(self.metadata)} after a round, {longest_metadata} under load",
            f"  replicas' clocks    {last[0].clock_entries} entries at the end",
            f"snapshots pulled      {sum(self.snapshots.values())}",
        ]


def _largest(samples: Sequence[Sample]) -> Sample:
    return max(samples, key=lambda sample: sample.memory_bytes)


def max_metadata(replicas: int) -> int:
    """Return how many entries the metadata of clients may have when all members can be reached."""
    return 2 * replicas


def removed_in(status: Mapping[str, Any]) -> int:
    """Return how many removed addresses a replica's table has."""
    return sum(member["state"] == "left" for member in status["view"])


def megabytes(count: int) -> str:
    """Return a size as text."""
    return f"{count / 1e6:.0f} MB"
