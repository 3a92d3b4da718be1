"""Very many programs at once: all are served, or told why not, and the kernel lives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from llmasos.kernel.edge.capacity import NEWCOMERS
from llmasos.kernel.edge.connections import HOLD_ANSWERS
from llmasos.syscalls import blocking, runtime, wire
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget
from llmasos.syscalls.table import BootInfoCall, Decode, Dmesg, Fork, Null, Ps, Spawn, StatsCall
from tests.booted import PATIENCE, Booted, booted, eventually
from tests.userland.command_line import llmasos
from tests.zmtp_client import GREETING, Raw, frame, ready

pytestmark = pytest.mark.processes

TOGETHER = 100  # connections of one OS process: ZeroMQ has some thousand sockets in each

THREADS = """
    import sys, threading
    from llmasos.syscalls import blocking
    from llmasos.syscalls.table import Null
    told, ready, all_told = [], threading.Barrier(int(sys.argv[2]) + 1), threading.Barrier(int(sys.argv[2]))
    def connect():
        ready.wait()
        try:
            with blocking.connect(sys.argv[1], timeout=float(sys.argv[3])) as kernel:
                kernel(Null())
                all_told.wait()  # all are connected at once
            told.append("served")
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
            all_told.abort()
    threads = [threading.Thread(target=connect) for _ in range(int(sys.argv[2]))]
    for thread in threads: thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    ready.wait()
    for thread in threads: thread.join()
    print(*sorted(set(told)), len(told), flush=True)
"""

TASKS = """
    import sys, anyio
    from llmasos.syscalls import client
    from llmasos.syscalls.table import Null
    told = []
    async def connect():
        try:
            async with client.connect(sys.argv[1], timeout=float(sys.argv[3])) as kernel:
                await kernel(Null())
                told.append("served")
                while len(told) < int(sys.argv[2]):
                    await anyio.sleep(0.02)
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
    async def main():
        async with anyio.create_task_group() as group:
            for _ in range(int(sys.argv[2])):
                group.start_soon(connect)
    print("ready", flush=True)
    sys.stdin.readline()
    anyio.run(main, backend=sys.argv[4])
    print(*sorted(set(told)), len(told), flush=True)
"""


class Crowd:
    """An OS process with programs that connect when they are let go."""

    def __init__(self, kernel: Booted, script: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", dedent(script), str(kernel.place), str(TOGETHER), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=runtime.environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def wait_until_ready(self) -> None:
        assert self._stdout.readline() == "ready\n"

    def go(self) -> None:
        self._stdin.write("\n")
        self._stdin.flush()

    def runs(self) -> bool:
        return self._process.poll() is None

    def told(self) -> str:
        said = self._stdout.read()
        assert self._process.wait(timeout=PATIENCE) == 0
        return said

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


@contextmanager
def crowds(kernel: Booted, *scripts: tuple[str, ...]) -> Iterator[list[Crowd]]:
    found = [Crowd(kernel, *script) for script in scripts]
    try:
        for crowd in found:
            crowd.wait_until_ready()
        yield found
    finally:
        for crowd in found:
            crowd.close()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted() as running:
        yield running


def test_hundreds_that_connect_while_the_kernel_is_busy_are_all_served(kernel: Booted) -> None:
    patience = str(PATIENCE)
    with crowds(
        kernel, (THREADS, patience), (THREADS, patience), (TASKS, patience, "trio"), (TASKS, patience, "asyncio")
    ) as all_of_them:
        os.kill(kernel.pid, signal.SIGSTOP)
        try:
            for crowd in all_of_them:
                crowd.go()
            time.sleep(1.5)  # long enough that all have tried
        finally:
            os.kill(kernel.pid, signal.SIGCONT)
        for crowd in all_of_them:
            assert crowd.told() == f"served {TOGETHER}\n"
    with kernel.connect() as program:
        program(Null())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away, and be another user")
@pytest.mark.parametrize("whose", ["the directory", "the socket"])
def test_a_kernel_of_another_user_is_not_talked_to(tmp_path: Path, whose: str) -> None:
    """Anybody can make /tmp/llmasos-UID before its user does, and listen there."""
    place = tmp_path / "run"
    place.mkdir()
    listen = f"""
        import os, socket, sys
        listener = socket.socket(socket.AF_UNIX)
        listener.bind({os.fspath(place / runtime.PROGRAMS)!r})
        if {whose == "the socket"}:
            os.setuid(12345)
        listener.listen(100)
        print("listens", flush=True)
        sys.stdin.read()
    """
    impostor = subprocess.Popen(
        [sys.executable, "-c", dedent(listen)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == "listens\n"
        assert whose == "the socket" or runtime.listening(place)  # as long as it is this user's
        if whose == "the directory":
            os.chown(place, 12345, -1)
        with pytest.raises(SyscallError, match="another user") as caught:
            blocking.connect(place)
        assert caught.value.errno is Errno.EPERM
    finally:
        impostor.communicate()


FLOOD = """
    import socket, sys, time
    held, end = [], time.monotonic() + 3.0
    print("ready", flush=True)
    sys.stdin.readline()
    while time.monotonic() < end:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        try:
            one.connect(sys.argv[1] + "/kernel.sock")
        except (BlockingIOError, FileNotFoundError):
            one.close()
            continue
        held.append(one)
        if len(held) > 3000:
            held.pop(0).close()
    print("done", len(held) > 100)
"""


def test_a_kernel_outlives_more_connections_than_it_has_descriptors() -> None:
    with booted(descriptors=1024) as kernel, kernel.connect() as program:
        with crowds(kernel, (FLOOD,), (FLOOD,), (FLOOD,)) as floods:
            for flood in floods:
                flood.go()
            while any(flood.runs() for flood in floods):
                program(Null())  # who is connected notices nothing
            for flood in floods:
                assert flood.told() == "done True\n"
        eventually(lambda: connections(program).used < 5, "all have gone")
        with kernel.connect() as newcomer:
            newcomer(Null())


def connections(program: blocking.Client) -> Budget:
    """How many there are; the kernel looks every second."""
    found: list[Budget] = []

    def told() -> bool:
        found[:] = [budget for budget in program(StatsCall()).budgets if budget.name == "connections"]
        return bool(found)

    eventually(told, "the kernel has counted its connections")
    return found[0]


def test_one_program_too_many_is_told_so_and_an_operator_still_gets_in() -> None:
    with booted(descriptors=1024) as kernel, kernel.connect() as first:
        most = connections(first).most
        with ExitStack() as stack:

            def connect(count: int) -> None:
                """Connections that say nothing."""
                while count:
                    one = stack.enter_context(socket.socket(socket.AF_UNIX))
                    with suppress(FileNotFoundError, BlockingIOError):  # the door is guarded: try again
                        one.connect(os.fspath(kernel.place / runtime.PROGRAMS))
                        count -= 1

            connect(most - NEWCOMERS - 1)
            for _ in range(3):
                with pytest.raises(SyscallError, match=rf"more than {most} cannot be \(`ulimit -n` is 1024") as caught:
                    kernel.connect()
                assert caught.value.errno is Errno.EAGAIN
            first(Null())
            ps = llmasos(kernel.place, "ps")
            assert (ps.returncode, ps.stderr) == (0, "")
            assert "init" in ps.stdout
        eventually(lambda: connections(first).refused >= 3, "the refused are counted")
        eventually(lambda: connections(first).used < 5, "all have gone")
        with kernel.connect() as program:
            program(Null())


DEAF = """
    import sys, zmq
    from llmasos.syscalls import wire
    from llmasos.syscalls.table import Attach, Ps
    raw = zmq.Context().socket(zmq.DEALER)
    raw.set_hwm(1)
    print("ready", flush=True)
    sys.stdin.readline()
    raw.connect("ipc://" + sys.argv[1] + "/kernel.sock")
    raw.send(wire.encode_request(1, Attach("deaf")))
    asked = 1
    while asked < 2501 and raw.poll(1000, zmq.POLLOUT):  # until its calls wait
        asked += 1
        raw.send(wire.encode_request(asked, Ps()))
    sys.stdin.readline()
    got = [wire.decode_reply(raw.recv()).seq for _ in range(asked)]
    print(got == list(range(1, asked + 1)), flush=True)
"""


def test_a_program_that_does_not_read_its_answers_waits_with_its_calls_and_costs_little(kernel: Booted) -> None:
    with kernel.connect() as program:
        first = program(Spawn("sim:1b", [1]), timeout=PATIENCE)
        for _ in range(4):
            program(Fork(first, 200))
        answer = len(wire.encode_reply(1, Errno.OK, program(Ps())))
        assert 2500 * answer > 100 * HOLD_ANSWERS, "all of them would be much"
        process = psutil.Process(kernel.pid)
        before = process.memory_info().rss
        with crowds(kernel, (DEAF,)) as (deaf,):
            deaf.go()
            eventually(lambda: waiting(program) > HOLD_ANSWERS, "its answers wait")
            program(Null())  # who reads notices nothing
            assert waiting(program) < HOLD_ANSWERS + 2 * answer
            assert process.memory_info().rss - before < 32 << 20
            deaf.go()
            assert deaf.told() == "True\n", "when it reads at last it has all"


def waiting(program: blocking.Client) -> int:
    """Bytes of answers that have not been read."""
    told = {budget.name: budget.used for budget in program(StatsCall()).budgets}
    return told.get("waiting answers", 0)  # the kernel looks every second


def test_messages_without_end_and_floods_of_long_ones_cost_the_kernel_no_memory(kernel: Booted) -> None:
    """What libzmq would keep until it is whole, and hand over by a thousand messages at once."""
    place, process = kernel.place / runtime.PROGRAMS, psutil.Process(kernel.pid)
    with kernel.connect() as program:
        program(Null())
        before = process.memory_info().rss
        sent = 0
        with Raw(place) as one, suppress(OSError):
            for _ in range(1000):
                one.send(frame(bytes(1 << 20), more=True))
                sent += 1
        assert sent < 100, "it is cut off"
        told = "a message is one frame"
        eventually(lambda: any(told in line.text for line in program(Dmesg())), "the log says why")
        long = frame(wire.encode_request(7, Null()) + bytes(15 << 20))
        with ExitStack() as stack:
            senders = [stack.enter_context(Raw(place)) for _ in range(4)]
            most = 0
            for _ in range(3):
                for sender in senders:
                    sender.send(long)
                    most = max(most, process.memory_info().rss)
                    program(Null())
                for sender in senders:
                    reply = wire.decode_reply(sender.message())
                    assert (reply.seq, reply.errno) == (7, Errno.EMSGSIZE)
        assert most - before < 24 << 20


def test_a_stranger_is_not_heard_at_the_drivers_socket(kernel: Booted) -> None:
    with kernel.connect() as program:
        pid = program(Spawn("sim:1b", [1]), timeout=PATIENCE)
        for _ in range(3):
            with Raw(kernel.place / runtime.DRIVERS, greet=False) as stranger:
                with suppress(OSError):
                    stranger.send(GREETING + ready(Identity=b"sim0.1.secret") + frame(bytes(1 << 20), more=True))
                assert stranger.ends()
        assert len(program(Decode(pid, 3), timeout=PATIENCE).tokens) == 3
        assert all(device.restarts == 0 for device in program(BootInfoCall()).devices)
