"""The kernel's clock: nanoseconds since it booted, as integers.

Moments and durations decide orders, so they are exact, as Linux's ktime_t is: sums of integers are the same on every
machine, and a moment that was asked for is reached, not nearly. Seconds as floats come in with calls, settings and
drivers' messages, and leave in reports; they are converted there, by these two functions.
"""

from __future__ import annotations

SECOND = 1_000_000_000
MILLISECOND = 1_000_000


def nanoseconds(seconds: float) -> int:
    """A finite number of seconds, rounded."""
    return round(seconds * SECOND)


def seconds(duration: int) -> float:
    """A number of nanoseconds, for a report."""
    return duration / SECOND
