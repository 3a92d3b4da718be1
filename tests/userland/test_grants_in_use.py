"""Rights in other hands, as people and programs use them: shell, command line, SDK, on a running kernel."""

from __future__ import annotations

import json
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmasos
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.rights_words import WORDS, rights_of, words_of
from llmasos.syscalls.table import HANDED, Kill
from llmasos.userland.sdk import options
from llmasos.userland.sdk.system import Process, System
from tests.userland.command_line import llmasos as command
from tests.userland.command_line import script

pytestmark = pytest.mark.processes
SELF = os.getuid()


@pytest.fixture
def system(where: Path) -> Iterator[System]:
    with llmasos.System.connect(where, name="giver") as connected:
        yield connected


@pytest.fixture
def process(system: System) -> Iterator[Process]:
    with system.spawn("sim", [7, 8, 9], name="lent") as spawned:
        yield spawned


def test_a_confined_program_talks_with_what_it_was_granted_until_that_is_taken_back(
    where: Path, system: System, process: Process
) -> None:
    made = process.grant(SELF, ["read", "control"])
    with llmasos.System.connect(where, name="tool") as tool:
        tool.confine()
        lent = tool.accept(made.ticket.hex())  # as the shell's `grant` prints it
        assert lent.pid == process.pid == tool.process(f" {process.pid}").pid
        assert str(lent.ask("Hello", max_tokens=3))
        assert {row.name for row in tool.ps()} == {"init", "tool", "lent"}
        for refused in (lambda: tool.spawn("sim", [1]), lambda: lent.checkpoint("/tmp/never.img"), lambda: tool.stats()):
            with pytest.raises(SyscallError) as caught:
                refused()
            assert caught.value.errno is Errno.EPERM
        assert [(one.handle, one.holder) for one in system.grants()] == [(made.handle, tool.kernel.pid)]
        assert system.revoke(made.handle) == 1
        with pytest.raises(SyscallError) as caught:
            tool.kernel(Kill(lent.pid, Signal.INT))
        assert caught.value.errno is Errno.ESRCH
        with pytest.raises(SyscallError) as caught:
            tool.accept(made.ticket)
        assert caught.value.errno is Errno.ESRCH


def test_programs_take_pids_and_tickets_as_people_read_them(system: System, process: Process) -> None:
    assert options.pid_of("1001:7") == pids.pid_of(1001, 7)
    with pytest.raises(SyscallError) as caught:
        system.process("1001:7")
    assert caught.value.errno is Errno.ESRCH
    for wrong in (lambda: system.process("ada"), lambda: system.wait("1:2:3", 1.0), lambda: system.accept("no ticket")):
        with pytest.raises(SyscallError) as caught:
            wrong()
        assert caught.value.errno is Errno.EINVAL


def test_the_words_of_the_shell_hand_over_list_and_take_back(where: Path, system: System, process: Process) -> None:
    printed = command(where, "grant", str(process.pid), str(SELF), "read,control", "limits", "--json")
    made = json.loads(printed.stdout)
    assert made["rights"] == rights_of(["see", "read", "control", "limits"])
    taken = script(where, f"accept {made['ticket']}", "grants")
    assert f"process {process.pid}: see,read,control,limits" in taken.stdout
    assert "see,read,control,limits" in taken.stdout.splitlines()[-1]
    assert command(where, "grants", "--json").stdout.strip() == "[]"  # that shell has ended, and its grant with it
    plain = command(where, "grant", str(process.pid), pwd.getpwuid(SELF).pw_name)
    assert bytes.fromhex(plain.stdout.split()[0])
    (row,) = json.loads(command(where, "grants", "--json").stdout)
    assert (row["pid"], row["holder"], row["to"]) == (process.pid, 0, str(SELF))
    revoked = command(where, "revoke", str(row["handle"]), "999")
    assert revoked.returncode == 1
    assert "no grant 999" in revoked.stderr
    assert system.grants() == []
    assert command(where, "grant", str(process.pid), str(SELF), "everything").returncode != 0
    assert "no user of this machine" in command(where, "grant", str(process.pid), "no-such-user").stderr


def test_a_group_is_handed_over_and_for_a_time(where: Path, system: System) -> None:
    system.group("/users/team")
    printed = command(where, "grant", "/users/team", str(SELF), "--for", "1h30m", "--json")
    made = json.loads(printed.stdout)
    assert (made["pid"], made["group"]) == (0, "/users/team")
    assert 0 < made["until"] - time.time() <= 5400
    listed = command(where, "grants").stdout.splitlines()[-1]
    assert "/users/team" in listed
    assert "1:29:" in listed or "1:30:" in listed
    for wrong in ("1x", "", "h", "1h 2"):
        assert command(where, "grant", "/users/team", str(SELF), "--for", wrong).returncode == 2
    assert system.revoke(made["handle"]) == 1


def test_rights_have_words() -> None:
    assert list(WORDS) == ["see", "read", "control", "limits"]
    assert words_of(HANDED) == "see,read,control,limits"
    for wrong in (["all"], [""], [], ["charge"]):
        with pytest.raises(SyscallError) as caught:
            rights_of(wrong)
        assert caught.value.errno is Errno.EINVAL
