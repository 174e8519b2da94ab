"""``manage.py kvs`` with a fake replica: the fixture of the tests of the command."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tests.support.fake_replicas import FakeReplica, fake_replicas


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeReplica]:
    with fake_replicas(1) as fakes:
        for name in ("KV_TOKEN", "KV_API_TOKENS", "KV_TLS_CERT", "KV_TLS_CA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SOCKET_ADDRESS", f"127.0.0.1:{fakes[0].port}")
        yield fakes[0]


def run(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("kvs", *arguments, stdout=out, stderr=out, **options)
    return out.getvalue()


def fails(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    return caught.value
