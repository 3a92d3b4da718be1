"""The OS processes of drivers: starting, hearing and ending them.

kernel/devices/reincarnation.py, after MINIX 3's reincarnation server, decides; this file carries that out. A driver is
`python -m llmasos.drivers.host`, in a session of its own, so that a Ctrl-C meant for the kernel does not reach it. It
holds the reading end of a pipe into which nothing is ever written: when the kernel has gone, however it ended, the driver
reads end-of-file and leaves. (Linux's PDEATHSIG would go off when the starting *thread* ends.) By another pipe it gets a
secret, which is a part of its routing id: who connects to the drivers' socket under a driver's name is the child that was
started, and nobody else. The lines that a driver prints go to the kernel log.
"""

from __future__ import annotations

import hmac
import os
import secrets
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from llmasos.drivers.protocol import EX_UNUSABLE
from llmasos.kernel.edge.peers import Peer
from llmasos.kernel.events import DeviceConfig, DriverExited, DriverPrinted, Event
from llmasos.syscalls import runtime

QUIT_SECONDS = 3.0  # the time that a driver has to end in good order,
TERM_SECONDS = 2.0  # and then to follow SIGTERM
_MAX_LINE = 1000  # characters of a printed line
_LAST_WORDS = 0.5  # seconds to read what an ended driver printed (its own children may hold the pipe)

# Exit by signals that people and programs send, and that a driver's own work cannot cause; 0: it obeyed one.
_FROM_OUTSIDE = (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT)


def command(device: DeviceConfig, incarnation: int, directory: Path) -> list[str]:
    """The command that starts a driver; the same by hand, for debugging."""
    words = [*runtime.module("llmasos.drivers.host"), device.kind]
    words += ["--endpoint", runtime.endpoint(directory, runtime.DRIVERS)]
    words += ["--identity", f"{device.name}.{incarnation}", "--runtime", os.fspath(directory.absolute())]
    for key, value in device.options.items():
        words += ["--option", f"{key}={value}"]
    return words


class _Child:
    """One incarnation of a driver."""

    def __init__(self) -> None:
        self.process: trio.Process | None = None
        self.secret = secrets.token_hex(16)
        self.peer: Peer | None = None  # its connection
        self.killed = ""  # why the kernel killed it
        self.last_line = ""
        self.gone = trio.Event()

    def terminate(self) -> None:
        if self.process is None:  # only just being started
            self.killed = self.killed or "the kernel halts"
        else:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):  # the group, so that it leaves no children of its own
                os.killpg(self.process.pid, signal.SIGKILL)


class Supervisor:
    """The processes of all drivers. `report` takes events about them for the core."""

    def __init__(
        self, devices: list[DeviceConfig], directory: Path, report: Callable[[Event], None], nursery: trio.Nursery
    ) -> None:
        self._configs = {device.name: device for device in devices}
        self._directory = directory
        self._report = report
        self._nursery = nursery
        self._children: dict[tuple[str, int], _Child] = {}
        self.unusable: dict[str, str] = {}  # devices whose drivers say that they cannot start, and why

    def start(self, device: str, incarnation: int) -> None:
        child = self._children[device, incarnation] = _Child()
        self._nursery.start_soon(self._live, device, incarnation, child, name=f"driver {device}.{incarnation}")

    def kill(self, device: str, incarnation: int, reason: str) -> None:
        """SIGKILL; DriverExited follows."""
        if (child := self._children.get((device, incarnation))) is not None:
            child.killed = child.killed or reason
            child.kill()

    def peer(self, device: str, incarnation: int) -> Peer | None:
        """The connection of a driver, once it has said something."""
        child = self._children.get((device, incarnation))
        return child.peer if child is not None else None

    def admits(self, os_pid: int) -> bool:
        """Whether an OS process may be a driver's: it is a child of this kernel, or one is just being started."""
        processes = [child.process for child in self._children.values()]
        return any(process is None or os_pid in (0, process.pid) for process in processes)

    def named(self, peer: Peer) -> tuple[str, int] | None:
        """The device and incarnation of the driver that this connection is. None: it has ended, or another process says
        so."""
        device, number, secret, *_ = [*peer.identity.decode(errors="replace").rsplit(".", 2), "", ""]
        child = self._children.get((device, int(number) if number.isdecimal() else 0))
        if child is None or not hmac.compare_digest(secret.encode(), child.secret.encode()):
            return None
        if peer is not child.peer:
            if child.process is None or peer.os_pid not in (0, child.process.pid):
                return None
            child.peer = peer
        return device, int(number)

    def lost(self, peer: Peer) -> None:
        """A connection has ended."""
        for child in self._children.values():
            if child.peer is peer:
                child.peer = None

    def is_child(self, device: str, incarnation: int, os_pid: int) -> bool:
        """Whether that is the OS process of a driver, as the operating system says it."""
        child = self._children.get((device, incarnation))
        return child is not None and child.process is not None and child.process.pid == os_pid

    def os_pids(self) -> list[int]:
        return [child.process.pid for child in self._children.values() if child.process is not None]

    async def end_all(self, ask: Callable[[str, int], bool], hurry: trio.Event) -> None:
        """End every driver: by a Quit (`ask` sends it; False: the driver cannot be reached), then SIGTERM, then
        SIGKILL."""
        with trio.move_on_after(QUIT_SECONDS) as scope:
            for (device, incarnation), child in self._children.items():
                if not ask(device, incarnation):
                    child.terminate()
            await self._all_gone(hurry, scope)
        with trio.move_on_after(TERM_SECONDS) as scope:
            for child in self._children.values():
                child.terminate()
            await self._all_gone(hurry, scope)
        for child in list(self._children.values()):
            child.kill()
            await child.gone.wait()

    async def _all_gone(self, hurry: trio.Event, scope: trio.CancelScope) -> None:
        async def hasten() -> None:
            await hurry.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hasten)
            for child in list(self._children.values()):
                await child.gone.wait()
            nursery.cancel_scope.cancel()

    async def _live(self, device: str, incarnation: int, child: _Child) -> None:
        """Start one incarnation and stay until it has ended. Whatever happens, it does not outlive this task."""
        try:
            kills = _oom_kills()
            reason = await self._run(device, incarnation, child)
            status = child.process.returncode if child.process is not None else None
            if status == EX_UNUSABLE and child.process is not None:
                self.unusable[device] = child.last_line.partition(": ")[2] or child.last_line
            outside = status in _FROM_OUTSIDE and not child.killed and kills == _oom_kills()
            self._report(DriverExited(device, incarnation, reason, outside))
        finally:
            child.kill()
            del self._children[device, incarnation]
            child.gone.set()

    async def _run(self, device: str, incarnation: int, child: _Child) -> str:
        words = command(self._configs[device], incarnation, self._directory)
        try:
            told = _told(child.secret)
        except OSError as error:
            return f"it could not be started: {error}"
        try:
            child.process = process = await trio.lowlevel.open_process(
                [*words, "--secret", str(told)],
                pass_fds=[told],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**runtime.environment(), "PYTHONUNBUFFERED": "1"},
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be had to start it in
            return f"it could not be started: {error}"
        finally:
            os.close(told)
        if child.killed:
            child.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, device, incarnation, child)
            await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS
        if process.stdin is not None:
            await process.stdin.aclose()
        return _obituary(process.returncode, child)

    async def _listen(self, device: str, incarnation: int, child: _Child) -> None:
        assert child.process is not None
        assert child.process.stdout is not None
        async with child.process.stdout as stream:
            rest = b""
            try:
                async for chunk in stream:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._printed(device, incarnation, child, line)
                    if len(rest) > _MAX_LINE:
                        self._printed(device, incarnation, child, rest)
                        rest = b""
            except trio.BrokenResourceError as broken:
                self._printed(device, incarnation, child, b"what it prints cannot be read: %a" % broken.__cause__)
            self._printed(device, incarnation, child, rest)

    def _printed(self, device: str, incarnation: int, child: _Child, line: bytes) -> None:
        if text := line.decode(errors="replace").strip()[:_MAX_LINE]:
            child.last_line = text
            self._report(DriverPrinted(device, incarnation, text))


def _told(secret: str) -> int:
    """The end of a pipe at which a driver reads its secret. Raises OSError."""
    told, end = os.pipe()
    try:
        os.write(end, secret.encode())
    except OSError:
        os.close(told)
        raise
    finally:
        os.close(end)
    return told


def _oom_kills() -> int:
    """How many processes the operating system has killed for lack of memory since its boot; -1 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return -1
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), -1)


def _obituary(status: int | None, child: _Child) -> str:
    if child.killed:
        return f"killed by the kernel: {child.killed}"
    if status is not None and status < 0:
        try:
            cause = f"killed by {signal.Signals(-status).name}"
        except ValueError:
            cause = f"killed by signal {-status}"
    else:
        cause = f"exit status {status}"
    return f"{cause}: {child.last_line}" if child.last_line else cause
