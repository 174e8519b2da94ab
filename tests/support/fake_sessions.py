"""Fixtures for tests of both sessions of the client against fake replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from causeway_client import (
    Session,
)
from tests.support.blocking import SESSIONS
from tests.support.fake_replicas import (
    FakeReplica,
    fake_replicas,
)
from tests.support.ports import free_ports


@pytest.fixture
def replicas() -> Iterator[list[FakeReplica]]:
    with fake_replicas(3) as fakes:
        yield fakes


def unused_address() -> str:
    """Return an address on which no process listens."""
    return f"127.0.0.1:{free_ports()}"


OpenSession = Callable[..., Session]


@pytest.fixture(params=SESSIONS)
def session(request: pytest.FixtureRequest) -> OpenSession:
    """Return a function that opens a session with short timeouts."""

    def open_session(*replicas: FakeReplica | str, **options: Any) -> Session:
        addresses = [replica if isinstance(replica, str) else replica.url for replica in replicas]
        opened: Session = SESSIONS[request.param](addresses, **({"timeout_s": 2.0, "attempt_timeout_s": 0.5} | options))
        return opened

    return open_session
