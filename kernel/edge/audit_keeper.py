"""The audit log while the kernel runs: lines are written, synced, and their head is signed and sent to the anchor.

Lines are written where the kernel carries out its actions, before all that comes behind them. They reach the disk as the
journal's frames do (`fsync`): each second, before any answer leaves, or when the system likes. Once a minute in which
there were lines the head of all of them is signed, in a line of the log, and the anchor gets it: a file elsewhere, or a
program's standard input. What cannot be written is counted, and said as soon as it can be again; a call whose class is
required is told at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import trio

from llmasos.kernel.edge.audit_file import AuditFile
from llmasos.kernel.edge.journal_file import write_all
from llmasos.kernel.edge.journal_keeper import INTERVAL_SECONDS, Fsync
from llmasos.kernel.events import Audit, Audited, AuditFails, Event, Noted

ANCHOR_SECONDS = 10.0  # that an anchor's program has to take a head; at a halt everybody waits for it

Anchor = str | list[str]  # the path of a file, or a program with its arguments; empty: none


def now() -> str:
    """The time of day, as RFC 3339 writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class AuditKeeper:
    """The open audit log of a running kernel. `report` takes events for the core."""

    def __init__(
        self, file: AuditFile, fsync: Fsync, anchor: Anchor, head_seconds: float, report: Callable[[Event], None]
    ) -> None:
        self._file, self._fsync, self._anchor, self._head_seconds = file, fsync, anchor, head_seconds
        self._report = report
        self._written = self._synced = 0  # lines
        self._waiting: deque[tuple[int, Callable[[str], None]]] = deque()  # for lines to be synced
        self._unsynced, self._unsigned = trio.Event(), trio.Event()
        self._syncing = trio.Lock()
        self._failing = ""
        self._doubtful = False  # the file could not be synced: it is not known what of it is on the disk
        self._lost = 0  # lines that could not be written
        self._anchor_failing = False

    # --- where actions are carried out ------------------------------------------------------------------------------

    def write(self, action: Audit) -> None:
        """Write a line, or count that it could not be written."""
        if action.ref:  # in a file that has no name any more nobody would find it
            self.look()
        line = {name: value for name, value in msgspec.structs.asdict(action.line).items() if value}
        try:
            self._tell_lost()
            self._file.write({"at": now(), **line})
        except OSError as error:
            self._lost += 1
            self._fail(error)
        else:
            self._written += 1
            self._unsynced.set()
            self._unsigned.set()
        self._tell_notes()
        if action.ref and self._failing:
            self._report(Audited(action.ref, self._failing))
        elif action.ref:
            self._when_synced(lambda trouble: self._report(Audited(action.ref, trouble)))

    def when_kept(self, then: Callable[[], None]) -> None:
        """Call `then` as soon as all lines so far are as safe as `fsync` wants. Calls are made in order."""
        self._when_synced(lambda _: then())

    def _when_synced(self, then: Callable[[str], None]) -> None:
        if self._fsync != "always" or (self._synced == self._written and not self._waiting):
            then("")
        else:
            self._waiting.append((self._written, then))

    def _tell_lost(self) -> None:
        """Say how many lines could not be written, now that one can be. Raises OSError."""
        if not self._failing:
            return
        if self._doubtful or not self._file.in_place():
            self._file.begin_file()
        self._doubtful = False
        self._file.write({"at": now(), "what": "lost", "of": "log", "details": {"count": self._lost}})
        self._lost, self._failing = 0, ""
        self._report(AuditFails(""))

    def _tell_notes(self) -> None:
        """Say what the file wants said."""
        notes, self._file.notes = self._file.notes, []
        for level, text in notes:
            self._report(Noted(level, text))

    def _fail(self, error: OSError) -> None:
        if not self._failing:
            self._failing = f"the audit log in {self._file.directory} cannot be written: {error.strerror or error}"
            self._report(AuditFails(self._failing))

    def look(self) -> None:
        """See whether the file is where it was. If somebody has removed or cut it, the next line begins another."""
        if not self._failing and not self._file.in_place():
            self._fail(OSError(errno.ENOENT, "it has been removed or changed"))

    # --- beside it --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sync lines, sign and anchor heads; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sync)
            nursery.start_soon(self._sign)

    async def finish(self) -> str:
        """The kernel halts: sign and anchor the last head, bring all to the disk. Returns why that is not done, if so."""
        trouble = ""
        try:
            await self._sign_now()
            await self._sync_now()
        except OSError as error:
            trouble = error.strerror or str(error)
        self._release(trouble)
        return trouble

    def close(self) -> None:
        self._file.close()

    @property
    def directory(self) -> Path:
        return self._file.directory

    async def _sync(self) -> None:
        while True:
            await self._unsynced.wait()
            self._unsynced = trio.Event()
            try:
                await self._sync_now()
            except OSError as error:
                self._doubtful = True
                self._fail(error)
                self._release(self._failing)
            if self._fsync != "always":
                await trio.sleep(INTERVAL_SECONDS)

    async def _sync_now(self) -> None:
        async with self._syncing:  # a state never comes after a later one
            file, lines = self._file, self._written
            old, file.old = file.old, []
            fds, state = [*old, os.dup(file.fd)], file.state()
            try:
                await trio.to_thread.run_sync(lambda: file.sync(fds, state, fsync=self._fsync != "never"))
            finally:
                for fd in fds:
                    os.close(fd)
        self._synced = max(self._synced, lines)
        self._release("", self._synced)

    def _release(self, trouble: str, upto: int | None = None) -> None:
        """Tell those that wait for lines up to number `upto` (None: for any)."""
        while self._waiting and (upto is None or self._waiting[0][0] <= upto):
            self._waiting.popleft()[1](trouble)

    # --- heads ------------------------------------------------------------------------------------------------------

    async def _sign(self) -> None:
        while True:
            await self._unsigned.wait()
            await trio.sleep(self._head_seconds)
            with suppress(OSError):  # the next line says that there are more to be signed
                await self._sign_now()

    async def _sign_now(self) -> None:
        if not self._unsigned.is_set():
            return
        await trio.to_thread.run_sync(self._file.public)  # loads what it takes, beside the events
        self._unsigned = trio.Event()
        head = self._file.signed_head(now())
        shown = {name: head[name] for name in ("head", "signature")}
        self._file.write({"at": head["at"], "what": "head", "of": "log", "details": shown})
        self._written += 1
        self._unsynced.set()
        if self._anchor:
            await self._sync_now()  # an anchor that knows of lines which a loss of power takes would cry "cut"
            await self._send(json.dumps(head, separators=(",", ":")).encode() + b"\n")

    async def _send(self, head: bytes) -> None:
        try:
            if isinstance(self._anchor, str):
                await trio.to_thread.run_sync(_append, Path(self._anchor), head)
            else:
                await _give(self._anchor, head)
        except (OSError, subprocess.CalledProcessError) as error:
            if not self._anchor_failing:
                self._anchor_failing = True
                why = (
                    (error.strerror or str(error)) if isinstance(error, OSError) else f"it ended with {error.returncode}"
                )
                self._note("warning", f"the anchor cannot be given the head: {why}; it is tried again with the next one")
        else:
            if self._anchor_failing:
                self._note("info", "the anchor takes heads again")
            self._anchor_failing = False

    def _note(self, level: str, text: str) -> None:
        self._report(Noted(level, f"audit: {text}"))


def _append(path: Path, head: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, head)
        os.fsync(fd)
    finally:
        os.close(fd)


async def _give(command: list[str], head: bytes) -> None:
    """Run a program with a head as its standard input. Raises OSError: it cannot be started, or takes too long;
    CalledProcessError: its status is not 0."""
    null = subprocess.DEVNULL
    with trio.move_on_after(ANCHOR_SECONDS) as patience:
        await trio.run_process(command, stdin=head, stdout=null, stderr=null, start_new_session=True, deliver_cancel=_end)
    if patience.cancelled_caught:
        raise OSError(errno.ETIME, f"it has not ended after {ANCHOR_SECONDS:g} s")


async def _end(process: trio.Process) -> None:
    """End the program and what it has started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
