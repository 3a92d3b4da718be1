"""Very many programs in one OS process: `python -m benchmarks._crowd PLACE`, told what to do by lines of JSON.

Each program is a DEALER of its own. They do not have the SDK's client, which takes threads and memory on this side.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from llmasos.syscalls import runtime, wire
from llmasos.syscalls.table import Attach, Call, Decode, Ps, Spawn
from llmasos.syscalls.zeromq import make

PATIENCE = 600_000  # milliseconds
WINDOW = 64  # connections, or calls, that are under way at once


class Crowd:
    """Its programs, by their sockets."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 20_000)
        self._endpoint = endpoint
        self._sockets: list[zmq.Socket[bytes]] = []
        self._processes: list[tuple[int, int]] = []  # of which program; pid
        self._seq = 0

    def connect(self, count: int, first: Callable[[int], bytes] = lambda number: b"hello") -> None:
        """`count` more connections, each of which sends a frame and waits for the answer."""
        for begin in range(0, count, WINDOW):
            some = []
            for number in range(begin, min(count, begin + WINDOW)):
                one = make(self._context, zmq.DEALER, 1 << 26)
                one.setsockopt(zmq.RCVTIMEO, PATIENCE)
                one.connect(self._endpoint)
                one.send(first(number))
                some.append(one)
            for one in some:
                one.recv()
            self._sockets += some

    def attach(self, count: int) -> None:
        self.connect(count, lambda number: wire.encode_request(1, Attach(f"crowd-{number}")))

    def calls(self, calls: Iterator[tuple[int, Call[Any]]]) -> list[Any]:
        """Make calls, each by the program of that number; returns the results in order."""
        found: list[Any] = []
        waiting: list[tuple[int, Call[Any]]] = []
        for number, call in calls:
            self._seq += 1
            self._sockets[number].send(wire.encode_request(self._seq + 1, call))
            waiting.append((number, call))
            if len(waiting) == WINDOW:
                found += [self._result(*one) for one in waiting]
                waiting = []
        return found + [self._result(*one) for one in waiting]

    def _result(self, number: int, call: Call[Any]) -> Any:
        return wire.result(wire.decode_reply(self._sockets[number].recv()), call)

    def spawn(self, each: int, tokens: int) -> None:
        """Each program gets so many processes, each with a context of its own of so many tokens."""
        programs = [number for number in range(len(self._sockets)) for _ in range(each)]
        begin = len(self._processes)
        some = (
            (number, Spawn("sim", [(begin + i) % 30_000, i // 30_000, number % 30_000] + [7] * (tokens - 3)))
            for i, number in enumerate(programs)
        )
        self._processes += zip(programs, self.calls(some), strict=True)

    def decode(self, tokens: int) -> None:
        """Each process decodes so many tokens."""
        self.calls((number, Decode(pid, tokens)) for number, pid in self._processes)

    def ps(self) -> tuple[int, float, float]:
        """Read the whole process table; returns its rows, the seconds that it took and those of the longest answer."""
        begin, rows, longest, after = time.perf_counter(), 0, 0.0, 0
        while True:
            start = time.perf_counter()
            (some,) = self.calls(iter([(0, Ps(after))]))
            longest = max(longest, time.perf_counter() - start)
            if not some:
                return rows, time.perf_counter() - begin, longest
            rows, after = rows + len(some), some[-1].pid


def main() -> None:
    place = Path(sys.argv[1])
    crowd = Crowd(runtime.endpoint(place) if place.is_dir() else f"ipc://{place}")
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(getattr(crowd, what)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
