"""groups: the tree of control groups as a table, one of them in detail, and its settings as words (`kv_max=64MiB`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupInfo, GroupSettings, PressureInfo
from llmasos.syscalls.size import size as parse_size
from llmasos.syscalls.table import GroupCreate, GroupSet, GroupStat
from llmasos.userland.programs.figures import duration, number, size
from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.programs.table import NAME

_SIZES = ("kv_max", "kv_high", "swap_max", "weights_max")
_DEFAULT = GroupSettings()


def read(kernel: Kernel, path: str = "/") -> list[GroupInfo]:
    """A group and the groups below it, in as many calls as it takes."""
    rows: list[GroupInfo] = []
    while True:
        page = kernel(GroupStat(path, below=True, start=len(rows)))
        rows += page
        if len(page) < limits.MAX_LIST:
            return rows


# The tree, a row for each group. STALL: the share of the last ten seconds in which some of it waited for memory; and in
# which a limit of its (tokens a second, KV) or of a group above held some of it back, where one did.
LISTING: Listing[GroupInfo] = Listing(
    (
        Field("GROUP", "path", style="bold", elastic=True, keep=NAME, least=16),
        Field("PROCS", "pids", right=True, keep=7),
        Field("KV", "kv", shown=lambda one: size(one.kv), right=True, keep=6),
        Field("SWAP", "swap", shown=lambda one: size(one.swap), right=True, keep=3),
        Field("WEIGHTS", "weights", shown=lambda one: size(one.weights), right=True, keep=4),
        Field("TOKENS", "tokens", shown=lambda one: number(one.tokens), right=True, keep=6),
        Field("WEIGHT", "settings.cpu_weight", right=True, keep=4),
        Field("STALL", "stall", shown=lambda one: _stalled(one), value=lambda one: _stall(one), right=True, keep=5),
        Field(
            "LIMITS", "settings", shown=lambda one: " ".join(_limits(one.settings)) or "-", elastic=True, keep=5, least=16
        ),
    )
)


def _stall(info: GroupInfo) -> float:
    return info.pressure["memory"].some[0]


def _stalled(info: GroupInfo) -> str:
    quota = info.pressure["quota"].some[0] if "quota" in info.pressure else 0.0
    return f"{_stall(info):.0%}" + (f", quota {quota:.0%}" if quota >= 0.005 else "")


def details(info: GroupInfo) -> list[tuple[str, str]]:
    """A group in detail, as pairs."""
    events = ", ".join(f"{name} {count}" for name, count in sorted(info.events.items()))
    return [
        ("group", info.path),
        ("limits", " ".join(_limits(info.settings)) or "-"),
        ("weight", str(info.settings.cpu_weight)),
        ("KV", f"{size(info.kv)}, {size(info.swap)} in lower tiers"),
        ("weights", size(info.weights)),
        ("tokens", number(info.tokens)),
        ("processes", f"{info.pids}; directly in it: {', '.join(map(str, info.processes)) or 'none'}"),
        ("events", events or "-"),
        *((f"{name} pressure", _pressure(pressure)) for name, pressure in info.pressure.items() if pressure.some_seconds),
    ]


def _limits(settings: GroupSettings) -> list[str]:
    """The settings that differ from the defaults, as words that `group` takes."""
    words = []
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if name == "cpu_weight" or value == getattr(_DEFAULT, name):
            continue
        words.append(f"{name}={size(value).replace(' ', '') if name in _SIZES else f'{value}'}")
    return words


def _pressure(pressure: PressureInfo) -> str:
    some, full = ([f"{share:.1%}" for share in shares] for shares in (pressure.some, pressure.full))
    return (
        f"some {' '.join(some)} ({duration(pressure.some_seconds)}), full {' '.join(full)} "
        f"({duration(pressure.full_seconds)}); of the last 10, 60, 300 s (in all)"
    )


def settings(words: Sequence[str], now: GroupSettings) -> GroupSettings:
    """`now` with the changes of words like `kv_max=64MiB`. Raises EINVAL that names the settings."""
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in now.__struct_fields__:
            known = ", ".join(now.__struct_fields__)
            raise SyscallError(
                Errno.EINVAL,
                f"{word!r}: a setting is NAME=VALUE, with a name of {known}; 0 takes a limit away",
            )
        changes[name] = parse_size(value, name) if name in _SIZES else value
    try:
        old = msgspec.structs.asdict(now)
        return msgspec.convert(list((old | changes).values()), GroupSettings, strict=False)
    except msgspec.ValidationError as error:
        names = now.__struct_fields__
        reason = re.sub(r"\$\[(\d+)\]", lambda found: names[int(found[1])], str(error))
        raise SyscallError(Errno.EINVAL, f"{' '.join(words)}: {reason}") from None


def change(kernel: Kernel, path: str, words: Sequence[str]) -> GroupInfo:
    """Change settings of a group, and return it. Makes the group if there is none, but not without a change."""
    try:
        (found,) = kernel(GroupStat(path))
    except SyscallError as error:
        if error.errno is not Errno.ENOENT:
            raise
        if not words:
            raise SyscallError(
                Errno.ENOENT,
                f"there is no group {path!r}; `groups` lists those that there are, and `group {path} kv_max=64MiB` (or "
                "another setting) makes it",
            ) from None
        return kernel(GroupCreate(path, settings(words, _DEFAULT)))
    if words:
        kernel(GroupSet(path, settings(words, found.settings)))
        (found,) = kernel(GroupStat(path))
    return found
