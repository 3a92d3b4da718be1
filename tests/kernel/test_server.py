"""The running kernel from outside: hostile frames, floods, deaths of programs and drivers, signals, figures."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import psutil
import pytest
import zmq

from llmasos.syscalls import limits, runtime, wire
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, Signal
from llmasos.syscalls.table import (
    Attach,
    BootInfoCall,
    Decode,
    Dmesg,
    Estimate,
    Getinfo,
    Kill,
    Null,
    Ps,
    Read,
    Spawn,
    StatsCall,
    Wait,
)
from tests.booted import PATIENCE, Booted, booted, eventually, is_gone
from tests.syscalls.wire_frames import frames

pytestmark = pytest.mark.processes

pack = msgspec.msgpack.encode
MODEL = "sim:1b"

PROGRAM = """
import sys
from llmasos.syscalls.blocking import connect
from llmasos.syscalls.table import Spawn
with connect(sys.argv[1], name="victim") as kernel:
    children = [kernel(Spawn("sim:1b", [1], detached=detached)) for detached in (False, False, True)]
    print(kernel.pid, *children, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted() as running:
        yield running


@contextmanager
def bare(kernel: Booted, routing_id: bytes = b"") -> Iterator[zmq.Socket[bytes]]:
    """A socket with nothing between it and the kernel: it takes whatever is sent, and the operating system little."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.SNDBUF, 4096)
    if routing_id:
        socket.setsockopt(zmq.ROUTING_ID, routing_id)
    socket.connect(runtime.endpoint(kernel.place))
    try:
        yield socket
    finally:
        socket.close()
        context.term()


def answer(socket: zmq.Socket[bytes]) -> wire.Reply:
    assert socket.poll(int(PATIENCE * 1000)), "the kernel did not answer"
    return wire.decode_reply(socket.recv())


def alive(kernel: Booted) -> None:
    with kernel.connect() as program:
        program(Null())


# --- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "seq", "errno"),
    [
        (b"", 0, Errno.EINVAL),
        (b"\xc1\xc1\xc1", 0, Errno.EINVAL),
        (pack([2, 7, 1, []]), 7, Errno.EPROTO),
        (pack([1, 7, 999, []]), 7, Errno.ENOSYS),
        (pack([1, 7, 21, ["x"]]), 7, Errno.EINVAL),
        (pack([1, 7, 2, []]), 7, Errno.EPERM),  # not attached
        (bytes(limits.MAX_REQUEST_BYTES + 1), 0, Errno.EMSGSIZE),
    ],
)
def test_a_wrong_frame_is_answered_and_counted(kernel: Booted, frame: bytes, seq: int, errno: Errno) -> None:
    with kernel.connect() as program, bare(kernel) as socket:
        before = program(StatsCall()).rejected_frames
        socket.send(frame)
        reply = answer(socket)
        assert (reply.seq, reply.errno) == (seq, errno)
        assert wire.reason(reply)
        counted = 0 if errno is Errno.EPERM else 1
        assert program(StatsCall()).rejected_frames == before + counted


def test_a_message_of_several_frames_is_refused(kernel: Booted) -> None:
    with bare(kernel) as socket:
        socket.send_multipart([b"", wire.encode_request(1, Null())])
        reply = answer(socket)
        assert (reply.errno, wire.reason(reply)) == (Errno.EINVAL, "a message is one frame, 2 came")


def test_a_routing_id_of_a_programs_own_choice_means_nothing(kernel: Booted) -> None:
    with bare(kernel, b"someone") as socket, bare(kernel, b"someone") as namesake:
        pids = set()
        for number, one in enumerate((socket, namesake)):
            one.send(wire.encode_request(number, Attach()))
            reply = answer(one)
            assert reply.seq == number
            pids.add(wire.result(reply, Attach()).pid)
        assert len(pids) == 2


def test_a_frame_beyond_all_measure_costs_its_sender_the_connection_and_nobody_else(kernel: Booted) -> None:
    with kernel.connect() as program, bare(kernel) as socket:
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.send(bytes(4 * limits.MAX_REQUEST_BYTES))
        assert monitor.poll(int(PATIENCE * 1000))
        program(Null())
        socket.disable_monitor()
        monitor.close()


def test_thousands_of_mutated_frames_through_a_socket_are_all_answered_and_the_kernel_lives() -> None:
    """Every frame that can be told apart gets an answer with its sequence number; a Null after each batch proves
    that the connection and the kernel are well. What it cancels or exits it may: it is the fuzzer's own."""
    with booted() as kernel:
        chance = random.Random(7)
        for batch in range(12):
            with bare(kernel) as socket:
                socket.send(wire.encode_request(1, Attach("fuzz")))
                assert answer(socket).errno is Errno.OK
                sent = [frame for frame in frames(1000 + batch, 500) if not waits_or_ends(frame)]
                expected = 0
                for frame in sent:
                    socket.send(frame)
                    expected += not is_cancel(frame)
                for _ in range(expected):
                    answer(socket)
                last = chance.getrandbits(60)
                socket.send(wire.encode_request(last, Null()))
                assert answer(socket).seq == last
        alive(kernel)
        with kernel.connect() as program:
            assert program(StatsCall()).rejected_frames > 1000


def waits_or_ends(frame: bytes) -> bool:
    """Valid calls that would (rightly) wait for ever, or end the kernel or the fuzzer itself."""
    try:
        call = wire.decode_request(frame).call
    except wire.RefusedFrame:
        return False
    return type(call).__name__ in (
        "Shutdown",
        "Wait",
        "Trace",
        "Read",
        "Exit",
        "Kill",
        "Spawn",
        "Pagein",
        "Attach",
        "Exec",
    )


def is_cancel(frame: bytes) -> bool:
    try:
        return wire.decode_request(frame).call is None
    except wire.RefusedFrame:
        return False


def test_an_answer_too_large_for_a_message_is_that_calls_error_and_kernel_and_driver_live(
    kernel: Booted,
) -> None:
    with kernel.connect() as program:
        restarts = [device.restarts for device in program(BootInfoCall()).devices]
        for model in ("sim:1e30", "sim:1b,block_bytes=9e18"):  # for the driver's answer, and for the kernel's
            with pytest.raises(SyscallError, match="cannot be sent") as caught:
                program(Estimate(model))
            assert caught.value.errno is Errno.EIO
        assert program(Estimate("sim:1b")).parameters == 10**9
        assert [device.restarts for device in program(BootInfoCall()).devices] == restarts


def test_a_flood_from_one_program_does_not_starve_another(kernel: Booted) -> None:
    with bare(kernel) as program, bare(kernel) as flooder:
        for socket, name in ((program, "quiet"), (flooder, "flood")):
            socket.send(wire.encode_request(1, Attach(name)))
            assert answer(socket).errno is Errno.OK
        program.send(wire.encode_request(2, StatsCall()))
        before = wire.result(answer(program), StatsCall()).calls_by_name.get("null", 0)
        count = 20_000
        process = psutil.Process(kernel.pid)
        process.suspend()  # so that the whole flood is on its way before the first of it is served
        try:
            for seq in range(count):
                flooder.send(wire.encode_request(seq + 2, Null()))
            program.send(wire.encode_request(3, StatsCall()))
        finally:
            process.resume()
        answered = wire.result(answer(program), StatsCall()).calls_by_name.get("null", 0) - before
        assert answered < count  # it was served while the flood had not ebbed
        for seq in range(count):
            assert answer(flooder).seq == seq + 2


def test_calls_that_wait_are_limited_per_program(kernel: Booted) -> None:
    with kernel.connect() as program, bare(kernel) as socket:
        socket.send(wire.encode_request(1, Attach("greedy")))
        assert answer(socket).errno is Errno.OK
        pid = program(Spawn(MODEL, [1]))
        for seq in range(limits.MAX_PARKED_CALLS + 1):
            socket.send(wire.encode_request(seq + 2, Read(pid, -1, follow=True)))
        reply = answer(socket)
        assert (reply.seq, reply.errno) == (limits.MAX_PARKED_CALLS + 2, Errno.EAGAIN)
        program(Null())


def test_two_programs_that_go_at_once_leave_those_who_come_at_that_moment_alone(kernel: Booted) -> None:
    """One spawned what the other reads, so the end of one answers the other, which is not there any more; its
    descriptor may be a newcomer's by then."""
    for _ in range(30):
        with bare(kernel) as reader, kernel.connect() as program:
            reader.send(wire.encode_request(1, Attach("reader")))
            assert answer(reader).errno is Errno.OK
            pid = program(Spawn(MODEL, [1]))
            for seq in range(4000):
                reader.send(wire.encode_request(seq + 2, Read(pid, -1, follow=True)))
            reader.send(wire.encode_request(9000, Null()))
            assert answer(reader).seq == 9000
        alive(kernel)


# --- programs -------------------------------------------------------------------------------------------------------


@contextmanager
def victim(kernel: Booted) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program in a process of its own: its pid, those of its two children, and that of its detached one."""
    words = [sys.executable, "-c", PROGRAM, os.fspath(kernel.place)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, [int(word) for word in process.stdout.readline().split()]
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=PATIENCE)


def pids(program: Client) -> set[int]:
    return {row.pid for row in program(Ps())}


def test_when_a_program_is_killed_its_children_are_reaped_and_the_detached_live_on(kernel: Booted) -> None:
    with kernel.connect() as program, victim(kernel) as (process, (pid, one, other, detached)):
        assert {pid, one, other, detached} <= pids(program)
        assert program(Getinfo(pid)).os_pid == process.pid
        process.kill()
        eventually(lambda: not {pid, one, other} & pids(program), "the program and its children are gone")
        assert detached in pids(program)
        assert program(Getinfo(detached)).ppid == 1
        program(Kill(detached, Signal.KILL))
        assert program(Wait(detached), timeout=PATIENCE).pid == detached
        assert detached not in pids(program)


@pytest.mark.parametrize("number", [Signal.TERM, Signal.KILL])
def test_a_signal_to_a_program_is_delivered_by_the_operating_system(kernel: Booted, number: Signal) -> None:
    with kernel.connect() as program, victim(kernel) as (process, (pid, *_)):
        program(Kill(pid, number))
        assert process.wait(timeout=PATIENCE) == -number
        eventually(lambda: pid not in pids(program), "the program is gone")


def test_a_thousand_connections_come_and_go_and_leave_nothing(kernel: Booted) -> None:
    with kernel.connect() as observer:
        eventually(lambda: observer(BootInfoCall()).devices[0].state == "up", "the driver has its descriptors")
    before = psutil.Process(kernel.pid).num_fds()
    with kernel.connect() as observer:
        for _ in range(20):
            programs = [kernel.connect() for _ in range(50)]
            assert len({program.pid for program in programs}) == 50
            for program in programs:
                program.close()
        eventually(lambda: len([r for r in observer(Ps()) if r.kind is Kind.PROGRAM]) == 1, "all are reaped")
    eventually(lambda: psutil.Process(kernel.pid).num_fds() <= before + 2, "descriptors are given back")


def test_programs_and_drivers_have_figures_of_the_operating_system(kernel: Booted) -> None:
    with kernel.connect() as program:

        def measured() -> bool:
            rows = [row for row in program(Ps()) if row.kind in (Kind.PROGRAM, Kind.DRIVER)]
            return len(rows) == 2 and all(row.rss > 1 << 20 and row.cpu_seconds > 0 for row in rows)

        eventually(measured, "ps shows memory and processor time")


# --- drivers --------------------------------------------------------------------------------------------------------


def test_a_killed_driver_is_restarted_and_the_log_says_what_killed_it() -> None:
    with booted() as kernel, kernel.connect() as program:

        def up(incarnation: int) -> bool:
            device = program(BootInfoCall()).devices[0]
            return device.state == "up" and device.incarnation == incarnation

        eventually(lambda: up(1), "the driver is up")
        pid = program(Spawn(MODEL, [1, 2, 3]), timeout=PATIENCE)
        os.kill(program(BootInfoCall()).devices[0].os_pid, signal.SIGKILL)
        eventually(lambda: up(2), "its successor is up")
        assert any("killed by SIGKILL" in line.text for line in program(Dmesg()))
        assert program(Read(pid)).tokens == [1, 2, 3]


def test_the_kernel_kills_a_driver_on_request_and_restarts_it() -> None:
    with booted() as kernel, kernel.connect() as program:
        eventually(lambda: program(BootInfoCall()).devices[0].state == "up", "the driver is up")
        device = program(BootInfoCall()).devices[0]
        process = psutil.Process(device.os_pid)
        program(Kill(device.pid, Signal.KILL))
        eventually(lambda: is_gone(process), "the driver is gone")
        eventually(lambda: program(BootInfoCall()).devices[0].incarnation == 2, "its successor is started")


@pytest.mark.parametrize("name", [b"nobody.1", b"sim0.1", b"sim0.2", b"sim0.1.", b"sim0.1." + b"0" * 32, b"\xff.1.\xff"])
def test_a_stranger_on_the_drivers_socket_is_ignored(kernel: Booted, name: bytes) -> None:
    """Also one that says it is the driver which runs, or the next one."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTING_ID, name)
    socket.connect(runtime.endpoint(kernel.place, runtime.DRIVERS))
    for _ in range(100):
        socket.send(b"\xc1")
    socket.send_multipart([b"", b""])
    alive(kernel)
    with kernel.connect() as program:
        if name == b"sim0.2":
            sim0 = next(row for row in program(Ps()) if row.name == "driver:sim0")
            program(Kill(sim0.pid, Signal.KILL))
        pid = program(Spawn("sim:1b", [1, 2, 3]), timeout=PATIENCE)
        assert len(program(Decode(pid, 5), timeout=PATIENCE).tokens) == 5, "the driver that was started does it"
    assert not socket.poll(200), "it is told nothing"
    socket.close()
    context.term()


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_process_that_never_was_is_an_esrch_with_its_number(kernel: Booted) -> None:
    with kernel.connect() as program:
        with pytest.raises(SyscallError) as caught:
            program(Getinfo(987_654))
        assert caught.value.errno is Errno.ESRCH
        assert "987654" in caught.value.reason
