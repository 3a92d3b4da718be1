"""groups: the tree of control groups as a table, one of them in detail, and its settings as words (`kv_max=64MiB`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import inspect

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupInfo, GroupSettings, PressureInfo
from llmasos.syscalls.size import size as parse_size
from llmasos.syscalls.table import GroupCreate, GroupSet, GroupStat, Models
from llmasos.userland.programs.figures import duration, number, size
from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.programs.table import NAME

_SIZES = ("kv_max", "kv_high", "swap_max", "weights_max")
_DEFAULT = GroupSettings()
_ENDLESS = 1 << 31  # a bound from here on is said only where it is passed
# The type of a struct has fields, of a number bounds: msgspec declares neither, as this may be any type.
_TYPES: dict[str, Any] = {field.name: field.type for field in inspect.type_info(GroupSettings).fields}  # type: ignore[attr-defined]


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
    return info.pressure["memory"].some[0] if info.pressure else 0.0


def _stalled(info: GroupInfo) -> str:
    if not info.pressure:  # of others' groups it is not told
        return "-"
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


_TRUTH = {"yes": True, "no": False}


def _limits(settings: GroupSettings) -> list[str]:
    """The settings that differ from the defaults, as words that `group` takes."""
    words = []
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if name == "cpu_weight" or value == getattr(_DEFAULT, name):
            continue
        shown = size(value).replace(" ", "") if name in _SIZES else "yes" if value is True else f"{value}"
        words.append(f"{name}={shown}")
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
        changes[name] = _value(name, value)
    return msgspec.structs.replace(now, **changes)


def _value(name: str, word: str) -> Any:
    """The value of a setting, from a word. Raises EINVAL that says what is wanted."""
    of = _TYPES[name]
    if isinstance(of, inspect.BoolType):
        wanted = f"one of {', '.join(_TRUTH)}"
        if word in _TRUTH:
            return _TRUTH[word]
    elif isinstance(of, inspect.EnumType):
        wanted = f"one of {', '.join(of.cls)}"
        if word in [str(one.value) for one in of.cls]:
            return of.cls(word)
    else:
        number, whole = None, isinstance(of, inspect.IntType)
        with suppress(ValueError):
            number = parse_size(word, name) if name in _SIZES else int(word) if whole else float(word)
        if number is not None and of.ge <= number <= of.le:
            return number
        wanted = f"a {'whole ' if whole else ''}number from {of.ge:g}"
        wanted += f" to {of.le:,.0f}" if of.le < _ENDLESS or (number is not None and number > of.le) else ""
    raise SyscallError(Errno.EINVAL, f"{name} wants {wanted}, found {word!r}")


def without_effect(kernel: Kernel, settings: GroupSettings) -> list[str]:
    """What a limit does that a person may not mean: one on KV that no page fits into."""
    pages = {model.block_bytes: model.name for model in kernel(Models()) if model.device and model.block_bytes}
    if not settings.kv_max or not pages or settings.kv_max >= min(pages):
        return []
    return [
        f"kv_max is {settings.kv_max:,} bytes, and a page of {pages[min(pages)]} is {size(min(pages))}: no agent of this "
        "group can hold any context"
    ]


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
        return _made(kernel, path, settings(words, _DEFAULT))
    if words:
        kernel(GroupSet(path, settings(words, found.settings)))
        (found,) = kernel(GroupStat(path))
    return found


def _made(kernel: Kernel, path: str, wanted: GroupSettings) -> GroupInfo:
    """A new group. ENOENT says which group above it has to be made first."""
    try:
        return kernel(GroupCreate(path, wanted))
    except SyscallError as error:
        if error.errno is not Errno.ENOENT:
            raise
        for end in [at for at, character in enumerate(path) if character == "/" and path[:at].strip("/")]:
            above = path[:end]
            try:
                kernel(GroupStat(above))
            except SyscallError:
                why = f"there is no group {above!r} for {path!r} to be in; `group {above} cpu_weight=100` makes it"
                raise SyscallError(Errno.ENOENT, why) from None
        raise
