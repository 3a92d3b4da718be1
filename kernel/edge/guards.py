"""Guards around policies of the user's: what one does wrong costs it its place, and not the kernel its life.

As with Linux's sched_ext, what a user loads may be wrong. A policy that raises, answers what is no answer, or takes too
long says so in `fault`, answers as the simplest policy until the kernel has taken it out (kernel/sched/force.py), and is
never asked again. Unlike sched_ext's programs, which a verifier has read, it is Python in the kernel's own process, so
guards help against mistakes, not against malice.

A loop is interrupted by a signal, whose handler raises in the middle of it what `except Exception` does not catch.
(Another thread could set an exception too, but nobody could say whether it arrives in the policy or in the kernel behind
it.) Time is the processor time of the kernel's thread: a busy machine is no fault of the policy's. A loop that catches
everything and goes on cannot be ended, so the kernel ends itself, as if it were killed, and notes which policy its
successor must not take (standing.py).
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol, TypeVar

from llmasos.kernel.clock import seconds
from llmasos.kernel.edge.standing import Standing
from llmasos.kernel.memory.evictions import Evictions
from llmasos.kernel.memory.victims import Victims
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policy import Policy

R = TypeVar("R")

SLOW_SECONDS = 0.005  # of processor time in a call; three such calls
SLOW_CALLS = 3
SLOW_WITHIN = 60.0  # in this many seconds are a fault,
HANG_SECONDS = 1.0  # and so is one call of this length
LOOK_SECONDS = 0.25  # between two looks at a call that goes on
ASLEEP_LOOKS = 40  # after which it is a hang, however little of the processor it takes
MOST_STRIKES = 8  # after which a call that does not end ends the kernel
MOST_NUMBER = 1 << 63  # below this a number is, and above its negative
LOOKS, MOST_LOOKS = 4, 64  # for processes that are starved, in the time of ageing: usually, and when one nearly is


class Hang(BaseException):
    """A call of a policy has gone on for too long."""


class PolicyFault(Exception):
    """A policy did wrong, in a simulation that is to end by that. Says which, what and where."""


class Watch(Protocol):
    """How long calls of policies take, and the end of one that does not come back."""

    def call(self, name: str, function: Callable[..., R], arguments: tuple[object, ...]) -> tuple[R, float]:
        """The result, and the seconds of processor time that it took. Raises what the function raises, or Hang."""
        ...


class Untimed:
    """The watch of a simulation: its time is virtual, and a policy takes none of it. A call that does not come back is
    ended all the same, after HANG_SECONDS of the process's own processor time; in its main thread, as signals go."""

    def call(self, name: str, function: Callable[..., R], arguments: tuple[object, ...]) -> tuple[R, float]:
        if threading.current_thread() is not threading.main_thread():
            return function(*arguments), 0.0
        before = signal.signal(signal.SIGVTALRM, _hang)
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS, HANG_SECONDS)  # again, should the call catch the first
        try:
            return function(*arguments), 0.0
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)


def _hang(number: int, frame: types.FrameType | None) -> NoReturn:
    raise Hang


class Watchdog:
    """The watch of a running kernel, in its main thread. The alarm goes on only while policies are called: an idle kernel
    sleeps. `standing` is told of each call, and of a policy that nothing ends; then `end` ends the kernel."""

    def __init__(self, standing: Standing, end: Callable[[str], NoReturn]) -> None:
        self._standing, self._end = standing, end
        self._armed = self._inside = False
        self._began = 0  # of the call, in nanoseconds of the thread's processor time
        self._calls = self._looks = self._strikes = 0
        self._name = ""
        signal.signal(signal.SIGALRM, self._look)

    def call(self, name: str, function: Callable[..., R], arguments: tuple[object, ...]) -> tuple[R, float]:
        if not self._armed:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
        self._name, self._looks, self._strikes = name, 0, 0
        self._calls += 1
        self._standing.enter(name, getattr(function, "__name__", "call"))
        self._began = time.thread_time_ns()
        try:
            try:
                self._inside = True
                result = function(*arguments)
            finally:
                self._inside = False
                self._standing.leave()
        except Hang:  # it may have come in the `finally`
            self._inside = False
            self._standing.leave()
            raise
        return result, (time.thread_time_ns() - self._began) / 1e9

    def _look(self, number: int, frame: types.FrameType | None) -> None:
        if not self._inside:
            if not self._calls:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._armed = False
            else:
                self._standing.looked(self._name)
            self._calls = 0
            return
        self._looks += 1
        took = (time.thread_time_ns() - self._began) / 1e9
        if took < HANG_SECONDS and self._looks < ASLEEP_LOOKS:
            return
        self._strikes += 1
        if self._strikes > MOST_STRIKES:
            self._standing.hung(self._name)
            self._end(self._name)
        raise Hang


def stop_watching() -> None:
    """No policy is called any more. An alarm behind this would find Python without its handler, and end the process."""
    signal.setitimer(signal.ITIMER_REAL, 0)


class Guard:
    """What guards have in common. `strict`: a fault ends the simulation instead. `standing` is told of a fault."""

    def __init__(self, name: str, watch: Watch, standing: Standing, *, strict: bool) -> None:
        self.name, self.fault = name, ""
        self.inner: Any = None  # the policy
        self._watch, self._standing, self._strict = watch, standing, strict
        self._slow: deque[float] = deque(maxlen=SLOW_CALLS)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the policy answers; None if it is faulty."""
        if self.fault:
            return None
        try:
            answer, took = self._watch.call(self.name, getattr(self.inner, method), arguments)
        except Exception as error:  # whatever a policy of the user's raises is its fault
            self.wrong(f"`{method}` raised {said(error)}{where(error, self.name)}", error)
            return None
        except KeyboardInterrupt:
            if self._strict or isinstance(self._watch, Untimed):  # a person's
                raise
            self.wrong(f"`{method}` raised KeyboardInterrupt")
            return None
        except BaseException as error:  # a Hang, SystemExit: no policy ends the kernel
            hung = isinstance(error, Hang)
            what = "does not come back" if hung else f"raised {said(error)}"
            self.wrong(f"`{method}` {what}{where(error, self.name)}", error)
            return None
        if took > SLOW_SECONDS:
            self._too_slow(method, took)
        return answer

    def _too_slow(self, method: str, took: float) -> None:
        now = time.monotonic()
        self._slow.append(now)
        if len(self._slow) == SLOW_CALLS and now - self._slow[0] <= SLOW_WITHIN:
            text = f"{SLOW_CALLS} calls in {SLOW_WITHIN:g} s took more than {SLOW_SECONDS * 1e3:g} ms of processor time"
            self.wrong(f"{text}; the last one, of `{method}`, {took * 1e3:.1f} ms{self.line(method)}")

    def number(self, method: str, *arguments: Any) -> Any:
        """The number that a policy answers, or None."""
        answer = self.ask(method, *arguments)
        if self.fault:
            return None
        if not isinstance(answer, int | float) or not -MOST_NUMBER < answer < MOST_NUMBER:  # false for nan
            self.wrong(
                f"`{method}` returned {_shown(answer)}, and a number of less than 64 bits was wanted; return an int"
                f"{self.line(method)}"
            )
            return None
        return answer

    def line(self, method: str) -> str:
        """Where a method begins, if it stands in the policy's own file."""
        found = getattr(self.inner, method, None)
        code = getattr(found, "__code__", None)
        if not isinstance(code, types.CodeType) or getattr(found, "__module__", "").startswith("llmasos.kernel."):
            return ""
        file = os.path.basename(code.co_filename)
        if self.name.partition(":")[0] not in ("", file):
            return ""
        return f" ({file}, line {code.co_firstlineno})"

    def wrong(self, fault: str, cause: BaseException | None = None) -> None:
        self.fault = fault
        if self._strict:
            raise PolicyFault(f"policy {self.name}: {fault}") from cause
        self._standing.out(self.name, fault)


class GuardedPolicy(Policy):
    """A scheduling policy of the user's. While it is faulty and still in force, processes go in the order of calls."""

    def __init__(self, quantum: int, guard: Guard) -> None:
        super().__init__(quantum)
        self.name, self._guard = guard.name, guard
        self._next_look = self._looked = self._busy = 0  # the last look: when, and how long the device had worked
        self._seen: dict[int, tuple[int, int, int]] = {}  # who waits, since when; the device's time and steps then

    @property
    def fault(self) -> str:  # type: ignore[override]  # read only here
        return self._guard.fault

    def woke(self, process: LLMProcess) -> None:
        self._guard.ask("woke", process)

    def key(self, process: LLMProcess) -> int:
        key = self._guard.number("key", process)
        return self.stamp() if key is None else key

    def planned(self, first: LLMProcess, waiting: bool) -> None:
        self._guard.ask("planned", first, waiting)

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self._guard.ask("ran", process, tokens)

    def look(self, device: Device, now: int, aging: int) -> None:
        """Whom the policy leaves ready beyond ageing while the device works for others, if places are not lacking: a
        round in which each that waits gets a quantum is allowed beside the time of ageing. Time is the device's, of a
        quantum of steps at least, and since this policy is in force: a machine that was suspended proves nothing, and
        neither does what another policy has left."""
        if now < self._next_look or not device.queue or self.fault:
            return
        busy, elapsed = device.busy, max(1, now - self._looked)
        since_last = busy - self._busy
        seen = {}
        for process in device.queue:
            at, began, steps = self._seen.get(process.pid, (-1, busy, device.steps))
            if at != process.since:  # new here: the device worked evenly between two looks
                late = min(elapsed, now - process.since) if self._looked else 0
                began, steps = busy - since_last * late // elapsed, device.steps
            seen[process.pid] = process.since, began, steps
        self._seen, self._looked, self._busy = seen, now, busy
        first = min(seen, key=lambda pid: (seen[pid][1], pid))
        _, began, steps = seen[first]
        rounds = 1 + len(device.queue) // device.max_runs
        left = aging + busy // max(1, device.steps) * self.quantum * rounds - (busy - began)
        if left < 0 and device.steps - steps >= self.quantum:
            self._guard.wrong(
                f"it leaves process {first} ready and unplanned for {seconds(busy - began):.2f} s of the device"
            )
        self._next_look = now + max(aging // MOST_LOOKS, min(aging // LOOKS, left))


class GuardedVictims(Victims):
    """A policy for victims of the user's. While it is faulty and still in force, the longest idle goes first."""

    def __init__(self, guard: Guard) -> None:
        self.name, self._guard = guard.name, guard

    @property
    def fault(self) -> str:  # type: ignore[override]  # read only here
        return self._guard.fault

    def came(self, process: LLMProcess) -> None:
        self._guard.ask("came", process)

    def ran(self, process: LLMProcess) -> None:
        self._guard.ask("ran", process)

    def gone(self, process: LLMProcess) -> None:
        self._guard.ask("gone", process)

    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> LLMProcess | None:
        there = list(sleepers)
        chosen: object = self._guard.ask("choose", list(there), now) if there else None
        for process in there:
            if process is chosen:
                return process
        if there and not self._guard.fault:
            text = f"`choose` returned {_shown(chosen)}, and one of the {len(there)} processes was wanted"
            self._guard.wrong(f"{text}{self._guard.line('choose')}")
        return there[0] if there else None


class GuardedEvictions(Evictions):
    """A policy for evictions of the user's. While it is faulty and still in force, the least recently used goes first."""

    def __init__(self, guard: Guard) -> None:
        self.name, self._guard = guard.name, guard

    @property
    def fault(self) -> str:  # type: ignore[override]  # read only here
        return self._guard.fault

    def worth(self, image: Image, now: int) -> int:
        worth: int | None = self._guard.number("worth", image, now)
        return super().worth(image, now) if worth is None else worth


def end_kernel(name: str) -> NoReturn:
    """What is done about a policy that nothing ends: this kernel ends at once."""
    os.write(2, f"the kernel ends: its policy {name} does not come back, and nothing interrupts it\n".encode())
    os._exit(70)


def said(error: BaseException) -> str:
    """An error in one line; one that cannot say what it is, by its type alone."""
    try:
        text = str(error)
    except Exception:  # the policy's own
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def where(error: BaseException, name: str) -> str:
    """The line of the policy's file, or of the file of a class that was given as such, at which an error was raised."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__]
    wanted = name.partition(":")[0] or (os.path.basename(frames[0].filename) if frames else "")
    lines = [one.lineno for one in frames if os.path.basename(one.filename) == wanted]
    return f" ({wanted}, line {lines[-1]})" if lines else ""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # the policy's own
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"
