"""What is known of the user's policies beside their texts: which were taken out, when and why, and which may have ended
a kernel.

A policy can end the process that it is code of (os._exit, a signal to itself, a segmentation fault), and no guard inside
can help against that. So each call into one is marked in a small file that is mapped into memory: a store before and a
store behind, no system call. A kernel that finds the mark of a dead one set knows that it died within that call. A death
at any other moment (`kill -9`, a full machine) marks nobody. One from outside that by chance falls into a call costs a
policy that has served for a minute nothing the first time.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from llmasos.syscalls.atomic_file import replacing, write_all
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import PolicyOut

MARK = "policy-call"  # in the runtime directory: often in memory, where no full disk can end who writes to a mapped page
OUTS = "outs.json"  # beside the texts
MOST_OUTS = 16
MOST_WHY = 1000  # characters
SERVED_LOOKS = 240  # of the watchdog's, each of which found calls: a minute of service
_BYTES = 1 << 15  # of the mark: the slot in which a call goes on (0: none), then what the slots are
_SLOTS = 255
_MACHINE = Path("/proc/sys/kernel/random/boot_id")
_SIGNS = {"hung": ".out", "ended": ".died", "doubted": ".once", "served": ".well"}  # files by the digest of a text


class Standing:
    """`folder` has the texts of policies, `mark` is the path of the mark; without them nothing outlives the kernel."""

    def __init__(
        self, folder: Path | None = None, mark: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._mark, self._clock = folder, mark, clock
        self._page: bytearray | mmap.mmap = bytearray(_BYTES)
        self._opened = False
        self._slots: dict[tuple[str, str], int] = {}
        self._end = 1  # of what the slots are
        self._looks: Counter[str] = Counter()
        self.outs: list[PolicyOut] = []
        if folder is not None:
            with suppress(OSError, msgspec.DecodeError):
                self.outs = msgspec.json.decode((folder / OUTS).read_bytes(), type=list[PolicyOut])

    # --- calls ---

    def enter(self, name: str, method: str) -> None:
        """A call of the policy `name` begins."""
        self._page[0] = self._slots.get((name, method)) or self._slot(name, method)

    def leave(self) -> None:
        self._page[0] = 0

    def _slot(self, name: str, method: str) -> int:
        entry = msgspec.json.encode((name, method)) + b"\n"
        if not self._opened:
            self._open()
        if len(self._slots) == _SLOTS or self._end + len(entry) > _BYTES:
            self._slots.clear()
            self._end = 1
        if not self._slots:
            entry = _machine() + b"\n" + entry
        self._page[self._end : self._end + len(entry)] = entry
        self._end += len(entry)
        self._slots[name, method] = slot = len(self._slots) + 1
        return slot

    def _open(self) -> None:
        """Map the mark's file; Python writes behind it where a fatal signal came. Where that fails nothing is marked."""
        self._opened = True
        if self._mark is None:
            return
        with suppress(OSError):
            descriptor = os.open(self._mark, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.posix_fallocate(descriptor, 0, _BYTES)
            self._page = mmap.mmap(descriptor, _BYTES)
            os.lseek(descriptor, 0, os.SEEK_END)
            faulthandler.enable(descriptor, all_threads=False)

    def close(self) -> None:
        """An orderly end."""
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)

    def looked(self, name: str) -> None:
        """The watchdog has found calls of a policy, and nothing wrong."""
        self._looks[name] += 1
        if self._looks[name] == SERVED_LOOKS:
            self._sign(name, "served")

    # --- who is out ---

    def out(self, name: str, why: str) -> None:
        """A policy is taken out."""
        self.outs = [*self.outs[1 - MOST_OUTS :], PolicyOut(name, self._clock(), printable(why)[:MOST_WHY])]
        if self._folder is not None:
            with suppress(OSError), replacing(self._folder / OUTS) as descriptor:
                write_all(descriptor, msgspec.json.encode(self.outs))

    def hung(self, name: str) -> None:
        """Nothing ends a call of the policy but the kernel's end, which follows."""
        self.out(name, "it does not come back, and nothing interrupts it: that kernel had to end")
        self._sign(name, "hung")

    def after_death(self) -> list[tuple[str, str]]:
        """Look at the mark of an earlier kernel. Returns notes for the log."""
        if self._mark is None or (found := _marked(self._mark)) is None:
            return []
        self._mark.unlink()  # it tells of one death
        name, method, line = found
        if self._has(name, "hung"):  # that was seen by the kernel itself
            return []
        why = f"the kernel before this one died within its `{method}`{line}"
        if self._has(name, "served") and not self._has(name, "doubted"):
            self._sign(name, "doubted")
            return [("warning", f"policy {name}: {why}; it had served well, and is taken out if that happens again")]
        self._sign(name, "ended")
        self.out(name, why)
        return [("error", f"policy {name} is taken out: {why}; `policy FILE.py:CLASS` tries it again")]

    def refusal(self, digest: str, *, named: bool) -> str:
        """Why a text is not taken; empty: it is. `named`: its file was, which forgives all but a hang."""
        if self._has(digest, "hung"):
            return "hung an earlier kernel and is not taken again; change its file"
        if named:
            for kind in ("ended", "doubted"):
                self._path(digest, kind).unlink(missing_ok=True)
        return "ended an earlier kernel; `policy FILE.py:CLASS` tries it again" if self._has(digest, "ended") else ""

    def forget(self) -> None:
        if self._folder is not None:
            for one in [*(file for end in _SIGNS.values() for file in self._folder.glob(f"*{end}")), self._folder / OUTS]:
                one.unlink(missing_ok=True)

    def _path(self, name: str, kind: str) -> Path:
        return (self._folder or Path("/nowhere")) / f"{name.rpartition('@')[2]}{_SIGNS[kind]}"

    def _has(self, name: str, kind: str) -> bool:
        return self._folder is not None and self._path(name, kind).exists()

    def _sign(self, name: str, kind: str) -> None:
        if self._folder is not None:
            with suppress(OSError):
                self._path(name, kind).touch()


def _machine() -> bytes:
    """Which run of the machine this is: what a power cut left says nothing of a policy."""
    try:
        return _MACHINE.read_bytes().strip()
    except OSError:
        return b""


def _marked(mark: Path) -> tuple[str, str, str] | None:
    """The name and method in whose call a kernel died, and the line where that is known; None: it died in none."""
    try:
        text = mark.read_bytes()
    except OSError:
        return None
    machine, *slots = text[1:_BYTES].split(b"\n")
    if not text or not 0 < text[0] <= len(slots) or machine != _machine():
        return None
    try:
        name, method = msgspec.json.decode(slots[text[0] - 1], type=tuple[str, str])
    except msgspec.DecodeError:
        return None
    file = name.partition(":")[0]
    fatal = text[_BYTES:].decode(errors="replace")
    line = re.search(rf'File "(?:[^"]*/)?{re.escape(file)}", line (\d+)', fatal)
    why = re.match(r"Fatal Python error: (.*)", fatal)
    return name, method, (f" by {why[1]}" if why else "") + (f" ({file}, line {line[1]})" if line else "")
