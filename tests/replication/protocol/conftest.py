"""What tests of the protocol share: a wire of their own."""

from __future__ import annotations

import pytest

from tests.support.wire import Wire


@pytest.fixture
def wire() -> Wire:
    return Wire()
