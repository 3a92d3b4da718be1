"""Recordings: the samples of `top` and the kernel's trace between them, as JSON lines that any program can read.

    {"type": "llmasos-top", "version": 1, "kernel": "0.1.0", "recorded": 1764400000.0, "fields": {...}}
    {"type": "event", "seq": 17, "at": 3.25, "what": "sched.step", "pid": 0, "amount": 4, ...}
    {"type": "sample", "elapsed": 2.0, "whole": true, "boot": [...], "stats": [...], "models": [...], ...}

The first line is the header. Events, in the form of `TraceEvent`, stand before the sample that was taken after them;
`{"type": "lost", "events": 12}` says that as many are missing there. Records within a sample are arrays, whose fields the
header names. Like video, only every 64th sample is whole: the others have the rows of the process table that changed, and
the pids that went (`gone`). Whatever cut the file short costs its last line.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from llmasos.syscalls import records
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo, GroupInfo, ModelInfo, ProcessInfo, Stats, TraceEvent
from llmasos.userland.top.sample import Sample

VERSION = 1
_WHOLE_EVERY = 64
_NAMED = (
    "ProcessInfo", "Usage", "Limits", "BootInfo", "DeviceInfo", "Tier", "Stats", "ModelInfo", "SamplingDefaults",
    "GroupInfo", "GroupSettings", "PressureInfo",
)  # fmt: skip


class _Header(msgspec.Struct, tag="llmasos-top", frozen=True):
    version: int
    kernel: str  # version of the kernel
    recorded: float  # seconds since 1970
    fields: dict[str, list[str]] = {}


class _Event(msgspec.Struct, tag="event", frozen=True):
    seq: int
    at: float
    what: str
    pid: int = 0
    device: str = ""
    amount: int = 0
    detail: str = ""


class _Lost(msgspec.Struct, tag="lost", frozen=True):
    events: int


class _Sample(msgspec.Struct, tag="sample", frozen=True):
    elapsed: float  # seconds since the recording began
    whole: bool  # `rows` are all; else they are those that changed
    boot: BootInfo
    stats: Stats
    models: list[ModelInfo]
    groups: list[GroupInfo]
    rows: list[ProcessInfo]
    gone: list[int] = []  # pids


_Line = _Header | _Event | _Lost | _Sample


class Writer:
    """A recording under way, in a new file that only the user can read: names and calls of all programs are in it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._began = time.monotonic()
        self._before: dict[int, ProcessInfo] = {}
        self._samples = 0
        try:
            self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        except FileExistsError:
            raise SyscallError(
                Errno.EINVAL, f"{self.path} exists, and a recording replaces nothing: name another file"
            ) from None
        except OSError as error:
            raise SyscallError(Errno.EIO, f"the recording {self.path} cannot be made: {error.strerror}") from None

    def add(self, sample: Sample, events: Sequence[TraceEvent] = (), lost: int = 0) -> None:
        """Write a sample, and before it the events since the last one. Raises EIO."""
        lines: list[_Line] = []
        if not self._samples:
            fields = {name: list(getattr(records, name).__struct_fields__) for name in _NAMED}
            lines.append(_Header(VERSION, sample.boot.version, time.time(), fields))
        if lost:
            lines.append(_Lost(lost))
        lines += [_Event(*msgspec.structs.astuple(event)) for event in events]
        rows = {row.pid: row for row in sample.rows}
        whole = self._samples % _WHOLE_EVERY == 0
        before = {} if whole else self._before
        lines.append(
            _Sample(
                elapsed=round(time.monotonic() - self._began, 3),
                whole=whole,
                boot=sample.boot,
                stats=sample.stats,
                models=sample.models,
                groups=sample.groups,
                rows=[row for pid, row in rows.items() if before.get(pid) != row],
                gone=[pid for pid in before if pid not in rows],
            )
        )
        try:
            self._file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            self._file.flush()
        except OSError as error:
            raise SyscallError(
                Errno.EIO, f"the recording {self.path} ends here: {error.strerror}; what is in it can be opened"
            ) from None
        self._before = rows
        self._samples += 1

    def close(self) -> None:
        with suppress(OSError):  # all of it was flushed with the last sample, or has been reported then
            self._file.close()


@dataclass(frozen=True)
class Moment:
    """A sample of a recording, `elapsed` seconds after its beginning, and what happened since the one before."""

    elapsed: float
    sample: Sample
    events: tuple[TraceEvent, ...] = ()
    lost: int = 0


@dataclass(frozen=True)
class Recording:
    """A recording that was read. `torn`: its last line was cut short and is left out."""

    path: Path
    kernel: str
    recorded: float
    moments: Sequence[Moment] = field(repr=False)
    torn: bool = False

    @property
    def length(self) -> float:
        """Seconds from the first sample to the last."""
        return self.moments[-1].elapsed - self.moments[0].elapsed

    def at(self, seconds: float) -> int:
        """The number of the sample that shows how it was `seconds` after the first one."""
        start = self.moments[0].elapsed
        return max(0, bisect_right(self.moments, seconds + start, key=lambda moment: moment.elapsed) - 1)


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a recording. Raises ENOENT, EIO, or EINVAL with the line that is no line of one."""
    place = Path(path)
    try:
        text = place.read_bytes()
    except FileNotFoundError:
        raise SyscallError(Errno.ENOENT, f"there is no file {place}") from None
    except OSError as error:
        raise SyscallError(Errno.EIO, f"{place} cannot be read: {error.strerror}") from None
    lines = text.split(b"\n")
    torn = bool(lines.pop())  # every whole line ends with a newline
    read = _lines(place, lines)
    header = next(read, None)
    if not isinstance(header, _Header):
        raise SyscallError(
            Errno.EINVAL, f"{place} is no recording of `top`: its first line is no header; `top --record FILE` makes one"
        )
    if header.version != VERSION:
        raise SyscallError(
            Errno.EINVAL, f"{place} is a recording of version {header.version}; this `top` reads version {VERSION}"
        )
    moments = list(_moments(place, read))
    if not moments:
        raise SyscallError(Errno.EINVAL, f"there is no sample in {place}: the recording ended before the first")
    return Recording(place, header.kernel, header.recorded, moments, torn)


def _lines(place: Path, lines: Sequence[bytes]) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number == 1:
                raise SyscallError(
                    Errno.EINVAL, f"{place} is no recording of `top`; `top --record FILE` makes one ({error})"
                ) from None
            raise SyscallError(Errno.EINVAL, f"{place}, line {number}: {error}") from None


def _moments(place: Path, lines: Iterator[_Line]) -> Iterator[Moment]:
    rows: dict[int, ProcessInfo] = {}
    events: list[TraceEvent] = []
    lost, elapsed, first = 0, 0.0, True
    for line in lines:
        if isinstance(line, _Event):
            events.append(TraceEvent(*msgspec.structs.astuple(line)))
        elif isinstance(line, _Lost):
            lost += line.events
        elif isinstance(line, _Sample):
            if first and not line.whole:
                raise SyscallError(Errno.EINVAL, f"{place}: the first sample is not whole; its beginning is missing")
            if line.elapsed < elapsed:
                raise SyscallError(
                    Errno.EINVAL, f"{place}: a sample of second {line.elapsed:g} follows one of second {elapsed:g}"
                )
            gone = set(line.gone)
            rows = {} if line.whole else {pid: row for pid, row in rows.items() if pid not in gone}
            rows.update((row.pid, row) for row in line.rows)
            ordered = [rows[pid] for pid in sorted(rows)]
            sample = Sample(line.boot, line.stats, line.models, line.groups, ordered)
            yield Moment(line.elapsed, sample, tuple(events), lost)
            events, lost, elapsed, first = [], 0, line.elapsed, False
        else:
            raise SyscallError(Errno.EINVAL, f"{place}: a second header; two recordings have been joined")
