"""models, devices, stats, uptime, policy: the kernel's tables and counters since boot."""

from __future__ import annotations

import time

from llmasos.modelfiles.called import called
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.policy_file import shown_policy
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Advice, BootInfo, Budget, DeviceInfo, ModelInfo, PolicyOut, SchedInfo, Stats
from llmasos.userland.programs.figures import duration, number, rate, size
from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.table import NAME

_MODEL_STYLES = {
    "resident": "green",
    "streamed": "green",
    "loading": "cyan",
    "evicted": "yellow",
    "failed": "red",
}
_DEVICE_STYLES = {"up": "green", "starting": "cyan", "down": "red"}


def _pages_used(info: ModelInfo) -> int:
    return info.frames - info.frames_free - info.frames_cached


def _state(info: ModelInfo) -> str:
    state = f"loading {info.progress:.0%}" if info.state == "loading" else info.state
    if info.stretch > 1:
        state += f", thrashes ({info.lost:.0%})"
    return f"{state}, pinned" if info.pinned else state


def _mapped_by(info: ModelInfo) -> str:
    more = info.processes - len(info.mapped_by)
    return " ".join([*map(str, info.mapped_by), *([f"and {more} more"] if more > 0 else [])]) or "-"


# The models that the kernel knows by name, and those on a device: their weights (RESIDENT: in memory), the times that a
# process found them evicted (FAULTS), their KV frames, and the processes that map them.
MODELS: Listing[ModelInfo] = Listing(
    (
        Field("MODEL", "name", shown=lambda one: called(one.name), style="bold", elastic=True, keep=NAME, least=12),
        Field("STATE", "state", shown=_state, keep=8),
        Field("DEVICE", "device", shown=lambda one: one.device or "-", keep=6),
        Field(
            "DTYPE",
            "dtype",
            shown=lambda one: f"{one.dtype} ({one.stored})" if one.stored else one.dtype or "-",
            keep=7,
        ),
        Field("ARCH", "architecture", shown=lambda one: one.architecture or "-", keep=3),
        Field(
            "PARAMS",
            "parameters",
            shown=lambda one: number(one.parameters) if one.parameters else "-",
            right=True,
            keep=4,
        ),
        Field(
            "WEIGHTS",
            "weight_bytes",
            shown=lambda one: size(one.weight_bytes) if one.weight_bytes else "-",
            right=True,
            keep=6,
        ),
        Field(
            "RESIDENT",
            "resident_bytes",
            shown=lambda one: size(one.resident_bytes) if one.resident_bytes else "-",
            right=True,
            keep=5,
        ),
        Field("FAULTS", "faults", shown=lambda one: one.faults if one.device else "-", right=True, keep=2),
        Field("CONTEXT", "context", shown=lambda one: one.context or "-", right=True, keep=4),
        Field(
            "KV PAGES",
            "frames_used",
            shown=lambda one: f"{_pages_used(one)}/{one.frames}" if one.frames else "-",
            value=_pages_used,
            keep=5,
        ),
        Field("PROCS", "processes", right=True, keep=5),
        Field("MAPPED BY", "mapped_by", shown=_mapped_by, elastic=True, keep=2, least=16),
        Field("PATH", "path", shown=lambda one: one.error or one.path, elastic=True, keep=4, least=24),
    ),
    style=lambda one: _MODEL_STYLES.get(one.state, ""),
)


def apart(rows: list[ModelInfo]) -> list[str]:
    """What to call models beside each other: the name, with dtype and device where two have the same."""
    names = [printable(called(row.name), one_line=True) for row in rows]
    with_dtype = [f"{name} {row.dtype}" for name, row in zip(names, rows, strict=True)]
    return [
        name
        if names.count(name) == 1
        else dtyped
        if with_dtype.count(dtyped) == 1
        else f"{dtyped} on {row.device or 'no device'}"
        for name, dtyped, row in zip(names, with_dtype, rows, strict=True)
    ]


def advice_named(word: str) -> Advice:
    """`willneed`, `WILLNEED`. Raises EINVAL with the list."""
    if word.lower() not in set(Advice):
        raise SyscallError(Errno.EINVAL, f"there is no advice {word!r}; there are {', '.join(Advice)}")
    return Advice(word.lower())


# The devices: their drivers, memory and work.
DEVICES: Listing[DeviceInfo] = Listing(
    (
        Field("DEVICE", "name", style="bold", keep=NAME),
        Field("KIND", "kind", keep=4),
        Field("STATE", "state", keep=8),
        Field("PID", "pid", right=True, keep=5),
        Field("OS PID", "os_pid", right=True, keep=2),
        Field("RESTARTS", "restarts", right=True, keep=4),
        Field("POLICY", "policy", shown=lambda one: shown_policy(one.policy), value=lambda one: one.policy, keep=6),
        Field("RUNS", "max_runs", right=True, keep=3),
        Field("KV", "kv_bytes", shown=lambda one: size(one.kv_bytes), right=True, keep=6),
        Field(
            "WEIGHTS",
            "weight_bytes",
            shown=lambda one: size(one.weight_bytes) if one.weight_bytes else "-",
            right=True,
            keep=5,
        ),
        Field("STEPS", "steps", shown=lambda one: number(one.steps), right=True, keep=3),
        Field("TOKENS", "tokens_computed", shown=lambda one: number(one.tokens_computed), right=True, keep=4),
        Field(
            "TOK/S",
            "tokens_per_busy_second",
            shown=lambda one: rate(one.tokens_computed, one.busy_seconds),
            value=lambda one: one.tokens_computed / one.busy_seconds if one.busy_seconds else None,
            right=True,
            keep=6,
        ),
        Field(
            "WHAT IT IS",
            "description",
            shown=lambda one: one.error or one.description,
            elastic=True,
            keep=4,
            least=24,
        ),
    ),
    style=lambda one: _DEVICE_STYLES.get(one.state, ""),
)


def scheduling(info: SchedInfo, policies: list[str]) -> list[tuple[str, str]]:
    """The scheduling of a device; the policy in use is marked."""
    policies = policies if info.policy in policies else [*policies, info.policy]  # it was loaded just now
    return [
        ("device", info.device),
        (
            "policy",
            " ".join(f"[{shown_policy(name)}]" if name == info.policy else shown_policy(name) for name in policies),
        ),
        ("processes a step", str(info.max_runs)),
        ("tokens a step", str(info.step_tokens)),
        ("victims", shown_policy(info.victims)),
        ("evictions", shown_policy(info.evictions)),
        *(("taken out", taken_out(one)) for one in info.taken_out),
    ]


def taken_out(one: PolicyOut) -> str:
    """`mine.py:Mine@0123456789abcdef, 2026-05-01 12:30:00: `key` raised ...`"""
    return f"{one.name}, {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(one.at))}: {one.why}"


def stats(info: Stats) -> list[tuple[str, str]]:
    """Counters since boot, as pairs."""
    states = ", ".join(f"{name} {count}" for name, count in sorted(info.by_state.items()) if count)
    calls = sorted(info.calls_by_name.items(), key=lambda item: -item[1])[:8]
    computed = info.tokens_computed + info.tokens_reused
    reused = info.tokens_reused / computed if computed else 0.0
    return [
        ("uptime", duration(info.uptime)),
        ("processes", f"{info.processes} ({states or 'none'}); {info.spawned} spawned, {info.exited} exited"),
        ("tokens", f"fed {number(info.tokens_fed)}, computed {number(info.tokens_computed)}, "
                   f"decoded {number(info.tokens_decoded)}"),
        ("prefix reuse", f"{number(info.tokens_reused)} tokens ({reused:.0%} of what was needed)"),
        ("swap", f"{number(info.moved_out)} pages moved out, {number(info.moved_in)} moved in; {info.refaults} refaults"),
        ("steps", f"{number(info.steps)}, {info.preemptions} preemptions, {info.driver_restarts} driver restarts"),
        ("system calls", f"{number(info.calls)}, {info.errors} failed, {info.rejected_frames} frames rejected"),
        ("most called", ", ".join(f"{name} {count}" for name, count in calls)),
        *((budget.name, _spent(budget)) for budget in info.budgets),
    ]  # fmt: skip


def _spent(budget: Budget) -> str:
    """How much of a budget is used (docs/budgets.md): `3 of 912, of one at most 2; 5 refused`."""
    shown = size if budget.bytes else number
    said = f"{shown(budget.used)} of {shown(budget.most)}"
    if budget.largest:
        bound = f" of {shown(budget.each)}" if budget.each else ""
        said += f"; the largest {shown(budget.largest)}{bound}"
    return f"{said}; {number(budget.refused)} refused" if budget.refused else said


def uptime(boot: BootInfo, counters: Stats) -> str:
    """`up 3:07, 5 processes, 812 tokens decoded, cpu0 up`."""
    drivers = ", ".join(f"{device.name} {device.state}" for device in boot.devices)
    return (
        f"up {duration(counters.uptime)}, {counters.processes} processes, "
        f"{number(counters.tokens_decoded)} tokens decoded, {drivers}"
    )
