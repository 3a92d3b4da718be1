"""The calls of one connection that are in flight, and the search for a kernel: what both clients share.

No input or output but the probe of the runtime directory: the clients send the frames made here, and hand in the frames
that arrive. A waiter is the client's own: the thing that it wakes up when the answer is there.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from llmasos.syscalls import readiness, runtime, scarce, wire, zeromq
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_NAME
from llmasos.syscalls.records import BootInfo, Signal
from llmasos.syscalls.remote import Place, Remote
from llmasos.syscalls.table import BY_RECORD, Call, Decode, Fork, Kill, Leave, Restore, Spawn, Wait

W = TypeVar("W")
CONNECT_SECONDS = 10.0  # a booting kernel answers within this
POLL_SECONDS = 0.02


class Calls(Generic[W]):
    """The call behind each sequence number, and its waiter. `sent` is the highest number sent so far, `seen` the position
    of the journal that the latest answer told."""

    def __init__(self) -> None:
        self._seqs = itertools.count(1)
        self._waiting: dict[int, tuple[W, Call[Any]]] = {}
        self._left: dict[int, Call[Any]] = {}  # sent, taken back, and not yet answered
        self.sent = self.seen = 0

    def begin(self, call: Call[Any], waiter: W) -> tuple[int, bytes]:
        """The sequence number of a new call and the frame to send."""
        seq = next(self._seqs)
        frame = wire.encode_request(seq, call)
        self._waiting[seq] = waiter, call
        return seq, frame

    def answer(self, frame: bytes, hand: Callable[[W, wire.Reply], object]) -> list[bytes]:
        """Hand a reply to its waiter; drop it if the call was taken back, and return the frames that undo what it did.
        Can be repeated after an interruption.

        Raises SyscallError if the connection is useless from here on.
        """
        reply = wire.decode_reply(frame)
        if reply.seq == 0 and reply.errno is not Errno.OK:  # the kernel could not read a frame of ours
            raise SyscallError(reply.errno, wire.reason(reply))
        self.seen = reply.position or self.seen
        if (waiting := self._waiting.get(reply.seq)) is not None:
            hand(waiting[0], reply)
            del self._waiting[reply.seq]
            return []
        call = self._left.pop(reply.seq, None)
        return self.undo(call, reply) if call is not None else []

    def undo(self, call: Call[Any], reply: wire.Reply) -> list[bytes]:
        """The frames that undo an answered call of which its caller will not hear: nobody would end the processes that it
        has made. They are not waited for."""
        if not isinstance(call, Spawn | Fork | Restore) or reply.errno is not Errno.OK:
            return []
        pids = wire.result(reply, call) if isinstance(call, Fork) else [wire.result(reply, call)]
        ends = [end for pid in pids for end in (Kill(pid, Signal.KILL), Wait(pid))]
        return [wire.encode_request(next(self._seqs), end) for end in ends]

    def __len__(self) -> int:
        return len(self._waiting)

    def seq_of(self, waiter: W) -> int:
        """The number of the call that this waits for; 0: there is none."""
        return next((seq for seq, (one, _) in self._waiting.items() if one is waiter), 0)

    def take_back(self, seq: int) -> bytes | None:
        """Forget a call; returns the frame that cancels it in the kernel, or None if it has been answered."""
        if (waiting := self._waiting.pop(seq, None)) is None:
            return None
        if seq <= self.sent:
            self._left[seq] = waiting[1]
        return wire.encode_cancel(next(self._seqs), seq)

    def unanswered(self, after: int) -> Iterator[tuple[int, bytes]]:
        """The waiting calls above sequence number `after`, in order, as frames to send to the next kernel."""
        for seq in [seq for seq in self._waiting if seq > after]:
            if seq in self._waiting:  # still
                yield seq, wire.encode_request(seq, self._waiting[seq][1])

    def left(self) -> list[bytes]:
        """The frames that cancel the calls taken back while the connection was lost."""
        return [wire.encode_cancel(next(self._seqs), seq) for seq in self._left]

    def settled(self) -> None:
        """A kernel has taken this program up, and been told what was taken back. In a recovered kernel only a decode goes
        on without a waiter; until its end is reported, every later kernel is told too."""
        self._left = {seq: call for seq, call in self._left.items() if isinstance(call, Decode) and call.wait}

    def must_leave(self, place: Place, boot: BootInfo | None) -> bool:
        """Whether a kernel has to be told before the connection is closed: one on another machine takes a program that
        says nothing for cut off, and waits for it. Without `boot` nothing was heard of it, but it may be attaching this
        program. Its answer is to be awaited, where there will be one: what libzmq has not sent when the OS process ends
        nobody sends."""
        attached = bool(boot.ticket) if boot is not None else self.sent > 0
        return isinstance(place, Remote) and attached

    def leave(self) -> tuple[int, bytes]:
        """The number of the call that tells it, and its frame."""
        return (seq := next(self._seqs)), wire.encode_request(seq, Leave())

    def abandon(self) -> list[tuple[W, Call[Any]]]:
        """Forget all calls, and return them: they will not be answered."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._left.clear()
        return waiting


def endpoint(place: Place) -> str | Remote:
    return runtime.endpoint(place) if isinstance(place, Path) else place


def kernel_listens(place: Place) -> bool:
    """True: connect. False: a kernel is booting there. Raises SyscallError ECONNREFUSED if none runs; EAGAIN: this
    program has no descriptor to look."""
    if isinstance(place, Remote):
        return True  # to connect is the only way to know
    directory = place
    try:
        zeromq.check_endpoint(runtime.endpoint(directory))
        if runtime.listening(directory):
            return True
        held = runtime.holder(directory)
    except ValueError as error:
        raise SyscallError(Errno.EINVAL, str(error)) from None
    except PermissionError:
        raise Errno.EPERM(_not_yours(directory)) from None
    except OSError as error:
        raise scarce.refused(error) from None
    if held is None and runtime.is_system(directory):
        raise Errno.ECONNREFUSED(
            f"the machine's kernel does not run now ({directory}); who administers the machine starts it (`systemctl "
            "start llmasos`), and `llmasos boot --detach` starts one of your own"
        )
    if held is None:
        raise SyscallError(
            Errno.ECONNREFUSED,
            f"no kernel runs in {directory}; start one with `llmasos boot`, "
            "or name the runtime directory of one that runs (LLMASOS_RUNTIME)",
        )
    return False


def _not_yours(directory: Path) -> str:
    if not runtime.is_system(directory):
        return f"the runtime directory {directory} belongs to another user; name your own"
    try:
        path = directory / runtime.PROGRAMS
        who = f"members of the group {path.group()}" if path.stat().st_mode & 0o020 else "others"
    except (KeyError, OSError):
        who = "others"
    return f"the machine's kernel ({directory}) is for {who}; `llmasos boot --detach` starts one of your own"


def retry_pause() -> float:
    """Seconds until a refused connection is tried again; not the same for all that were refused together."""
    return POLL_SECONDS * random.uniform(0.5, 1.5)


def silent(directory: Place, seconds: float) -> SyscallError:
    if isinstance(directory, Remote):
        return Errno.ETIME(f"{directory} has not answered within {seconds:g} s; is the address right, and the way open?")
    if told := readiness.noted(directory):
        return Errno.ETIME(
            f"the kernel of {directory} (pid {runtime.holder(directory)}) is booting, and takes programs when that is "
            f"done ({told}); try again"
        )
    return SyscallError(
        Errno.ETIME,
        f"the kernel of {directory} (pid {runtime.holder(directory)}) has not answered within {seconds:g} s; "
        "see its log, or end it and boot again",
    )


class Overdue(SyscallError):
    """The ETIME of a client's own `timeout`; that of a call's argument comes from the kernel."""


def overdue(call: Call[Any], seconds: float) -> SyscallError:
    name = BY_RECORD[type(call)].name
    return Overdue(Errno.ETIME, f"not answered within {seconds:g} s, and taken back ({name})")


def unanswered(call: Call[Any], why: SyscallError) -> SyscallError:
    return SyscallError(why.errno, f"{BY_RECORD[type(call)].name}: {why.reason}")


def away(directory: Place) -> SyscallError:
    return SyscallError(Errno.EPIPE, f"the kernel of {directory} has died, and no other has come yet")


def crowded() -> SyscallError:
    return SyscallError(Errno.EAGAIN, "too many requests wait for the kernel; await some answers first")


def default_name() -> str:
    """The name under which a program attaches unless it chooses one: that of its script or module."""
    script = Path(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable)
    name = script.parent.name if script.stem == "__main__" else script.stem
    shown = "".join(c if c.isprintable() else "?" for c in name)  # file names may hold characters that names may not
    return (shown or f"python-{os.getpid()}")[:MAX_NAME]
