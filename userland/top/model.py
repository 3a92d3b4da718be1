"""From samples to what is shown: rates, their past, and the share of time that processes waited. Pure.

Rates are differences between two samples, as in top(1), over the kernel's own clock. A kernel that was booted anew counts
from zero, so its first sample has no rates, as the first of all has none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from llmasos.syscalls.records import GroupInfo, Kind, ProcessInfo
from llmasos.userland.top.sample import Sample

PAST = 120  # samples that sparklines reach back
WANTED = ("input", "stopped")  # to wait for somebody's input, or for a CONT, is no stall


@dataclass(frozen=True, slots=True)
class Sums:
    """Of LLM processes together."""

    computed: float = 0.0  # tokens a second
    decoded: float = 0.0
    length: int = 0
    pages: int = 0
    swapped: int = 0
    tokens_decoded: int = 0
    device_seconds: float = 0.0

    def __add__(self, row: Row) -> Sums:
        info = row.info
        return Sums(
            self.computed + row.computed, self.decoded + row.decoded, self.length + info.length, self.pages + info.pages,
            self.swapped + info.swapped, self.tokens_decoded + info.usage.decoded,
            self.device_seconds + info.usage.device_seconds,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A process. Rates are tokens a second since the sample before; a program's are the sums of its agents."""

    info: ProcessInfo
    computed: float = 0.0  # run through the model, prompts and recomputing included
    decoded: float = 0.0
    stall: float = 0.0  # share of the time in which it waited for anything but input or a CONT
    past: tuple[float, ...] = ()  # of `computed`, the newest last; empty: it was idle for as long as that
    agents: Sums | None = None  # of a program that has some


@dataclass(frozen=True, slots=True)
class Group:
    """A control group: the sums of the processes in it and below it."""

    info: GroupInfo
    computed: float = 0.0
    decoded: float = 0.0
    stall: float = 0.0  # share of the last ten seconds in which some of it waited for a device, memory, weights or quota
    past: tuple[float, ...] = ()
    length: int = 0
    pages: int = 0
    swapped: int = 0
    tokens_decoded: int = 0
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One sample, and what has changed since the one before."""

    sample: Sample
    seconds: float  # since the sample before; 0: there is none
    rows: dict[int, Row]
    groups: dict[str, Group]
    computed: float  # tokens a second, of all devices
    decoded: float
    past: tuple[float, ...]  # of `computed`
    busy: dict[str, tuple[float, ...]]  # by device: the share of the time that it computed, the newest last
    peak: float  # the greatest rate in the past of any process: what its sparkline is measured by
    group_peak: float  # the same of groups


class History:
    """Takes samples in the order of time and gives pictures."""

    def __init__(self) -> None:
        self._before: Sample | None = None
        self._past: dict[str, deque[float]] = {}

    def add(self, sample: Sample) -> Picture:
        """The picture of a sample, which is later than those before unless another kernel made it."""
        before = self._before
        if before is not None and (before.boot.os_pid != sample.boot.os_pid or before.at > sample.at):
            before = None
            self._past.clear()
        self._before = sample
        seconds = sample.at - before.at if before is not None else 0.0
        earlier = {row.pid: row for row in before.rows} if before is not None else {}
        rows = {info.pid: self._row(info, earlier.get(info.pid), seconds) for info in sample.rows}
        groups = {info.path: info for info in sample.groups}
        peak = max((max(row.past) for row in rows.values() if row.past), default=0.0)
        self._sum_up(rows, known=before is not None)
        summed = self._groups(groups, rows, known=before is not None)
        computed = decoded = 0.0
        if before is not None and seconds > 0:
            computed = max(0.0, (sample.stats.tokens_computed - before.stats.tokens_computed) / seconds)
            decoded = max(0.0, (sample.stats.tokens_decoded - before.stats.tokens_decoded) / seconds)
        busy = {}
        for device in sample.boot.devices:
            was = {d.name: d for d in before.boot.devices}.get(device.name) if before is not None else None
            share = (device.busy_seconds - was.busy_seconds) / seconds if was is not None and seconds > 0 else 0.0
            busy[device.name] = self._keep(f"device {device.name}", max(0.0, min(1.0, share)), before is not None)
        past = self._keep("all", computed, before is not None)
        self._forget(rows, groups)
        group_peak = max((max(group.past) for group in summed.values() if group.past), default=0.0)
        return Picture(sample, seconds, rows, summed, computed, decoded, past, busy, peak, group_peak)

    def _row(self, info: ProcessInfo, was: ProcessInfo | None, seconds: float) -> Row:
        if info.kind is not Kind.LLM or seconds <= 0:
            return Row(info)
        # A process that is new has done all that it did since the sample before.
        used = was.usage if was is not None else None
        computed = max(0.0, (info.usage.computed - (used.computed if used else 0)) / seconds)
        decoded = max(0.0, (info.usage.decoded - (used.decoded if used else 0)) / seconds)
        waited = sum(
            total - (used.waits.get(name, 0.0) if used else 0.0)
            for name, total in info.usage.waits.items()
            if name not in WANTED
        )
        past = self._keep(f"pid {info.pid}", computed, True)
        return Row(info, computed, decoded, max(0.0, min(1.0, waited / seconds)), past)

    def _sum_up(self, rows: dict[int, Row], *, known: bool) -> None:
        """Give programs the sums of their agents."""
        sums: dict[int, Sums] = {}
        for row in rows.values():
            owner = rows.get(row.info.ppid)
            if row.info.kind is Kind.LLM and owner is not None and owner.info.kind is Kind.PROGRAM:
                sums[owner.info.pid] = sums.get(owner.info.pid, Sums()) + row
        for pid, total in sums.items():
            past = self._keep(f"pid {pid}", total.computed, known)
            rows[pid] = Row(rows[pid].info, total.computed, total.decoded, past=past, agents=total)

    def _groups(self, groups: dict[str, GroupInfo], rows: dict[int, Row], *, known: bool) -> dict[str, Group]:
        sums = dict.fromkeys(groups, Sums())
        for row in rows.values():
            if row.info.kind is Kind.LLM:
                for path in _upwards(row.info.group):
                    if path in sums:
                        sums[path] += row
        made = {}
        for path, group in groups.items():
            total = sums[path]
            stall = max((pressure.some[0] for pressure in group.pressure.values() if pressure.some), default=0.0)
            past = self._keep(f"group {path}", total.computed, known)
            made[path] = Group(
                group, total.computed, total.decoded, stall, past, total.length, total.pages, total.swapped,
                total.tokens_decoded, total.device_seconds,
            )  # fmt: skip
        return made

    def _keep(self, of: str, rate: float, known: bool) -> tuple[float, ...]:
        """The past of a rate with this one. What was idle throughout has none, so a hundred thousand sleepers cost
        nothing."""
        past = self._past.get(of)
        if past is None:
            if not known or rate == 0.0:
                return ()
            past = self._past[of] = deque(maxlen=PAST)
        past.append(rate)
        if rate == 0.0 and not any(past):
            del self._past[of]
            return ()
        return tuple(past)

    def _forget(self, rows: dict[int, Row], groups: dict[str, GroupInfo]) -> None:
        living = {f"pid {pid}" for pid in rows} | {f"group {path}" for path in groups}
        for of in [of for of in self._past if of.startswith(("pid ", "group ")) and of not in living]:
            del self._past[of]


def _upwards(path: str) -> list[str]:
    """A group's path and those above it: `/a/b`, `/a`, `/`."""
    paths = [path] if path else []
    while path not in ("", "/"):
        path = path.rpartition("/")[0] or "/"
        paths.append(path)
    return paths
