"""What is of somebody else's making: pickles, ext types, messages of foreign programs and versions, at every decoder and
socket, and in every file that a command opens. Nothing runs, and each is refused in words."""

from __future__ import annotations

import io
import os
import pickle
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from llmasos.drivers import checkpoint_file, protocol
from llmasos.kernel.edge import journal_file
from llmasos.kernel.journal import process_image, records
from llmasos.syscalls import runtime, wire
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import Decode, Dmesg, Null, Spawn
from llmasos.userland.top import record
from tests.booted import PATIENCE, booted

RAN = Path(tempfile.gettempdir()) / f"llmasos-ran-{os.getpid()}"  # is there once somebody has run what came


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (os.fspath(RAN),)


def payloads() -> list[bytes]:
    """What engines have been attacked with, and what is not for us."""
    pack, array = msgspec.msgpack.encode, io.BytesIO()
    np.save(array, np.array([Evil()], dtype=object), allow_pickle=True)
    made = [pickle.dumps(Evil(), protocol=number) for number in range(pickle.HIGHEST_PROTOCOL + 1)]
    made += [pack(msgspec.msgpack.Ext(code, made[2])) for code in (-1, 0, 42, 127)]
    made += [pack([1, 1, 5, msgspec.msgpack.Ext(1, made[2])]), pack([1, 1, 5, [made[2]]]), pack(["Hello", 99, made[2]])]
    made += [pack([99, 1, 1, []]), pack({"__class__": "os.system", "args": ["true"]}), pack(["Pickle", made[2]])]
    made += [
        b"",
        b"\xc1",
        b"\xff" * 64,
        b"PK\x03\x04" + made[2],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00asm\x01\x00",
    ]
    made += [b"\x91" * 10_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
    made += [array.getvalue(), b'{"a": NaN}', b"---\n!!python"]
    return made


REFUSALS = (wire.RefusedFrame, msgspec.MsgspecError, SyscallError, records.BadFrame, UnicodeError, RecursionError)
DECODERS: dict[str, Callable[[bytes], object]] = {
    "requests": wire.decode_request,
    "replies": wire.decode_reply,
    "to a driver": protocol.decode_to_driver,
    "from a driver": protocol.decode_from_driver,
    "frames of the journal": records.decode,
    "process images": lambda body: process_image.read_image(body, "x"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_no_message_is_refused_by_every_decoder_and_runs_nothing(name: str) -> None:
    for payload in payloads():
        if name == "replies" and payload.startswith(b"\x94\x01\x01\x05"):
            continue  # it is one, whose value is decoded by the type that its call has
        with pytest.raises(REFUSALS):
            DECODERS[name](payload)
    assert not RAN.exists()


OPENERS: dict[str, Callable[[Path], object]] = {
    "restore": lambda path: checkpoint_file.Reader(str(path)),
    "boot": journal_file.read,
    "top": record.read,
}
HEADS = {
    "restore": b"LLMASOS",
    "boot": journal_file.header(),
    "top": b'{"type": "llmasos-top", "version": 1, "kernel": "1", "recorded": 1.0, "fields": {}}\n',
}


@pytest.mark.parametrize("name", OPENERS)
def test_a_poisoned_file_is_refused_by_whatever_opens_it(name: str, tmp_path: Path) -> None:
    """As it is, and behind a head that is right."""
    path = tmp_path / "file"
    for payload in [one for one in payloads() if one]:
        for body in (payload, HEADS[name] + payload, HEADS[name] + journal_file.framed(payload)):
            path.write_bytes(body)
            try:
                found: Any = OPENERS[name](path)
            except SyscallError:
                continue
            assert found.trouble if name == "boot" else found.torn, "what can be used stands before the damage"
    assert not RAN.exists()


@pytest.mark.processes
def test_commands_refuse_poisoned_files_with_a_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with booted() as kernel:
        for payload in (pickle.dumps(Evil()), b'{"type": "llmasos-top", "version": 99, "kernel": "\x1b]0;x\x07"}\n'):
            file.write_bytes(payload)
            for command in (["top", "--once"], ["restore"]):
                words = [*runtime.module("llmasos"), "--runtime", str(kernel.place), *command, str(file)]
                done = subprocess.run(
                    words,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    stdin=subprocess.DEVNULL,
                    env=runtime.environment(),
                )
                assert done.returncode != 0
                assert done.stderr.count("\n") <= 2
                assert "Traceback" not in done.stderr
                assert "\x1b" not in done.stderr + done.stdout
    assert not RAN.exists()


@pytest.mark.processes
def test_what_is_sent_to_a_running_kernels_sockets_is_refused_and_nobody_notices() -> None:
    with booted() as kernel, kernel.connect() as program:
        pid = program(Spawn("sim", tokens=[5, 6, 7]))
        before = program(Decode(pid, 5)).tokens
        with zmq.Context() as context:
            for endpoint in (runtime.endpoint(kernel.place), runtime.endpoint(kernel.place, runtime.DRIVERS)):
                with context.socket(zmq.DEALER) as socket:
                    socket.setsockopt(zmq.LINGER, 1000)
                    socket.connect(endpoint)
                    for payload in payloads():
                        socket.send(payload)
                        socket.send_multipart([payload, payload])
                    program(Null())
        assert len(program(Decode(pid, 5)).tokens) == len(before)
        assert not RAN.exists()
        assert not any("driver died" in line.text for line in program(Dmesg()))


@pytest.mark.processes
def test_a_booted_system_listens_in_its_own_directory_and_nowhere_else() -> None:
    with booted() as kernel:
        place = kernel.place.resolve()
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert place.stat().st_uid == os.getuid()
        for process in kernel.descendants():
            assert process.net_connections(kind="inet") == []
        inodes = {link for process in kernel.descendants() for link in descriptors(process.pid)}
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        named = {row[7] for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in inodes}
        assert named, "it listens somewhere"
        assert all(Path(name).resolve().is_relative_to(place) for name in named), named


def descriptors(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    found = []
    for one in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{one}"))
    return found
