"""The kernel's process is killed under programs that decode: the next one goes on where it was, to the token."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from llmasos.kernel.edge.journal_file import NAME
from llmasos.syscalls import blocking, runtime, wire
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import (
    Attach,
    BootInfoCall,
    Call,
    Decode,
    Dmesg,
    Feed,
    Getinfo,
    Kill,
    Ps,
    Read,
    Spawn,
    StatsCall,
    Wait,
)
from llmasos.userland.programs.power import halt
from tests.booted import PATIENCE, command, eventually, is_gone, wait_for_kernel

PROMPTS = [list(range(300 + 7 * i, 320 + 7 * i)) for i in range(4)]
COUNT = 160
ATTEMPTS = 20
DEVICE = ["--device", "cpu:threads=1"]


class Place:
    """A runtime directory in which one kernel after the other runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def boot(self, *arguments: str) -> None:
        process = self.process = subprocess.Popen(
            command(self.directory, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        wait_for_kernel(self.directory, lambda: process.poll() is None)

    def kill(self) -> None:
        """SIGKILL, and wait until the drivers have noticed."""
        assert self.process is not None
        drivers = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        for driver in drivers:
            eventually(lambda driver=driver: is_gone(driver), "the driver ends")  # type: ignore[misc]

    def end(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                halt(self.directory)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise

    def connect(self) -> blocking.Client:
        return blocking.connect(self.directory, name="test", timeout=PATIENCE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    there = Place(tmp_path / "run")
    try:
        yield there
    finally:
        there.end()


class Bare:
    """A program on a bare socket: it numbers its calls itself."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
        self.socket.connect(runtime.endpoint(directory))

    def send(self, seq: int, call: Call[Any]) -> None:
        self.socket.send(wire.encode_request(seq, call))

    def answer(self, seq: int, call: Call[Any]) -> Any:
        reply = wire.decode_reply(self.socket.recv())
        assert reply.seq == seq
        return wire.result(reply, call)

    def call(self, seq: int, call: Call[Any]) -> Any:
        self.send(seq, call)
        return self.answer(seq, call)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def sampler(number: int) -> Sampler:
    return Sampler(temperature=0.9, seed=number)


def spawn(client: blocking.Client, number: int) -> int:
    return client(Spawn("tiny", PROMPTS[number], sampler(number), f"p{number}", detached=True, dtype="fp32"))


def test_decodes_go_on_after_sigkill_with_the_tokens_they_would_have_had(place: Place) -> None:
    place.boot(*DEVICE)
    with place.connect() as client:
        for _ in range(ATTEMPTS):
            pids = [spawn(client, number) for number in range(4)]
            for pid in pids:
                client(Decode(pid, COUNT, wait=False))
            eventually(lambda: client(Getinfo(pids[-1])).length > 40, "they decode", pause=0.001)  # noqa: B023
            seen = [client(Read(pid)) for pid in pids]
            if all(read.decoding for read in seen):
                break
            for pid in pids:  # this program has got the processor late
                client(Kill(pid))
                client(Wait(pid))
        assert all(read.decoding for read in seen), f"they were never caught in their midst, in {ATTEMPTS} attempts"
        place.kill()
    place.boot(*DEVICE)
    with place.connect() as client:
        for pid, read in zip(pids, seen, strict=True):
            found = client(Read(pid))
            assert found.tokens[: read.length] == read.tokens
        assert any("journal: 4 processes" in line.text for line in client(Dmesg()))
        eventually(lambda: not any(client(Getinfo(pid)).decoding for pid in pids), "they have decoded")
        logs = [client(Read(pid)).tokens for pid in pids]
        assert client(StatsCall()).journal == "kept"
        again = [spawn(client, number) for number in range(4)]
        for pid in again:
            client(Decode(pid, COUNT, wait=False))
        eventually(lambda: not any(client(Getinfo(pid)).decoding for pid in again), "they have decoded")
        assert logs == [client(Read(pid)).tokens for pid in again]
    place.end()
    assert not place.directory.exists() or NAME not in os.listdir(place.directory), "a halt is the end"


def test_a_program_comes_back_with_its_ticket_and_its_decode_is_answered(place: Place) -> None:
    place.boot("--device", "sim:time_scale=1")
    with contextlib.closing(Bare(place.directory)) as program:
        info = program.call(1, Attach("bare"))
        pid = program.call(2, Spawn("sim", [1, 2, 3]))
        waiting = Decode(pid, 150)
        program.send(3, waiting)
        with place.connect() as other:
            eventually(lambda: other(Getinfo(pid)).length > 20, "it decodes")
            place.kill()
    place.boot("--device", "sim:time_scale=1")
    with contextlib.closing(Bare(place.directory)) as program:
        back = program.call(4, Attach("bare", ticket=info.ticket))
        assert (back.pid, back.ticket) == (info.pid, info.ticket)
        program.send(3, waiting)
        result = program.answer(3, waiting)
        assert (result.position, len(result.tokens)) == (3, 150)
        assert program.call(2, Spawn("sim", [1, 2, 3])) == pid, "answered before: not done again"
        assert program.call(5, Read(pid)).tokens == [1, 2, 3, *result.tokens]


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_every_policy_keeps_what_was_answered(place: Place, tmp_path: Path, fsync: str) -> None:
    (tmp_path / "c.toml").write_text(f'[journal]\nfsync = "{fsync}"\ndirectory = "{tmp_path}/kept"\n')
    flags = ["--config", str(tmp_path / "c.toml"), "--device", "sim:time_scale=0"]
    place.boot(*flags)
    with place.connect() as client:
        pid = client(Spawn("sim", [1], detached=True))
        for token in range(100):
            assert client(Feed(pid, [token])) == token + 2
        place.kill()
    assert NAME in os.listdir(tmp_path / "kept")
    place.boot(*flags)
    with place.connect() as client:
        assert client(Read(pid)).tokens == [1, *range(100)]


def test_a_full_disk_is_told_and_made_good(place: Place) -> None:
    place.boot("--device", "sim:time_scale=0")
    with place.connect() as client:
        assert place.process is not None
        pid = client(Spawn("sim", [1], detached=True))
        _, most = resource.prlimit(place.process.pid, resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        for token in range(10):
            assert client(Feed(pid, [token])) == token + 2
        eventually(lambda: "cannot be written" in client(StatsCall()).journal, "it is noticed")
        assert [line.level for line in client(Dmesg()) if "journal: " in line.text] == ["error"]
        resource.prlimit(place.process.pid, resource.RLIMIT_FSIZE, (most, most))
        eventually(lambda: client(StatsCall()).journal == "kept", "it is whole again")
        place.kill()
    place.boot("--device", "sim:time_scale=0")
    with place.connect() as client:
        assert client(Read(pid)).tokens == [1, *range(10)]


def test_a_journal_elsewhere_does_not_take_the_place_of_one_that_was_left(place: Place, tmp_path: Path) -> None:
    place.boot("--device", "sim:time_scale=0")
    with place.connect() as client:
        pid = client(Spawn("sim", [1, 2, 3], detached=True))
    place.kill()
    elsewhere = tmp_path / "kept"
    done = subprocess.run(
        command(place.directory, "--journal", os.fspath(elsewhere)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "has left its journal" in done.stderr.splitlines()[-1]
    assert os.listdir(elsewhere) == []
    place.boot("--device", "sim:time_scale=0")
    with place.connect() as client:
        assert client(Read(pid)).tokens == [1, 2, 3]


def test_a_halt_ends_a_journal_that_was_found_by_its_link(place: Place, tmp_path: Path) -> None:
    elsewhere = tmp_path / "kept"
    place.boot("--device", "sim:time_scale=0", "--journal", os.fspath(elsewhere))
    with place.connect() as client:
        pid = client(Spawn("sim", [1, 2, 3], detached=True))
    place.kill()
    place.boot("--device", "sim:time_scale=0")
    with place.connect() as client:
        assert client(Read(pid)).tokens == [1, 2, 3]
    place.end()
    assert os.listdir(elsewhere) == ["audit"], "only the audit log outlives a halt"
    assert not os.path.lexists(place.directory / NAME)


def test_without_a_journal_nothing_comes_back(place: Place) -> None:
    place.boot("--no-journal", "--device", "sim:time_scale=0")
    with place.connect() as client:
        assert client(BootInfoCall()).ticket == b""
        client(Spawn("sim", [1], detached=True))
        place.kill()
    assert NAME not in os.listdir(place.directory)


def test_a_journal_that_is_not_wanted_is_left_alone_and_that_is_said(place: Place) -> None:
    place.boot(*DEVICE)
    with place.connect() as client:
        pid = spawn(client, 0)
        place.kill()
    place.boot("--no-journal", *DEVICE)
    with place.connect() as client:
        assert [line.level for line in client(Dmesg()) if "is left alone" in line.text] == ["warning"]
        assert pid not in {process.pid for process in client(Ps())}
        place.kill()
    place.boot(*DEVICE)
    with place.connect() as client:
        assert pid in {process.pid for process in client(Ps())}


def test_a_journal_of_another_version_stops_the_boot_with_what_to_do(place: Place) -> None:
    place.directory.mkdir(mode=0o700)
    (place.directory / NAME).write_bytes(b"LLMasOSj" + (9).to_bytes(4, "little") + bytes(4))
    done = subprocess.run(command(place.directory), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "version 9" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (place.directory / NAME).stat().st_size == 16
    assert Errno.EINVAL.name not in done.stderr
