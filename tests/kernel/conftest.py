"""What tests of the kernel leave behind."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.drivers import parcel


@pytest.fixture
def no_parcel_is_left() -> Any:
    """No KV on its way between drivers outlives its test."""
    before = parcel.held()
    yield
    assert parcel.held() == before
