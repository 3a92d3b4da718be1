"""How a kernel ends that the operating system refuses something: with a line, and with all done that can be."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from llmasos.kernel.edge import door, lock
from llmasos.kernel.edge.detached import note_words
from llmasos.kernel.edge.ending import every, reasons
from llmasos.kernel.edge.journal_file import open_journal
from llmasos.kernel.edge.peers import unmapped_uid
from llmasos.kernel.events import Tick
from llmasos.kernel.state import System
from llmasos.simulator import simulate
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Ps, Spawn
from tests.booted import PATIENCE, SIM, command, wait_for_kernel


def refused(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def test_what_the_operating_system_refuses_is_one_line_with_the_file_the_error_and_what_to_do() -> None:
    assert reasons(refused(errno.EIO, "/run/x/kernel.lock")) == [
        "/run/x/kernel.lock cannot be used: Input/output error (EIO); mend that, and boot again"
    ]
    (line,) = reasons(refused(errno.EMFILE))
    assert line == "the system refuses the kernel: Too many open files (EMFILE); raise `ulimit -n`, and boot again"


def test_the_line_names_the_innermost_place_of_the_kernels_own_that_asked(tmp_path: Path) -> None:
    try:
        lock.hold(tmp_path / "nowhere")
    except OSError as error:
        (line,) = reasons(error)
    assert "nowhere/kernel.lock cannot be used: No such file or directory (ENOENT, kernel/edge/lock.py:" in line


def test_tasks_and_the_event_loop_end_with_the_lines_of_what_was_refused_in_them() -> None:
    full, none_left = refused(errno.ENOSPC, "/a"), Errno.EINVAL("a kernel needs 256 descriptors")
    loop = trio.TrioInternalError("internal error")
    loop.__cause__ = BaseExceptionGroup("", [refused(errno.ENOMEM), AssertionError()])  # its own, that comes of it
    found = reasons(BaseExceptionGroup("", [ExceptionGroup("", [full, none_left]), loop]))
    assert [line.partition(";")[0] for line in found] == [
        "/a cannot be used: No space left on device (ENOSPC)",
        "a kernel needs 256 descriptors",
        "the system refuses the kernel: Cannot allocate memory (ENOMEM)",
    ]


def test_an_error_of_the_kernels_own_is_no_refusal_and_keeps_its_traceback() -> None:
    assert reasons(KeyError("x")) == []
    assert reasons(ExceptionGroup("", [refused(errno.EIO), ValueError("x")])) == []


def test_what_the_core_has_not_caught_is_an_error_of_the_kernels_own_of_whatever_kind() -> None:
    def refuses(system: System, nothing: None) -> None:
        raise Errno.ESRCH("there is no process 7")

    core = simulate().kernel
    core.timers.at(core.now + 1, refuses, None)
    with pytest.raises(SyscallError) as caught:
        core.handle(Tick(), core.now + 1)
    assert reasons(ExceptionGroup("", [caught.value])) == []


def test_every_step_of_an_end_is_taken_whatever_has_become_of_those_before() -> None:
    taken: list[str] = []

    def fails(what: str, error: Exception) -> Callable[[], None]:
        def step() -> None:
            taken.append(what)
            raise error

        return step

    troubles = every(fails("a", refused(errno.EIO, "/a")), fails("b", Errno.EIO("b is left")), lambda: taken.append("c"))
    assert taken == ["a", "b", "c"]
    assert troubles[0].startswith("/a is left behind: Input/output error (EIO")
    assert troubles[1:] == ["b is left"]


def test_a_runtime_directory_is_let_go_though_a_file_in_it_cannot_be_removed(tmp_path: Path) -> None:
    held = lock.hold(tmp_path)
    (tmp_path / runtime.PROGRAMS).mkdir()  # no unlink removes that
    with pytest.raises(SyscallError, match=f"{runtime.PROGRAMS} cannot be removed: ") as caught:
        lock.release(tmp_path, held)
    assert caught.value.errno is Errno.EIO
    assert not (tmp_path / runtime.LOCK).exists()
    os.close(lock.hold(tmp_path))


def test_a_journal_that_cannot_be_removed_is_let_go_and_says_what_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Path, missing_ok: bool = False) -> None:
        raise refused(errno.EIO, os.fspath(self))

    opened = open_journal(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fails)
        with pytest.raises(SyscallError, match="cannot be removed: Input/output error; what has ended comes back"):
            opened.close(remove=True)
    open_journal(tmp_path).close(remove=True)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_locked_is_not_said_to_be_another_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int, how: int) -> None:
        raise refused(errno.EIO)

    monkeypatch.setattr("fcntl.flock", fails)
    with pytest.raises(SyscallError, match="cannot be held by one kernel alone: Input/output error") as caught:
        open_journal(tmp_path)
    assert caught.value.errno is Errno.EIO


@pytest.mark.processes
def test_a_halt_that_cannot_remove_all_says_so_by_a_line_and_its_status_and_loses_nothing(tmp_path: Path) -> None:
    place, journal = tmp_path / "run", tmp_path / "journal"
    words = [*command(place, *SIM, "--journal", os.fspath(journal), "--plain")]

    def boot() -> subprocess.Popen[str]:
        kernel = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=sys.stderr, text=True)
        wait_for_kernel(place, lambda: kernel.poll() is None)
        return kernel

    def halted(kernel: subprocess.Popen[str]) -> tuple[int, str]:
        kernel.send_signal(signal.SIGTERM)
        said = kernel.communicate(timeout=PATIENCE)[1]
        return kernel.returncode, said

    kernel = boot()
    try:
        with blocking.connect(place, timeout=PATIENCE) as program:
            pid = program(Spawn("sim:1k", [1, 2, 3], detached=True))
        (place / runtime.FILES).mkdir()  # no unlink removes that
        status, said = halted(kernel)
        assert (status, said.count("\n")) == (1, 1)
        assert said.startswith(f"llmasos boot: {place / runtime.FILES} cannot be removed: ")
        assert sorted(one.name for one in place.iterdir()) == sorted([runtime.FILES, runtime.JOURNAL])
        (place / runtime.FILES).rmdir()
        kernel = boot()
        with blocking.connect(place, timeout=PATIENCE) as program:
            assert [row.pid for row in program(Ps()) if row.model] == [pid]
        assert halted(kernel) == (0, "")
    finally:
        kernel.kill()
        kernel.wait()


def test_where_nobody_would_be_heard_there_is_no_socket_and_the_door_still_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise refused(errno.ENOMEM)

    async def scenario() -> None:
        there = door.Door(256, lambda peer, frame: None, lambda peer: None, lambda peer, text: None)
        listener = socket.socket(socket.AF_UNIX)
        with monkeypatch.context() as patched:
            patched.setattr(selectors.DefaultSelector, "register", fails)
            with pytest.raises(OSError, match="Cannot allocate memory"):
                there.listen(tmp_path / "kernel.sock")
            with pytest.raises(OSError, match="Cannot allocate memory"):
                there.open_sandbox(1, listener)
        assert not os.listdir(tmp_path)
        assert listener.fileno() < 0
        there.close()

    trio.run(scenario)


def test_the_words_for_the_next_kernel_are_whole_or_it_is_said_that_they_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, whole = ["--device", "sim"], os.writev
    with monkeypatch.context() as patched:
        patched.setattr(os, "writev", lambda fd, pieces: whole(fd, [bytes(pieces[0])[:1]]))  # a byte at a time
        assert note_words(tmp_path / "words", words) == ""
    assert json.loads((tmp_path / "words").read_bytes())["arguments"] == words
    (tmp_path / "file").touch()
    assert "cannot be kept" in note_words(tmp_path / "file" / "words", words)


def test_whom_to_refuse_is_not_guessed_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Path, *_: object) -> str:
        raise refused(errno.EMFILE)

    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(OSError, match="Too many open files"):
        unmapped_uid()
