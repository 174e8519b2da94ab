"""What macOS has otherwise than Linux: a replica does without."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from kvsite import server
from kvsite.dashboard.formatting import size
from replication import status


def test_without_proc_a_replicas_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, *_: Any, **__: Any) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "read_text", missing)
    assert status.resident_bytes() is None
    assert size(None) == "unknown", "what the dashboard then says"


def test_a_limit_of_files_that_the_kernel_refuses_does_not_stop_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def refuse(_: int, limits: tuple[int, int]) -> None:
        asked.append(limits)
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    server.raise_file_limit(1024)
    assert asked == [(1024, resource.RLIM_INFINITY)]
