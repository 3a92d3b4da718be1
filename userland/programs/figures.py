"""Numbers as people read them: bytes with binary units, times as on a clock, rates, bars.

Units are those of the records: bytes, seconds, tokens. Every function here is pure, from a number to a short text.
"""

from __future__ import annotations

import re

from llmasos.syscalls.errno import Errno

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def size(count: float) -> str:
    """Bytes: `512 B`, `1.5 MiB`."""
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def number(count: int) -> str:
    """A count, shortened from a million on: `12,345`, `3.2M`, `1.1B`."""
    if count < 1_000_000:
        return f"{count:,}"
    if count < 1_000_000_000:
        return f"{count / 1e6:.1f}M"
    return f"{count / 1e9:.1f}B"


def duration(seconds: float) -> str:
    """Seconds as `0.3s`, `12.0s`, `3:07`, `2:03:07`, `4d 02:03`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours == 0:
        return f"{minute}:{second:02}"
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}" if days else f"{hour}:{minute:02}:{second:02}"


_LENGTHS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


def seconds_of(text: str) -> float:
    """A length of time that somebody wrote: `90s`, `30m`, `1h30m`, `7d`. EINVAL."""
    found = _TIME.findall(text)
    if not found or "".join(map("".join, found)) != text:
        raise Errno.EINVAL(f"a length of time is written as 90s, 30m, 1h30m or 7d, found {text!r}")
    return sum(float(count) * _LENGTHS[unit] for count, unit in found)


def rate(tokens: float, seconds: float) -> str:
    """Tokens per second; `-` if no time has passed."""
    if seconds <= 0:
        return "-"
    value = tokens / seconds
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def bar(fraction: float, width: int, *, smooth: bool = True) -> str:
    """A bar of `width` characters, filled to `fraction` (0..1); with `smooth`, to an eighth of a character."""
    filled = max(0.0, min(1.0, fraction)) * width
    whole = int(filled)
    if not smooth:
        return ("#" * round(filled)).ljust(width, ".")
    if whole == width:
        return _EIGHTHS[-1] * width
    return (_EIGHTHS[-1] * whole + _EIGHTHS[int((filled - whole) * 8)]).ljust(width)
