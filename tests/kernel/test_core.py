"""The kernel's state machine on one device without a lower tier (tests/kernel/machines/core.py)."""

from __future__ import annotations

from tests.kernel.machines.core import Core

TestCore = Core.TestCase
