"""Differences between macOS and Linux that a replica must handle."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from kvsite import server
from kvsite.dashboard.formatting import size
from replication import status


def test_without_proc_the_memory_of_a_replica_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, *_: Any, **__: Any) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "read_text", missing)
    assert status.resident_bytes() is None
    assert size(None) == "unknown", "the dashboard shows this"


def test_a_file_limit_that_the_kernel_rejects_does_not_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[tuple[int, int]] = []

    def reject(_: int, limits: tuple[int, int]) -> None:
        requested.append(limits)
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", reject)
    server.raise_file_limit(1024)
    assert requested == [(1024, resource.RLIM_INFINITY)]
