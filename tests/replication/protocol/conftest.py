"""Fixtures of the tests of the protocol."""

from __future__ import annotations

import pytest

from tests.support.wire import Wire


@pytest.fixture
def wire() -> Wire:
    """Return a simulated network without processes."""
    return Wire()
