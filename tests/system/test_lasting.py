"""The lasting system: who joins or boots it, what survives its deaths, and what is left when it is halted.

A reboot is simulated as an operating system does it: SIGTERM to all, then SIGKILL, the runtime directory gone with the
memory that it was in. A power cut: SIGKILL, and every write that was not yet fsynced is taken back.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from llmasos.kernel.edge import console as console_of_kernel
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.records import Kind
from llmasos.syscalls.table import BootInfoCall, Decode, Feed, Getinfo, Null, Ps, Read
from llmasos.userland.programs import boot as booting
from tests.booted import PATIENCE, booted, eventually, is_gone
from tests.system.home import Home, born

pytestmark = pytest.mark.processes

SIM = ("--device", "sim:time_scale=0,eos_every=100000")

# Run by the interpreter of the kernel before all else: after each fsync of the journal, a copy of what is on the disk.
SYNCED = """
import os, shutil

def noted(sync):
    def call(fd):
        sync(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.isfile(path) and os.path.basename(path).startswith("kernel.journal"):
            shutil.copyfile(path, os.path.join(os.environ["SYNCED"], "new"))
            os.replace(os.path.join(os.environ["SYNCED"], "new"), os.path.join(os.environ["SYNCED"], "kernel.journal"))
    return call

if "SYNCED" in os.environ:
    os.fsync, os.fdatasync = noted(os.fsync), noted(os.fdatasync)
"""

OLDER = """
import sys
from llmasos.kernel.edge import boot
boot.version = lambda: "0.0.1"
sys.exit(boot.main(sys.argv[1:]))
"""


def agents(kernel: blocking.Client) -> dict[str, int]:
    return {row.name: row.pid for row in kernel(Ps()) if row.kind is Kind.LLM}


# --- join or boot ---------------------------------------------------------------------------------------------------


def test_the_shell_boots_a_kernel_that_stays_and_says_so_and_the_next_one_joins_it(home: Home) -> None:
    first = home.type("shell", stdin="spawn alice --model sim --detach\n")
    assert first.stderr.count("\n") == 1
    assert "booted a kernel in the background" in first.stderr
    assert "llmasos halt" in first.stderr
    pid = home.status()["os_pid"]
    second = home.type("shell", stdin="ps\n")
    assert second.stderr == ""
    assert "alice" in second.stdout
    assert home.status()["os_pid"] == pid
    assert home.status()["agents"] == 1
    family = home.processes()
    assert "has halted" in home.type("halt").stdout
    assert is_gone(family[0]), "halt returns when the kernel's own process has ended"
    assert not list(home.place.iterdir())
    assert not list(home.state.rglob("kernel.journal*"))
    assert home.type("status", status=3).stdout.startswith("no kernel runs in ")


def test_what_a_script_spawned_ends_with_it_but_the_detached(home: Home) -> None:
    home.type("shell", stdin="spawn alice --model sim\nspawn bob --model sim --detach\n")
    with home.connect() as kernel:
        eventually(lambda: set(agents(kernel)) == {"bob"}, "alice has ended")


def test_a_private_kernel_ends_with_its_shell(home: Home) -> None:
    said = home.type("shell", "--private", stdin="spawn alice --model sim --detach\nps\n")
    assert "alice" in said.stdout
    assert runtime.holder(home.place) is None
    assert not home.place.exists()
    home.type("shell", stdin="")
    beside = home.type("shell", "--private", stdin="ps\n")
    assert "alice" not in beside.stdout
    assert runtime.holder(home.place) is not None, "the user's own goes on"
    named = str(home.place.parent / "named")
    home.type("--runtime", named, "shell", stdin="")
    refused = home.type("--runtime", named, "shell", "--private", status=1)
    home.type("--runtime", named, "halt")
    assert "EBUSY" in refused.stderr
    assert "--runtime" in refused.stderr


def test_status_tells_what_runs_and_where_the_conversations_lie(home: Home) -> None:
    home.type("shell", stdin="spawn alice --model sim --detach\n")
    facts, told = home.status(), home.type("status").stdout
    assert facts["journal"]["path"] == str(home.state / "llmasos" / "kernel.journal")
    assert facts["journal"]["path"] in told
    assert "llmasos seal status" in told
    assert "each second" in told
    assert facts["memory"]["kernel"] > 1 << 20
    assert facts["memory"]["drivers"] > 1 << 20
    assert facts["runtime"] == str(home.place)
    assert stat.S_IMODE((home.state / "llmasos").stat().st_mode) == 0o700
    assert stat.S_IMODE((home.state / "llmasos" / "kernel.journal").stat().st_mode) == 0o600


# --- deaths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill -9", "SIGTERM", "SIGHUP", "SIGINT", "reboot"])
def test_an_agent_spawned_today_is_there_tomorrow(home: Home, how: str) -> None:
    home.type("shell", stdin="")
    with home.connect() as kernel:
        pid = born(kernel)
        said = kernel(Decode(pid, 12)).tokens
    match how:
        case "kill -9":
            home.kill(signal.SIGKILL)
        case "reboot":
            home.kill(signal.SIGTERM, signal.SIGKILL)
            shutil.rmtree(home.run)
            home.run.mkdir(mode=0o700)
        case _:
            kernel_process = psutil.Process(runtime.holder(home.place) or 0)
            kernel_process.send_signal(signal.Signals[how])
            eventually(lambda: is_gone(kernel_process), "the kernel has ended")
            assert not (home.place / runtime.PROGRAMS).exists()
    assert "has left its agents in" in home.type("status", status=3).stdout
    assert "alice" in home.type("shell", stdin="ps\n").stdout
    with home.connect() as kernel:
        assert kernel(Read(pid, 0)).tokens == [1, 2, 3, *said]
        assert len(kernel(Decode(pid, 3), timeout=PATIENCE).tokens) == 3


def test_the_next_kernel_is_booted_as_the_one_was_that_left_its_agents(home: Home, tmp_path: Path) -> None:
    home.config.unlink()
    (tmp_path / "there").mkdir()
    words = ["boot", "--detach", "--device", "sim:time_scale=0", "--max-runs", "5"]
    command = [sys.executable, "-m", "llmasos", *words, "--debuggable"]  # its directory is looked at
    subprocess.run(command, check=True, env=home.environment, cwd=tmp_path / "there")
    with home.connect() as kernel:
        pid = born(kernel)
    home.kill(signal.SIGKILL)
    said = home.type("shell", stdin="ps\n")
    assert "as before: --device sim:time_scale=0 --max-runs 5" in said.stderr
    assert "alice" in said.stdout
    assert home.status()["arguments"] == words[2:]
    with home.connect() as kernel:
        assert len(kernel(Decode(pid, 3), timeout=PATIENCE).tokens) == 3
        assert os.readlink(f"/proc/{home.status()['os_pid']}/cwd") == str(tmp_path / "there")
    home.type("halt")
    # What was done stays told, and the user's own key opens the images that he has made.
    assert sorted(path.name for path in (home.state / "llmasos").iterdir()) == ["audit", "keys"]
    assert [path.name for path in (home.state / "llmasos" / "keys").iterdir()] == ["files"]
    assert "as before" not in home.type("shell", stdin="").stderr


def test_a_journal_that_is_left_alone_is_had_back_by_the_command_that_is_said(home: Home) -> None:
    home.type("shell", stdin="")
    with home.connect() as kernel:
        pid = born(kernel)
    home.kill(signal.SIGKILL)
    told = home.type("shell", "--private", stdin="dmesg\n").stdout
    said = r"journal: that of the kernel that died here, \S+, is left alone; `llmasos (.*)` has it back"
    (command,) = set(re.findall(said, told))
    home.type(*command.split())
    with home.connect() as kernel:
        assert agents(kernel) == {"alice": pid}


def test_a_kernel_that_ends_with_its_parent_keeps_nothing_when_it_is_terminated() -> None:
    with booted(*SIM) as kernel:
        with kernel.connect() as program:
            born(program)
        kernel.process.terminate()
        kernel.wait()
        assert not kernel.place.exists() or not list(kernel.place.iterdir())


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_power_cut_leaves_a_prefix_of_what_happened_and_with_always_all_that_was_answered(
    home: Home, tmp_path: Path, fsync: str
) -> None:
    synced = tmp_path / "synced"
    synced.mkdir()
    (synced / "sitecustomize.py").write_text(SYNCED)
    home.config.write_text(home.config.read_text() + f'[journal]\nfsync = "{fsync}"\n')
    home.environment |= {"PYTHONPATH": os.pathsep.join([str(synced), *sys.path]), "SYNCED": str(synced)}
    home.type("shell", stdin="")
    journal = Path(home.status()["journal"]["path"])
    log = [1, 2, 3]
    with home.connect() as kernel:
        pid = born(kernel)
        for number in range(20):
            kernel(Feed(pid, [number]))
            log += [number, *kernel(Decode(pid, 3)).tokens]
        sizes = [path.stat for path in (synced / "kernel.journal", journal)]
        eventually(lambda: len({size().st_size for size in sizes}) == 1, "a sync has come, by itself")
        later = born(kernel, "bob")
        log += kernel(Decode(pid, 40)).tokens
    home.kill(signal.SIGKILL)
    assert journal.exists()
    shutil.copyfile(synced / "kernel.journal", journal)  # what was not yet on the disk is gone
    home.type("shell", stdin="")
    with home.connect() as kernel:
        kept = kernel(Read(pid, 0)).tokens
        assert kept == log[: len(kept)]
        if fsync == "always":
            assert kept == log
            assert {pid, later} <= set(agents(kernel).values())
        else:
            assert len(kept) > 3, "it was synced"
            assert later not in agents(kernel).values() or len(kept) >= len(log) - 40
        assert len(kernel(Decode(pid, 3), timeout=PATIENCE).tokens) == 3


# --- versions -------------------------------------------------------------------------------------------------------


@contextmanager
def older(home: Home, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running kernel of an older version."""
    command = [sys.executable, "-c", OLDER, "--runtime", str(home.place), "--quiet", *flags]
    process = subprocess.Popen(command, env=home.environment)
    try:
        eventually(lambda: runtime.holder(home.place) == process.pid and runtime.listening(home.place), "it listens")
        yield process
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def test_a_kernel_of_an_older_version_hands_over_its_agents(home: Home) -> None:
    with older(home, "--max-runs", "7") as process, home.connect() as kernel:
        pid = born(kernel)
        said = kernel(Decode(pid, 9)).tokens
        done = home.type("shell", stdin="ps\n")
        assert "0.0.1 has handed over to" in done.stderr
        assert "alice" in done.stdout
        assert process.wait(timeout=PATIENCE) == 0
        # The program that was attached there goes on with the new kernel.
        assert kernel(Read(pid, 0), timeout=PATIENCE).tokens == [1, 2, 3, *said]
        assert kernel(Getinfo(pid)).pid == pid
    facts = home.status()
    assert facts["version"] == importlib.metadata.version("llmasos")
    assert facts["arguments"] == ["--max-runs", "7"], "it was booted as the old one was"


def test_a_kernel_that_keeps_no_journal_cannot_hand_over_and_stays(home: Home) -> None:
    with older(home, "--no-journal") as process, home.connect() as kernel:
        born(kernel)
        done = home.type("shell", stdin="ps\n")
        assert "alice" in done.stdout
        assert "stays" in done.stderr
        assert "keeps no journal" in done.stderr
        assert process.poll() is None
        kernel(Null())


def test_a_kernel_whose_journal_cannot_be_read_stays(home: Home) -> None:
    with older(home) as process, home.connect() as kernel:
        born(kernel)
        journal = Path(kernel(BootInfoCall()).journal_path)
        body = bytearray(journal.read_bytes())
        body[8] += 1  # the version
        kept = journal.read_bytes()
        journal.write_bytes(bytes(body))
        done = home.type("shell", stdin="ps\n")
        assert "alice" in done.stdout
        assert "stays" in done.stderr
        assert process.poll() is None
        journal.write_bytes(kept)


@pytest.mark.parametrize(
    ("one", "other", "older"),
    [("0.1.0", "0.2.0", True), ("0.2.0", "0.1.0", False), ("0.9", "0.10", True), ("1.0", "1.0", False), ("", "1", False)],
)
def test_versions_are_compared_as_numbers(one: str, other: str, *, older: bool) -> None:
    assert booting._older(one, other) is older


# --- the runtime directory, the log, logging out --------------------------------------------------------------------


def test_a_directory_that_was_there_is_not_changed_and_one_open_to_others_is_refused(home: Home, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for mode in (0o755, 0o1777):
        project.chmod(mode)
        done = home.type("--runtime", str(project), "boot", "--detach", status=1)
        assert stat.S_IMODE(project.stat().st_mode) == mode
        assert done.stderr.count("\n") == 1
        assert "open to other users" in done.stderr
    project.chmod(0o700)
    home.type("--runtime", str(project), "boot", "--detach")
    home.type("--runtime", str(project), "halt")
    assert project.is_dir()
    assert not list(project.iterdir())


def test_a_private_kernel_leaves_a_directory_that_was_there(home: Home, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    home.type("--runtime", str(mine), "shell", "--private", stdin="ps\n")
    assert mine.is_dir()
    home.type("--runtime", str(mine / "new"), "shell", "--private", stdin="ps\n")
    assert not (mine / "new").exists()


def test_the_log_of_a_lasting_kernel_does_not_grow_without_end(tmp_path: Path) -> None:
    log = tmp_path / "kernel.log"
    program = f"""
from pathlib import Path
from llmasos.kernel.edge import console
from llmasos.kernel.events import Log
console.MOST_BYTES = 10_000
log = Path({str(log)!r})
console.open_log(log)
show = console.console(quiet=False, log=log)
for number in range(2_000):
    show(Log(float(number), "info", f"line {{number}}"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernel.log", "kernel.log.1"]
    assert console_of_kernel.MOST_BYTES == 4 << 20
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) < 11_000
    lines = (tmp_path / "kernel.log.1").read_text().splitlines() + log.read_text().splitlines()
    numbers = [int(line.rpartition(" ")[2]) for line in lines]
    assert numbers == list(range(numbers[0], 2_000)), "nothing is lost between the two"


def test_where_logging_out_ends_everything_it_is_said_how_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_SESSION_ID", "3")
    monkeypatch.setenv("USER", "ada-who-does-not-linger")
    monkeypatch.setattr(booting, "_logind_kills", lambda: True)
    [said] = booting.leaves_at_logout()
    assert "loginctl enable-linger ada-who-does-not-linger" in said
    monkeypatch.setattr(booting, "_logind_kills", lambda: False)
    assert booting.leaves_at_logout() == []
