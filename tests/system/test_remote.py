"""Programs on other machines, as people have it: keys, `llmasos boot --tcp`, and what one who comes by a key can do."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import trio

from llmasos.syscalls import blocking, curve_keys
from llmasos.syscalls.client import connect
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import WaitFor
from llmasos.syscalls.table import (
    Checkpoint,
    Dmesg,
    Exit,
    Feed,
    Getinfo,
    Kill,
    Null,
    Pagein,
    Ps,
    Read,
    Spawn,
    Wait,
)
from tests.booted import PATIENCE, SIM, Booted, booted, command, eventually
from tests.reborn import Reborn

pytest.importorskip("nacl", reason="CURVE needs the extra `net`")
pytestmark = pytest.mark.processes


class Net(NamedTuple):
    """A kernel that listens, and what its operator and his guests have typed."""

    kernel: Booted
    address: str
    config: Path  # of the operator
    keys: Path  # the guests' files

    def connect(self, name: str, **options: Any) -> blocking.Client:
        return blocking.connect(self.address, name=name, timeout=PATIENCE, key=self.keys / name, **options)

    def operator(self, *words: str) -> str:
        return typed(self.config, "key", *words)


def typed(config: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llmasos", *words],
        env={**os.environ, "XDG_CONFIG_HOME": os.fspath(config)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def port_of(kernel: Booted) -> int:
    """That on which it listens."""
    found: list[int] = []

    def listens() -> bool:
        found[:] = [
            one.laddr.port
            for one in psutil.Process(kernel.pid).net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        ]
        return bool(found)

    eventually(listens, "it listens")
    return found[0]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    base = tmp_path_factory.mktemp("net")
    config, keys = base / "operator", base / "guests"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", os.fspath(base / "guest"))
        for name, *whose in (("ada",), ("bob",), ("cleo", "uid=1001"), ("dan", "tenant=acme"), ("eve",)):
            public = curve_keys.text_of(curve_keys.new_secret(keys / name))
            if name != "eve":
                typed(config, "key", "add", public, name, *whose)
        with patch.context() as inner:
            inner.setenv("XDG_CONFIG_HOME", os.fspath(config))
            audit = base / "kernel.toml"
            audit.write_text(f'[audit]\nenabled = true\ndirectory = "{base / "audit"}"\n')
            with booted(*SIM, "--tcp", "127.0.0.1:0", "--config", os.fspath(audit)) as kernel:
                address = f"127.0.0.1:{port_of(kernel)}"
                typed(base / "guest", "key", "trust", address, typed(config, "key", "server"))
                inner.setenv("XDG_CONFIG_HOME", os.fspath(base / "guest"))
                yield Net(kernel, f"tcp://{address}", config, keys)


def errno(kernel: blocking.Client, call: Any) -> Errno:
    with pytest.raises(SyscallError) as raised:
        kernel(call, timeout=PATIENCE)
    return raised.value.errno


def test_two_who_come_by_keys_do_not_see_each_other_and_the_operator_sees_both(net: Net) -> None:
    with net.connect("ada") as ada, net.connect("bob") as bob, net.connect("cleo") as cleo, net.connect("dan") as dan:
        pids = {kernel: kernel(Spawn("sim", [1, 2, 3]), timeout=PATIENCE) for kernel in (ada, bob, cleo, dan)}
        assert ada(Read(pids[ada])).tokens == [1, 2, 3]
        for call in (Read(pids[bob]), Kill(pids[bob]), Feed(pids[bob], [4]), Read(pids[dan])):
            assert errno(ada, call) is Errno.ESRCH
        assert {row.pid for row in ada(Ps())} & {pids[bob], pids[dan], bob.pid} == set()
        groups = {row.group.rpartition("/")[0] for row in bob(Ps()) if row.pid == pids[bob]}
        assert {group.rpartition("/")[2] for group in groups} == {"key-bob"}
        with net.kernel.connect() as operator:
            rows = operator(Ps())
            found = {row.group.rpartition("/")[0].partition("/users/")[2] for row in rows if row.model == "sim"}
            user = operator(Getinfo()).group.split("/")[2]
            assert found == {f"{user}/key-ada", f"{user}/key-bob", "1001", f"{user}/acme"}


def test_a_key_of_no_user_names_no_file_of_the_kernels_machine_and_speaks_for_nobody(net: Net, tmp_path: Path) -> None:
    with net.connect("ada") as ada:
        pid = ada(Spawn("sim", [1, 2, 3]), timeout=PATIENCE)
        assert errno(ada, Checkpoint(pid, os.fspath(tmp_path / "image"))) is Errno.EPERM
        assert errno(ada, Pagein(os.fspath(tmp_path))) is Errno.EPERM
        assert errno(ada, Spawn(os.fspath(tmp_path), [1])) is Errno.EPERM
        assert not list(tmp_path.iterdir())
        for name in ("sim:7b,script=/etc/shadow", "kernel/../x", "kernel", "~/x", "sim:../x"):
            assert errno(ada, Spawn(name, [1])) is Errno.EPERM, name
        ada(Null())
    for name, tenant in (("ada", "acme"), ("ada", "x"), ("dan", "other")):
        with pytest.raises(SyscallError, match="came by a key of tenant") as raised:
            net.connect(name, tenant=tenant)
        assert raised.value.errno is Errno.EPERM
    with pytest.raises(SyscallError, match="no 'session-' or 'key-'"):
        net.kernel.connect(tenant="key-ada")


def test_a_program_under_an_event_loop_comes_by_its_key_or_hears_why_not(net: Net) -> None:
    async def main() -> None:
        async with connect(net.address, key=net.keys / "ada", timeout=PATIENCE) as ada:
            await ada(Null())
        with pytest.raises(SyscallError, match="does not accept the key curve:") as raised:
            async with connect(net.address, key=net.keys / "eve", timeout=PATIENCE):
                pass
        assert raised.value.errno is Errno.EPERM

    trio.run(main)


def test_who_is_not_let_in_or_finds_nobody_hears_why(net: Net) -> None:
    with pytest.raises(SyscallError, match="does not accept the key curve:"):
        net.connect("eve")
    with pytest.raises(SyscallError, match=r"which key the kernel at .* has is not in"):
        blocking.connect("tcp://127.0.0.1:1", key=net.keys / "ada", timeout=PATIENCE)
    file = curve_keys.place(curve_keys.KNOWN)
    right, other = curve_keys.known(file), curve_keys.public_half(curve_keys.secret_of(net.keys / "eve"))
    try:
        curve_keys.write_known(file, {"127.0.0.1:1": other, net.address.removeprefix("tcp://"): other})
        with pytest.raises(SyscallError, match="no kernel listens at") as raised:
            blocking.connect("tcp://127.0.0.1:1", key=net.keys / "ada", timeout=PATIENCE)
        assert raised.value.errno is Errno.ECONNREFUSED
        with pytest.raises(SyscallError, match="is not the kernel with the key curve:") as raised:
            net.connect("ada")
        assert raised.value.errno is Errno.EPERM
    finally:
        curve_keys.write_known(file, right)
    (net.keys / "bob").chmod(0o644)
    with pytest.raises(SyscallError, match="can be read by others"):
        net.connect("bob")
    (net.keys / "bob").chmod(0o600)


def test_revoking_a_key_ends_its_programs_at_once_and_others_go_on(net: Net) -> None:
    public = curve_keys.text_of(curve_keys.new_secret(net.keys / "frank"))
    assert net.operator("add", public, "frank") == "frank may come, as tenant key-frank"
    with net.connect("frank") as frank, net.connect("ada") as ada, net.kernel.connect() as operator:
        pid = frank(Spawn("sim", [1, 2, 3]), timeout=PATIENCE)
        net.operator("revoke", "frank")
        assert "frank" not in net.operator("list")
        assert errno(frank, Null()) is Errno.EPIPE
        eventually(lambda: not {pid, frank.pid} & {row.pid for row in operator(Ps())}, "what was its has ended")
        ada(Null())

        def refused() -> bool:
            """Its refusal is listed, at the latest in another second: of many in one some are only counted."""
            with pytest.raises(SyscallError, match="does not accept the key"):
                net.connect("frank")
            reasons = [line["reason"] for line in audited() if line["what"] == "connect" and line["result"] == "EPERM"]
            return any(public in reason for reason in reasons)

        def audited() -> list[Any]:
            shown = typed(net.config, "--runtime", os.fspath(net.kernel.place), "audit", "show", "--json")
            return [json.loads(line) for line in shown.splitlines()]

        eventually(refused, "it is in the audit log")
        lines = audited()
        told = [(line["what"], line.get("on", {}).get("key")) for line in lines if line["what"].startswith("key ")]
        assert told == [("key add", "frank"), ("key revoke", "frank")]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--tcp", "127.0.0.1:0"], "nobody could come: no key is in"),
        (["--tcp", "here"], "is no address: wanted HOST:PORT"),
    ],
)
def test_a_kernel_to_which_nobody_could_come_does_not_listen(tmp_path: Path, words: list[str], why: str) -> None:
    done = subprocess.run(
        command(tmp_path / "run", *SIM, "--no-journal", *words),
        env={**os.environ, "XDG_CONFIG_HOME": os.fspath(tmp_path / "config")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr.startswith("llmasos boot: ")) == (1, True)
    assert why in done.stderr


@contextmanager
def own_port() -> Iterator[int]:
    """A port that nobody else is given by the system, and on which the kernels of a test can listen one after the other:
    it is bound here, and by Linux's SO_REUSEADDR one that does not listen keeps nobody from it who has that, too."""
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        mine.bind(("127.0.0.1", 0))
        yield mine.getsockname()[1]


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Reborn, str]]:
    """A kernel with a journal to which this program comes by TCP, and its address."""
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(tmp_path / "settings"))
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path / "state"))
    public = curve_keys.text_of(curve_keys.new_secret(curve_keys.place(curve_keys.CLIENT)))
    typed(tmp_path / "settings", "key", "add", public, "me")
    with own_port() as port:
        address = f"127.0.0.1:{port}"
        typed(tmp_path / "settings", "key", "trust", address, typed(tmp_path / "settings", "key", "server"))
        kernel = Reborn(tmp_path / "run", "--tcp", address, device="sim")
        kernel.boot()
        try:
            yield kernel, f"tcp://{address}"
        finally:
            kernel.end()


def test_a_program_far_away_goes_on_with_the_next_kernel_and_makes_its_calls_once(far: tuple[Reborn, str]) -> None:
    kernel, address = far
    told: list[object] = []
    with blocking.connect(address, timeout=PATIENCE, reconnect=PATIENCE) as program:
        program.notify = told.append
        pid = program(Spawn("sim:1b", [1, 2]), timeout=PATIENCE)
        kernel.kill()
        eventually(lambda: program.away, "it has noticed that the connection is lost")
        booting = threading.Thread(target=kernel.boot)
        booting.start()
        assert program(Feed(pid, [3]), timeout=PATIENCE) == 3
        booting.join()
        assert program(Read(pid)).tokens == [1, 2, 3]
        assert told == [None, program.boot]


def test_a_program_far_away_under_an_event_loop_goes_on_with_the_next_kernel(far: tuple[Reborn, str]) -> None:
    kernel, address = far

    async def main() -> None:
        async with connect(address, timeout=PATIENCE, reconnect=PATIENCE) as program:
            pid = await program(Spawn("sim:1b", [1, 2]), timeout=PATIENCE)
            await trio.to_thread.run_sync(kernel.kill)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, kernel.boot)
                assert await program(Feed(pid, [3]), timeout=PATIENCE) == 3
            assert (await program(Read(pid))).tokens == [1, 2, 3]

    trio.run(main)


def test_a_program_far_away_whose_kernel_does_not_come_back_hears_why_not(far: tuple[Reborn, str]) -> None:
    kernel, address = far
    with blocking.connect(address, timeout=PATIENCE, reconnect=0.5) as program:
        kernel.kill()
        with pytest.raises(SyscallError) as caught:
            program(Null())
        assert caught.value.errno is Errno.EPIPE
        assert "for 0.5 s there was no other: no kernel listens at" in caught.value.reason


class Way:
    """The way to a kernel on another machine, which can be cut while both ends live."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._kernel = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._lead, daemon=True).start()

    def _lead(self) -> None:
        with suppress(OSError):
            while True:
                program = self._listener.accept()[0]
                kernel = socket.create_connection(self._kernel)
                self._ends += program, kernel
                for one, other in ((program, kernel), (kernel, program)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as if nobody were there
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # for who reads it
            end.close()

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def way(far: tuple[Reborn, str]) -> Iterator[tuple[Reborn, Way]]:
    kernel, address = far
    way = Way(address)
    known = curve_keys.place(curve_keys.KNOWN)
    (server,) = curve_keys.known(known).values()
    curve_keys.write_known(known, {way.address.removeprefix("tcp://"): server})
    try:
        yield kernel, way
    finally:
        way.close()


def test_a_program_whose_way_is_cut_goes_on_with_its_processes_and_one_that_leaves_does_not(
    way: tuple[Reborn, Way],
) -> None:
    kernel, cut = way
    told: list[object] = []
    with blocking.connect(kernel.place, timeout=PATIENCE) as watch:
        with blocking.connect(cut.address, timeout=PATIENCE, reconnect=PATIENCE) as program:
            program.notify = told.append
            pid = program(Spawn("sim:1b", [1, 2]), timeout=PATIENCE)
            answers: list[int] = []
            waiting = threading.Thread(target=lambda: answers.append(program(Wait(pid), timeout=PATIENCE).status))
            waiting.start()
            eventually(lambda: watch(Getinfo(program.pid)).wait is WaitFor.CHILD, "its call waits")
            cut.cut()
            assert program(Feed(pid, [3]), timeout=PATIENCE) == 3
            assert program(Read(pid)).tokens == [1, 2, 3]
            program(Exit(pid, 7))
            waiting.join(PATIENCE)
            assert answers == [7]
            assert told == [None, program.boot]
            left = program(Spawn("sim:1b", [1, 2]), timeout=PATIENCE)
        eventually(lambda: not {program.pid, left} & {row.pid for row in watch(Ps())}, "who leaves is not waited for")
        assert not any("has not come back" in line.text for line in watch(Dmesg()))


def test_a_program_under_an_event_loop_whose_way_is_cut_goes_on(way: tuple[Reborn, Way]) -> None:
    kernel, cut = way

    async def main() -> None:
        async with connect(cut.address, timeout=PATIENCE, reconnect=PATIENCE) as program:
            pid = await program(Spawn("sim:1b", [1, 2]), timeout=PATIENCE)
            await trio.to_thread.run_sync(cut.cut)
            assert await program(Feed(pid, [3]), timeout=PATIENCE) == 3
            assert (await program(Read(pid))).tokens == [1, 2, 3]
            gone.append(program.pid)

    gone: list[int] = []
    with blocking.connect(kernel.place, timeout=PATIENCE) as watch:
        trio.run(main)
        eventually(lambda: gone[0] not in {row.pid for row in watch(Ps())}, "who leaves is not waited for")
