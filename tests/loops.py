"""The event loops that the asynchronous client is tried under."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")
LOOPS = ["trio", "asyncio", "uvloop"]


def run_under(loop: str, main: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run `main` to its end under an event loop by name."""
    if loop == "trio":
        return anyio.run(main, *arguments, backend="trio")
    return anyio.run(main, *arguments, backend_options={"use_uvloop": loop == "uvloop"})
