"""A kernel that dies at chosen points and comes back: real sockets, a real lock, and inside a model of what a kernel with
a journal promises (tickets, outcomes by sequence number, decodes that go on), small enough to count everything again."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from llmasos.kernel.edge import lock
from llmasos.syscalls import runtime, wire
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import BootInfo, DecodeResult, Finish
from llmasos.syscalls.table import Attach, Decode, Feed, Read

PATIENCE = 60.0
ENDLESS = 1 << 20  # a decode of so many tokens does not end by itself


class Death(Exception):
    """Of the kernel, as by SIGKILL."""


class Mortal:
    """Dies `deaths` times: before it reads a message, after acting on it but before answering, or when it has answered,
    each time with `chance` per message, and comes back a little later. What lives on over deaths is its journal."""

    def __init__(self, place: Path, *, deaths: int = 0, chance: float = 0.1, seed: int = 0) -> None:
        self.place = place
        self.deaths, self._chance, self._random = deaths, chance, random.Random(seed)
        self.lives = 0
        self.ticketless = False  # keeps no journal
        self.up = threading.Event()
        self._back = threading.Event()  # may it come back?
        self._back.set()
        self._kill = threading.Event()
        self._end = threading.Event()
        # the journal
        self.tickets: dict[bytes, int] = {}
        self.outcomes: dict[tuple[int, int], bytes] = {}
        self.fed: list[int] = []  # the first token of each Feed that was done
        self.decoding: dict[tuple[int, int], int] = {}  # (program, seq) -> turns until it ends
        # what is forgotten
        self._parked: dict[tuple[int, int], bytes] = {}
        self.seen: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator[Mortal]:
        """Run until the end of the `with`, then halt in good order (unless it is dead just then)."""
        lock.prepare(self.place)
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            assert self.up.wait(PATIENCE)
            yield self
        finally:
            self._end.set()
            self._back.set()
            thread.join()

    def kill(self, *, back: bool = True) -> None:
        """Kill it now; without `back` it stays dead until `revive`."""
        if not back:
            self._back.clear()
        life = self.lives
        self._kill.set()
        while self.up.is_set() and self.lives == life:  # it may be back before this thread has had its turn
            threading.Event().wait(0.005)

    def revive(self) -> None:
        self._back.set()
        assert self.up.wait(PATIENCE)

    def halt(self) -> None:
        """Halt in good order."""
        self._end.set()
        while self.up.is_set():
            threading.Event().wait(0.005)

    def _run(self) -> None:
        while True:
            held = lock.hold(self.place)
            (self.place / runtime.PROGRAMS).unlink(missing_ok=True)
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            router = context.socket(zmq.ROUTER)
            router.setsockopt(zmq.LINGER, 0)
            router.bind(runtime.endpoint(self.place))
            self._parked.clear()
            self._programs: dict[bytes, int] = {}
            (self.place / runtime.JOURNAL).touch()
            self.lives += 1
            self.up.set()
            halted = False
            try:
                while not self._end.is_set():
                    if router.poll(5):
                        self._message(router, *router.recv_multipart())
                    else:
                        for to, answer in self._decoded():
                            router.send_multipart([to, answer])
                    if self._kill.is_set():
                        self._kill.clear()
                        raise Death
                halted = True
            except Death:
                pass
            finally:
                if not halted:  # what waits to be answered, and to be sent, is lost
                    router.close(linger=0)
                context.destroy(linger=500 if halted else 0)
                if halted:
                    (self.place / runtime.JOURNAL).unlink()
                lock.release(self.place, held)
                self.up.clear()
            if halted:
                return
            self._back.wait(PATIENCE)
            if self._end.wait(self._random.uniform(0, 0.06)):
                return

    def _fate(self) -> str:
        if self.deaths and self._random.random() < self._chance:
            self.deaths -= 1
            return self._random.choice(("deaf", "mute", "spent"))
        return ""

    def _message(self, router: zmq.Socket[bytes], peer: bytes, frame: bytes) -> None:
        fate = self._fate()
        if fate == "deaf":
            raise Death
        answers = self._act(peer, wire.decode_request(frame))
        if fate == "mute":
            raise Death
        for to, answer in answers:
            router.send_multipart([to, answer])
        if fate == "spent":
            raise Death

    def _act(self, peer: bytes, request: wire.Request) -> list[tuple[bytes, bytes]]:
        seq, call = request.seq, request.call
        if isinstance(call, Attach):
            return [(peer, self._attach(peer, seq, call))]
        program = self._programs[peer]
        self.seen[type(call).__name__] += 1
        answers = self._decoded()
        if call is None:
            key = program, request.cancels
            self.decoding.pop(key, None)
            if self._parked.pop(key, None) is not None:
                answers.append((peer, wire.encode_reply(request.cancels, Errno.EINTR, "cancelled")))
            return answers
        key = program, seq
        if key in self.outcomes:
            return [*answers, (peer, self.outcomes[key])]
        if isinstance(call, Decode):
            self.decoding.setdefault(key, self._random.randrange(6) if call.max_tokens < ENDLESS else ENDLESS)
            self._parked[key] = peer
        elif isinstance(call, Read):  # of a log that does not grow
            self._parked[key] = peer
        else:
            value: Any = None
            if isinstance(call, Feed):
                self.fed.append(call.tokens[0])
                value = len(self.fed)
            self.outcomes[key] = wire.encode_reply(seq, Errno.OK, value)
            answers.append((peer, self.outcomes[key]))
        return answers

    def _decoded(self) -> list[tuple[bytes, bytes]]:
        """Decodes go on by one turn; the answers to those that end."""
        answers = []
        for key, left in list(self.decoding.items()):
            if left:
                self.decoding[key] = left - 1
                continue
            del self.decoding[key]
            self.outcomes[key] = wire.encode_reply(key[1], Errno.OK, DecodeResult(0, [key[1]], Finish.LENGTH))
            if (peer := self._parked.pop(key, None)) is not None:
                answers.append((peer, self.outcomes[key]))
        return answers

    def _attach(self, peer: bytes, seq: int, call: Attach) -> bytes:
        if call.ticket and call.ticket not in self.tickets:
            return wire.encode_reply(seq, Errno.ESRCH, "nobody has this ticket here")
        ticket = call.ticket or self._random.randbytes(8)
        pid = self._programs[peer] = self.tickets.setdefault(ticket, 100 + len(self.tickets))
        if self.ticketless:
            ticket = b""
        boot = BootInfo("test", 1, str(self.place), self.lives, 0.0, pid, "", "", [], [], ticket)
        return wire.encode_reply(seq, Errno.OK, boot)
