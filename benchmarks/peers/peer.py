"""A running engine as the comparison sees it: a worker behind its guard, asked over pipes, out of the way when not asked.

Some engines' threads spin while they wait for work. So all processes of an engine are stopped (SIGSTOP) but for its turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parents[2]
CLOSE_SECONDS = 20.0
_SETTLE_SECONDS = 30.0  # for a process to stop: it may be in a long system call
_MAX_ANSWER = 1 << 20  # bytes


class PeerError(Exception):
    """An engine that is of no more use: why. Its worker has ended or is to be closed."""


class Peer:
    """A worker: started when made, ended by close(), or when this process ends, however that is.

    `log` takes what the engine prints. Raises PeerError if it cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        cpus: Sequence[int],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        self._buffer = b""
        self._answers = True  # it has not failed to
        life, self._life = os.pipe()
        guard = [sys.executable, "-m", "benchmarks.peers.guard", str(life), ",".join(map(str, cpus))]
        try:
            with log.open("wb") as printed:
                self._guard = subprocess.Popen(
                    [*guard, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=printed,
                    cwd=ROOT,
                    env={**os.environ, **(environment or {})},
                    pass_fds=[life],
                    start_new_session=True,  # Ctrl-C is for us; the guard hears of our end by its pipe
                )
        except OSError as error:
            os.close(self._life)
            raise PeerError(f"{name} could not be started: {error}") from None
        finally:
            os.close(life)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- asking ---

    def ask(self, seconds: float, **request: Any) -> Any:
        """The answer to a request. Raises PeerError if the worker says no, says nothing for so long, or ends."""
        deadline = time.monotonic() + seconds
        self._answers, answered = False, self._answers
        if not answered:
            raise self.error("has failed before")
        try:
            self._send(json.dumps(request).encode() + b"\n", deadline)
            line = self._line(deadline)
        except TimeoutError:
            raise self.error(f"did not answer {request['do']} within {seconds:g} s") from None
        except (BrokenPipeError, EOFError):
            raise self.error(f"ended during {request['do']}: {self._obituary()}") from None
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        match answer:
            case {"ok": result}:
                self._answers = True
                return result
            case {"error": str(reason)}:
                self._answers = True
                raise self.error(f"failed to {request['do']}: {reason}")
            case _:
                raise self.error(f"answered {request['do']} with {line[:100]!r}, which is no answer")

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._guard.stdin is not None
        pipe = self._guard.stdin.fileno()
        os.set_blocking(pipe, False)
        while data:
            if not select.select([], [pipe], [], max(0.0, deadline - time.monotonic()))[1]:
                raise TimeoutError
            data = data[os.write(pipe, data) :]

    def _line(self, deadline: float) -> bytes:
        assert self._guard.stdout is not None
        pipe = self._guard.stdout.fileno()
        while b"\n" not in self._buffer and len(self._buffer) < _MAX_ANSWER:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(pipe, 1 << 16)
            if not piece:
                raise EOFError
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def error(self, what: str) -> PeerError:
        """What went wrong with it, and where to read more."""
        return PeerError(f"{self.name} {what} (it printed: {self._log})")

    def _obituary(self) -> str:
        try:
            status = self._guard.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it has closed its output"
        if status == 128 + signal.SIGKILL:
            return "killed by SIGKILL; was there too little memory?"
        return f"exit status {status}" if status <= 128 else f"killed by signal {status - 128}"

    # --- its processes ---

    def processes(self) -> list[psutil.Process]:
        """The worker and all it has started."""
        try:
            return psutil.Process(self._guard.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    @contextlib.contextmanager
    def turn(self) -> Iterator[Self]:
        """Let it run; it is stopped again at the end. Raises PeerError if it does not stop."""
        self.resume()
        yield self
        self.pause()

    def pause(self) -> None:
        """Stop all its processes. Raises PeerError if one does not."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while running := [process for process in self.processes() if not _at_rest(process)]:
            if time.monotonic() > deadline:
                raise self.error(f"has a process ({running[0].pid}) that does not stop")
            for process in running:
                _signal(process, signal.SIGSTOP)
            time.sleep(0.005)

    def resume(self) -> None:
        """Let all its processes go on, those that others wait for first."""
        for process in reversed(self.processes()):
            _signal(process, signal.SIGCONT)

    def memory(self) -> tuple[int, str]:
        """Bytes of all its processes, and what they are: PSS (a page that n processes share counts 1/n for each), or RSS
        where the system does not tell."""
        with contextlib.suppress(psutil.AccessDenied, AttributeError):
            return self._sum(lambda process: process.memory_full_info().pss), "PSS"
        return self._sum(lambda process: process.memory_info().rss), "RSS"

    def _sum(self, measure: Callable[[psutil.Process], int]) -> int:
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                total += measure(process)
        return total

    def close(self) -> None:
        """End it: asked, then killed. May be called again."""
        if self._life < 0:
            return
        self.resume()
        with contextlib.suppress(PeerError):
            self.ask(CLOSE_SECONDS, do="quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(CLOSE_SECONDS)
        os.close(self._life)  # the guard kills what is left
        self._life = -1
        for pipe in (self._guard.stdin, self._guard.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._guard.wait()


def _at_rest(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
