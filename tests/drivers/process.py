"""A driver process as the kernel sees it: a ROUTER to talk through, a pipe on its stdin, an end."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import zmq

from llmasos.drivers.protocol import FromDriver, Hello, Note, ToDriver, decode_from_driver, encode
from llmasos.syscalls import runtime

PATIENCE = 120.0  # seconds: a loaded machine imports torch slowly
IDENTITY = b"test.1"
M = TypeVar("M")


class DriverProcess:
    """A running `python -m llmasos.drivers.host`. `heard` is every message that came while waiting for another."""

    def __init__(self, process: subprocess.Popen[bytes], socket: zmq.Socket[bytes], place: Path) -> None:
        self.process = process
        self.place = place
        self.heard: list[FromDriver] = []
        self._socket = socket

    def send(self, message: ToDriver) -> None:
        self._socket.send_multipart([IDENTITY, encode(message)])

    def receive(self) -> FromDriver:
        """The next message, whatever it is."""
        deadline = time.monotonic() + PATIENCE
        while not self._socket.poll(200):
            if self.process.poll() is not None:
                raise AssertionError(f"the driver has ended with {self.process.returncode}: {self.output()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no message from the driver in {PATIENCE} s")
        identity, body = self._socket.recv_multipart()
        assert identity == IDENTITY
        return decode_from_driver(body)

    def wait_for(self, kind: type[M], ref: int | None = None) -> M:
        """The next message of a kind (and ref) before the patience is over; others go to `heard`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self.receive()
            if isinstance(message, kind) and (ref is None or getattr(message, "ref", None) == ref):
                return message
            self.heard.append(message)
            if time.monotonic() > deadline:
                wanted = f"{kind.__name__} {'' if ref is None else ref}".rstrip()
                raise AssertionError(f"no {wanted} from the driver in {PATIENCE} s; heard {self.heard[-5:]}")

    def output(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE)


@contextmanager
def driver(kind: str, place: Path, *options: str, hello: bool = True) -> Iterator[DriverProcess]:
    """Start a driver as the kernel does; `place` becomes its runtime directory."""
    place.mkdir(exist_ok=True)
    (place / runtime.PROGRAMS).touch()
    lock = os.open(place / runtime.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(runtime.endpoint(place, runtime.DRIVERS))
    words = [
        sys.executable,
        "-m",
        "llmasos.drivers.host",
        kind,
        "--endpoint",
        runtime.endpoint(place, runtime.DRIVERS),
    ]
    words += ["--identity", IDENTITY.decode(), "--runtime", str(place)]
    words += [word for option in options for word in ("--option", option)]
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    try:
        running = DriverProcess(process, socket, place)
        if hello:
            assert isinstance(running.receive(), Hello), "the first message of a driver is its hello"
        os.close(lock)  # the test is the kernel; what it leaves when it "dies" is up to the driver
        lock = -1
        yield running
    finally:
        if lock >= 0:
            os.close(lock)
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        socket.close(linger=0)
        context.term()


def noted(messages: list[FromDriver]) -> str:
    return "\n".join(message.text for message in messages if isinstance(message, Note))
