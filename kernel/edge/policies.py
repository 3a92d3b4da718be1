"""Policies from modules of the user's: loaded from a file, kept beside the journal, and guarded.

As with Linux's sched_ext, what a user loads may be wrong and must not take the kernel with it. A guard stands around each
policy: one that raises, answers what is no answer, or takes too long says so in `fault`, answers as the simplest policy
until the kernel has taken it out (kernel/sched/force.py), and is never asked again. Unlike sched_ext's programs, which a
verifier has read, it is Python in the kernel's own process: it can do all that its user can. So a file must belong to the
user whose kernel this is, and a kernel of several users must not be given `Modules`.

A loop is interrupted by a signal, whose handler raises in the middle of it what `except Exception` does not catch. Time
is the processor time of the kernel's thread: a busy machine is no fault of the policy's. A loop that catches everything
and goes on cannot be ended, so the kernel ends itself, as if it were killed, and notes which policy its successor must
not take. The file's text is known by its digest, and kept under it: the next kernel goes on with what this one had,
wherever it is started.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import math
import os
import re
import signal
import stat
import sys
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec

from llmasos.kernel.clock import seconds
from llmasos.kernel.events import DeviceConfig
from llmasos.kernel.memory.evictions import Evictions
from llmasos.kernel.memory.victims import Victims
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policies import POLICIES, Sources
from llmasos.kernel.sched.policy import Policy
from llmasos.syscalls.atomic_file import opened, replacing
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.policy_file import DIGEST, SPEC

R = TypeVar("R")

SLOW_SECONDS = 0.005  # of processor time in a call; three such calls
SLOW_CALLS = 3
SLOW_WITHIN = 60.0  # in this many seconds are a fault,
HANG_SECONDS = 1.0  # and so is one call of this length
LOOK_SECONDS = 0.25  # between two looks at a call that goes on
ASLEEP_LOOKS = 40  # after which it is a hang, however little of the processor it takes
MOST_STRIKES = 8  # after which a call that does not end ends the kernel
LOOKS = 4  # for processes that are starved, in the time of ageing
MOST_BYTES = 1 << 20  # of a file
MOST_KEPT = 64  # files
FOLDER = "policies"  # beside the journal
NAMES = "names.json"  # in it: which text a name last stood for
_METHODS: dict[type[Any], tuple[str, ...]] = {
    Policy: ("woke", "key", "planned", "ran"),
    Victims: ("came", "ran", "gone", "choose"),
    Evictions: ("worth",),
}


class Hang(BaseException):
    """A call of a policy has gone on for too long."""


class PolicyFault(Exception):
    """A policy did wrong, in a simulation that is to end by that. Says which, what and where."""


class Watch(Protocol):
    """How long calls of policies take, and the end of one that does not come back."""

    def call(self, name: str, function: Callable[..., R], arguments: tuple[Any, ...]) -> tuple[R, float]:
        """The result, and the seconds of processor time that it took. Raises what the function raises, or Hang."""
        ...


class Untimed:
    """The watch of a simulation: its time is virtual, and a policy takes none of it."""

    def call(self, name: str, function: Callable[..., R], arguments: tuple[Any, ...]) -> tuple[R, float]:
        return function(*arguments), 0.0


class Watchdog:
    """The watch of a running kernel, in its main thread. The alarm goes on only while policies are called: an idle kernel
    sleeps. `end` is given the name of a policy that nothing ends."""

    def __init__(self, end: Callable[[str], NoReturn]) -> None:
        self._end = end
        self._armed = self._inside = False
        self._began = 0  # of the call, in nanoseconds of the thread's processor time
        self._calls = self._looks = self._strikes = 0
        self._name = ""
        signal.signal(signal.SIGALRM, self._look)

    def call(self, name: str, function: Callable[..., R], arguments: tuple[Any, ...]) -> tuple[R, float]:
        if not self._armed:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
        self._name, self._looks, self._strikes = name, 0, 0
        self._calls += 1
        self._began = time.thread_time_ns()
        try:
            try:
                self._inside = True
                result = function(*arguments)
            finally:
                self._inside = False
        except Hang:  # it may have come in the `finally`
            self._inside = False
            raise
        return result, (time.thread_time_ns() - self._began) / 1e9

    def _look(self, number: int, frame: types.FrameType | None) -> None:
        if not self._inside:
            if not self._calls:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._armed = False
            self._calls = 0
            return
        self._looks += 1
        took = (time.thread_time_ns() - self._began) / 1e9
        if took < HANG_SECONDS and self._looks < ASLEEP_LOOKS:
            return
        self._strikes += 1
        if self._strikes > MOST_STRIKES:
            self._end(self._name)
        raise Hang


class _Guard:
    """What guards have in common. `strict`: a fault ends the simulation instead."""

    def __init__(self, name: str, watch: Watch, *, strict: bool) -> None:
        self.name, self.fault = name, ""
        self.inner: Any = None  # the policy
        self._watch, self._strict = watch, strict
        self._slow: deque[float] = deque(maxlen=SLOW_CALLS)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the policy answers; None if it is faulty."""
        if self.fault:
            return None
        try:
            answer, took = self._watch.call(self.name, getattr(self.inner, method), arguments)
        except Exception as error:
            self.wrong(f"`{method}` raised {said(error)}{where(error, self.name)}", error)
            return None
        except KeyboardInterrupt:
            if self._strict:
                raise
            self.wrong(f"`{method}` raised KeyboardInterrupt")
            return None
        except BaseException as error:
            hung = isinstance(error, Hang)
            self.wrong(f"`{method}` does not come back" if hung else f"`{method}` raised {said(error)}", error)
            return None
        if took > SLOW_SECONDS:
            self._too_slow(method, took)
        return answer

    def _too_slow(self, method: str, took: float) -> None:
        now = time.monotonic()
        self._slow.append(now)
        if len(self._slow) == SLOW_CALLS and now - self._slow[0] <= SLOW_WITHIN:
            text = f"{SLOW_CALLS} calls in {SLOW_WITHIN:g} s took more than {SLOW_SECONDS * 1e3:g} ms of processor time"
            self.wrong(f"{text}; the last one, of `{method}`, {took * 1e3:.1f} ms")

    def number(self, method: str, *arguments: Any) -> Any:
        """The number that a policy answers, or None."""
        answer = self.ask(method, *arguments)
        if self.fault:
            return None
        if not isinstance(answer, int | float) or not math.isfinite(answer):
            self.wrong(f"`{method}` returned {_shown(answer)}, and a finite number was wanted; return an int")
            return None
        return answer

    def wrong(self, fault: str, cause: BaseException | None = None) -> None:
        self.fault = fault
        if self._strict:
            raise PolicyFault(f"policy {self.name}: {fault}") from cause


class GuardedPolicy(Policy):
    """A scheduling policy of the user's. While it is faulty and still in force, processes go in the order of calls."""

    def __init__(self, quantum: int, guard: _Guard) -> None:
        super().__init__(quantum)
        self.name, self._guard = guard.name, guard
        self._next_look = 0
        self._doubt = (0, 0, 0)  # a process that may be starved: its pid, `since`, and the steps then done

    @property
    def fault(self) -> str:  # type: ignore[override]
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
        """Whom the policy leaves ready beyond ageing, if that is not for lack of places. A round in which each that waits
        gets a quantum is allowed beside the time of ageing; and steps enough for a quantum must have passed since it was
        first noticed, so that a machine that was suspended proves nothing."""
        if now < self._next_look or not device.queue or self.fault:
            return
        self._next_look = now + aging // LOOKS
        first = min(device.queue, key=lambda process: (process.since, process.pid))
        waited, rounds = now - first.since, 1 + len(device.queue) // device.max_runs
        if waited <= aging + device.busy // max(1, device.steps) * self.quantum * rounds:
            return
        if self._doubt[:2] != (first.pid, first.since):
            self._doubt = first.pid, first.since, device.steps
        if device.steps - self._doubt[2] >= self.quantum:
            self._guard.wrong(f"it leaves process {first.pid} ready and unplanned for {seconds(waited):.1f} s")


class GuardedVictims(Victims):
    """A policy for victims of the user's. While it is faulty and still in force, the longest idle goes first."""

    def __init__(self, guard: _Guard) -> None:
        self.name, self._guard = guard.name, guard

    @property
    def fault(self) -> str:  # type: ignore[override]
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
            self._guard.wrong(f"`choose` returned {_shown(chosen)}, and one of the {len(there)} processes was wanted")
        return there[0] if there else None


class GuardedEvictions(Evictions):
    """A policy for evictions of the user's. While it is faulty and still in force, the least recently used goes first."""

    def __init__(self, guard: _Guard) -> None:
        self.name, self._guard = guard.name, guard

    @property
    def fault(self) -> str:  # type: ignore[override]
        return self._guard.fault

    def worth(self, image: Image, now: int) -> int:
        worth: int | None = self._guard.number("worth", image, now)
        return super().worth(image, now) if worth is None else worth


class Modules(Sources):
    """The kernel's policies, and those of the user's modules: `/PATH/FILE.py:CLASS`, or by digest one that was loaded
    before, `FILE.py:CLASS@DIGEST`. Texts are kept in `folder` (None: in memory only)."""

    def __init__(self, folder: Path | None, watch: Watch, *, strict: bool = False) -> None:
        self._folder, self._watch, self._strict = folder, watch, strict
        self._texts: dict[str, bytes] = {}  # by digest
        self._loaded: dict[str, Policy] = {}  # scheduling policies, the latest of each name
        self._made: set[str] = set()  # names
        self._classes: dict[tuple[str, str], type[Any]] = {}  # by digest and name

    def known(self) -> list[str]:
        return [*POLICIES, *(name for name, policy in self._loaded.items() if not policy.fault)]

    def scheduling(self, name: str, quantum: int) -> Policy:
        if not (spec := SPEC.fullmatch(name)):
            return super().scheduling(name, quantum)
        guarded = self.guarded(*self._load(name, spec, Policy), quantum)
        self._loaded[guarded.name] = guarded
        return guarded

    def victims(self, name: str) -> Victims:
        if not (spec := SPEC.fullmatch(name)):
            return super().victims(name)
        return GuardedVictims(self.guard(*self._load(name, spec, Victims)))

    def evictions(self, name: str) -> Evictions:
        if not (spec := SPEC.fullmatch(name)):
            return super().evictions(name)
        return GuardedEvictions(self.guard(*self._load(name, spec, Evictions)))

    def guarded(self, cls: type[Any], name: str, quantum: int) -> Policy:
        """The policy of a class, under a name, in its guard."""
        return GuardedPolicy(quantum, self.guard(cls, name, quantum))

    def guard(self, cls: type[Any], name: str, *arguments: Any) -> _Guard:
        """A new policy of a class, in its guard."""
        guard = _Guard(name, self._watch, strict=self._strict)
        try:
            guard.inner, _ = self._watch.call(name, cls, arguments)
        except (Exception, Hang, SystemExit) as error:
            why = "does not come back" if isinstance(error, Hang) else f"raised {said(error)}{where(error, name)}"
            why = f"{cls.__name__}({', '.join(map(str, arguments))}) {why}"
            if name not in self._made:
                raise Errno.EINVAL(f"policy {name}: {why}") from None
            guard.wrong(why)  # it could be made before, and is in force
        self._made.add(name)
        return guard

    def _load(self, name: str, spec: re.Match[str], base: type[Any]) -> tuple[type[Any], str]:
        """The class, and its name with the digest."""
        file, wanted, digest = spec["file"], spec["cls"], spec["digest"]
        if digest is None:
            text = _read(file)
            digest = hashlib.sha256(text).hexdigest()[:DIGEST]
        else:
            text = self._kept(name, digest)
        short = f"{os.path.basename(file)}:{wanted}@{digest}"
        self._refuse_out(short, digest)
        cls = self._classes.get((digest, wanted))
        if cls is None:
            cls = _class(self._run(text, file, digest, short), wanted, base, short)
            self._classes[digest, wanted] = cls
        check_class(cls, base, short)
        self._keep(text, digest, short.rpartition("@")[0])
        return cls, short

    def _run(self, text: bytes, file: str, digest: str, short: str) -> dict[str, Any]:
        """Execute a module; returns its names."""
        module = types.ModuleType(f"llmasos_policy_{digest}")
        module.__file__ = file
        try:
            code = compile(text, file, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise Errno.EINVAL(f"policy {short} is no Python: {error}") from None
        # So that tracebacks show lines, and dataclasses find the module that they are declared in.
        lines = text.decode(errors="replace").splitlines(keepends=True)
        linecache.cache[file] = (len(text), None, lines, file)
        sys.modules[module.__name__] = module
        try:
            self._watch.call(short, exec, (code, module.__dict__))
        except (Exception, Hang, SystemExit) as error:
            del sys.modules[module.__name__]
            why = "does not come back" if isinstance(error, Hang) else f"raises {said(error)}{where(error, short)}"
            raise Errno.EINVAL(f"policy {short}: the module {why} when it is loaded") from None
        return module.__dict__

    # --- the texts ---

    def recall(self, devices: Iterable[DeviceConfig]) -> list[tuple[str, str]]:
        """Let a configuration that names files which are not there any more, or not from here, mean the texts that an
        earlier kernel kept of files so called. Returns notes for the log."""
        known, notes = self._index(), []
        for device in devices:
            for kind in ("policy", "victims", "evictions"):
                name = getattr(device, kind)
                spec = SPEC.fullmatch(name)
                if spec is None or spec["digest"] or os.path.exists(spec["file"]):
                    continue
                short = f"{os.path.basename(spec['file'])}:{spec['cls']}"
                if short in known:
                    setattr(device, kind, f"{short}@{known[short]}")
                    notes.append(("warning", f"{name} is not there; what an earlier kernel kept of {short} goes on"))
        return notes

    def _index(self) -> dict[str, str]:
        """The digests of texts that are kept, by `FILE.py:CLASS`: the latest of each."""
        if self._folder is None:
            return {}
        try:
            return msgspec.json.decode((self._folder / NAMES).read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):  # there is none yet
            return {}

    def _enter(self, folder: Path, short: str, digest: str) -> None:
        index = self._index()
        if index.get(short) != digest:
            with replacing(folder / NAMES) as descriptor:
                os.write(descriptor, msgspec.json.encode({**index, short: digest}))

    def _kept(self, name: str, digest: str) -> bytes:
        text = self._texts.get(digest)
        if text is None and self._folder is not None:
            path = self._folder / f"{digest}.py"
            text = _read(os.fspath(path))
            if hashlib.sha256(text).hexdigest()[:DIGEST] != digest:
                raise Errno.EIO(f"the text of policy {name} in {path} has been changed; load its file again")
        if text is None:
            raise Errno.ENOENT(f"no policy {name!r} was loaded into this kernel; name its file: /PATH/FILE.py:CLASS")
        return text

    def _keep(self, text: bytes, digest: str, short: str) -> None:
        known = digest in self._texts
        self._texts[digest] = text
        if self._folder is None:
            return
        path = self._folder / f"{digest}.py"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._enter(self._folder, short, digest)
            if known:
                return
            with replacing(path, durable=True) as descriptor, os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(text)
            kept = sorted(self._folder.glob("*.py"), key=lambda one: one.stat().st_mtime_ns)
            for old in [one for one in kept if one.stem not in self._texts][: max(0, len(kept) - MOST_KEPT)]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise Errno.EIO(f"the policy's text cannot be kept in {self._folder}: {error.strerror}") from None

    def _refuse_out(self, short: str, digest: str) -> None:
        if self._folder is not None and (self._folder / f"{digest}.out").exists():
            raise Errno.EINVAL(f"policy {short} hung an earlier kernel and is not taken again; change its file")

    def forget(self) -> None:
        """The system was halted, and nothing of it is to come back: remove the texts."""
        if self._folder is None:
            return
        for one in (*self._folder.glob("*.py"), *self._folder.glob("*.out"), self._folder / NAMES):
            one.unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def end_kernel(folder: Path | None) -> Callable[[str], NoReturn]:
    """What is done about a policy that nothing ends: note its digest for the next kernel, and end this one at once."""

    def end(name: str) -> NoReturn:
        if folder is not None:
            (folder / f"{name.rpartition('@')[2]}.out").touch()
        os.write(2, f"the kernel ends: its policy {name} does not come back, and nothing interrupts it\n".encode())
        os._exit(70)

    return end


def _read(path: str) -> bytes:
    """The text of a module. It must be a regular file that nobody but its user (or root) can write."""
    if not os.path.isabs(path):
        raise Errno.EINVAL(f"the policy's file {path!r} needs an absolute path: the kernel has a directory of its own")
    try:
        with opened(path) as descriptor:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Errno.EINVAL(f"the policy's file {path} is no regular file")
            if found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH:
                raise Errno.EPERM(
                    f"the policy's file {path} can be written by other users, and would be code in the kernel; it must "
                    "be your own (chmod o-w, or copy it)"
                )
            text = os.read(descriptor, MOST_BYTES + 1)
    except OSError as error:
        raise Errno.ENOENT(f"the policy's file {path} cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise Errno.EINVAL(f"the policy's file {path} has more than {MOST_BYTES} bytes")
    return text


def _class(names: dict[str, Any], wanted: str, base: type[Any], short: str) -> type[Any]:
    found = names.get(wanted)
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found
    own = [
        name
        for name, one in names.items()
        if isinstance(one, type) and issubclass(one, base) and one.__module__ == names["__name__"]
    ]
    what = "is there, but is no subclass of" if wanted in names else "is not there; wanted is a subclass of"
    there = f"; of that kind there are: {', '.join(own)}" if own else ""
    raise Errno.EINVAL(f"policy {short}: {wanted} {what} {base.__name__}{there}")


def check_class(cls: type[Any], base: type[Any], short: str) -> None:
    """EINVAL if the class cannot be a policy of the kind `base`: a method is none, or takes other arguments."""
    if not issubclass(cls, base):
        raise Errno.EINVAL(f"policy {short}: {cls.__name__} is no subclass of {base.__name__}")
    for name in _METHODS[base]:
        method, wanted = getattr(cls, name), inspect.signature(getattr(base, name))
        form = f"{name}{wanted.replace(return_annotation=inspect.Signature.empty)}"
        if not inspect.isfunction(method) or inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method):
            raise Errno.EINVAL(f"policy {short}: `{name}` is no plain method; wanted is {form}")
        try:
            inspect.signature(method).bind(*wanted.parameters)
        except TypeError as error:
            raise Errno.EINVAL(f"policy {short}: `{name}` takes other arguments ({error}); wanted is {form}") from None


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def where(error: BaseException, name: str) -> str:
    """The line of the policy's file at which an error was raised."""
    file = name.partition(":")[0]
    lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if os.path.basename(one.filename) == file]
    return f" ({file}, line {lines[-1]})" if lines else ""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # the policy's own
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"
