"""Programs in sandboxes, on a running kernel: what they can do, and all that they cannot."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

import llmasos
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Grants, StatsCall
from llmasos.userland.programs import bubblewrap
from llmasos.userland.sdk.process import Process
from llmasos.userland.sdk.system import System
from tests.booted import PATIENCE, Booted, booted, eventually, is_gone

pytestmark = pytest.mark.processes
KEYCTL = {"x86_64": 250, "aarch64": 219}

# Run in the sandbox: tries all that is not to work, and prints what came of it.
TOOL = """
import ctypes, json, os, socket, sys
import llmasos

given, outside, secret, home, keyctl = json.loads(sys.argv[1])
found = {}

def tried(name, what):
    try:
        found[name] = str(what())
    except OSError as error:
        found[name] = type(error).__name__
    except llmasos.SyscallError as error:
        found[name] = error.errno.name

with llmasos.System.connect() as system:
    (grant,) = system.grants()
    agent = system.process(grant.pid)
    found["answer"] = len(str(agent.ask("Hello", max_tokens=3)))
    found["rows"] = sorted(row.name for row in system.ps())
    tried("spawn", lambda: system.spawn("sim", [1]))
    tried("stats", system.stats)
    tried("fork", lambda: agent.fork(1))
    found["told"] = [system.kernel.boot.runtime, system.kernel.boot.arguments]
tried("usual", lambda: llmasos.System.connect(given))
tried("directory", lambda: os.listdir(given))
tried("home", lambda: os.listdir(home))
tried("secret", lambda: open(secret).read())
tried("signal", lambda: os.kill(outside, 0))
libc = ctypes.CDLL(None, use_errno=True)
found["ptrace"] = libc.ptrace(16, outside, 0, 0)  # PTRACE_ATTACH
found["keys"] = [libc.syscall(keyctl, 0, -3, 0), ctypes.get_errno()]
tried("network", lambda: socket.create_connection(("127.0.0.1", 9), 1))
tried("unlink", lambda: os.unlink("/run/llmasos/kernel.sock"))
tried("write", lambda: open("/usr/llmasos", "w"))
tried("shadow", lambda: open("/etc/shadow").read())
found["processes"] = sum(name.isdigit() for name in os.listdir("/proc"))
found["environment"] = sorted(os.environ)
found["descriptors"] = sorted(int(one) for one in os.listdir("/proc/self/fd"))[:3]
found["capabilities"] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")]
open("/tmp/mine", "w").write("x")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted() as found:
        yield found


@pytest.fixture
def system(kernel: Booted) -> Iterator[System]:
    with llmasos.System.connect(kernel.place, name="starter", timeout=PATIENCE) as connected:
        yield connected


@pytest.fixture
def agent(system: System) -> Iterator[Process]:
    with system.spawn("sim", [7, 8, 9], name="lent") as spawned:
        yield spawned


@pytest.fixture(scope="module")
def able() -> None:
    """Skips where this machine has no bubblewrap, or does not let its user have namespaces."""
    with tempfile.TemporaryDirectory() as place:
        try:
            bubblewrap.check(["true"], bubblewrap.View(), place, [Path(place)])
        except SyscallError as error:
            pytest.skip(error.reason)


def in_use(kernel: Booted) -> list[str]:
    place = kernel.place / runtime.SANDBOXES
    return os.listdir(place) if place.exists() else []


@pytest.mark.usefixtures("able")
def test_a_program_in_a_sandbox_talks_with_what_it_was_granted_and_reaches_nothing_else(
    kernel: Booted, system: System, agent: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    facts = [str(kernel.place), os.getpid(), str(secret), os.path.expanduser("~"), KEYCTL[os.uname().machine]]
    system.spawn("sim", [1], name="other")
    started = system.sandbox(
        [sys.executable, "-c", TOOL, json.dumps(facts)], grants={agent: ["read", "control"]}, stdout=subprocess.PIPE
    )
    with started as tool:
        assert tool.stdout is not None
        said = tool.stdout.read()
        assert tool.wait(PATIENCE) == 0
    found = json.loads(said)
    assert found["answer"]
    assert found["rows"] == ["-c", "init", "lent"]
    assert found["told"] == ["", []]
    refused = {name: found[name] for name in ("spawn", "stats", "fork")}
    assert refused == {"spawn": "EPERM", "stats": "EPERM", "fork": "EPERM"}
    assert (found["usual"], found["directory"]) == ("ECONNREFUSED", "FileNotFoundError")
    assert found["home"] in ("FileNotFoundError", "PermissionError") or "secret" not in found["home"]
    assert (found["secret"], found["signal"], found["ptrace"]) == ("FileNotFoundError", "ProcessLookupError", -1)
    assert found["keys"] == [-1, 1]  # EPERM
    assert found["network"] in ("ConnectionRefusedError", "OSError")
    assert (found["unlink"], found["write"], found["shadow"]) == ("OSError", "OSError", "FileNotFoundError")
    assert found["processes"] == 2  # bubblewrap and itself
    assert not {"HF_TOKEN", "XDG_RUNTIME_DIR", "LLMASOS_KEY"} & set(found["environment"])
    assert (found["descriptors"][:3], found["capabilities"]) == ([0, 1, 2], ["0" * 16])
    eventually(lambda: not in_use(kernel), "its endpoint is removed")
    assert system.grants() == []


@pytest.mark.usefixtures("able")
def test_all_of_it_ends_with_a_starter_that_is_killed(kernel: Booted, system: System, agent: Process) -> None:
    starter = f"""
import llmasos, time
with llmasos.System.connect({str(kernel.place)!r}) as system:
    agent = system.spawn("sim", [1], name="his")
    child = system.sandbox(["sh", "-c", "sleep 1000 & sleep 1000"], grants={{agent: "read"}})
    print(child.pid, flush=True)
    time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = psutil.Process(int(process.stdout.readline()))
        eventually(lambda: len(held.children(recursive=True)) >= 3, "the sandbox runs")
        inside = [held, *held.children(recursive=True)]
        assert len(in_use(kernel)) == 1
        process.send_signal(signal.SIGKILL)
    eventually(lambda: all(map(is_gone, inside)), "all of it ends")
    eventually(lambda: not in_use(kernel), "its endpoint is removed")


@pytest.mark.usefixtures("able")
def test_whoever_finds_the_endpoint_from_outside_is_confined_too(kernel: Booted, system: System, agent: Process) -> None:
    with system.sandbox(["sleep", "1000"], grants={agent: "read"}):
        (name,) = in_use(kernel)
        place = kernel.place / runtime.SANDBOXES / name
        with llmasos.System.connect(place, name="intruder", timeout=PATIENCE) as intruder:
            assert {row.name for row in intruder.ps()} == {"init", "intruder", "lent"}
            assert [one.pid for one in intruder.kernel(Grants())] == [agent.pid]
            with pytest.raises(SyscallError) as caught:
                intruder.kernel(StatsCall())
            assert caught.value.errno is Errno.EPERM


@pytest.mark.usefixtures("able")
def test_what_is_bound_in_is_read_or_changed_and_the_kernels_own_never_shown(
    kernel: Booted, system: System, tmp_path: Path
) -> None:
    read, write = tmp_path / "read", tmp_path / "write"
    for place in (read, write):
        place.mkdir()
        (place / "file").write_text("x")
    script = 'cat file; echo y > file || echo "not changed"; echo z > "$1/file"; ls "$2" 2>/dev/null | wc -l'
    above = kernel.place.parent  # has the runtime directory in it
    started = system.sandbox(
        ["sh", "-c", script, "sh", str(write), str(kernel.place)],
        read=[read, above], write=[write], directory=read, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with started as tool:
        assert tool.stdout is not None
        assert tool.stdout.read().split() == [b"xnot", b"changed", b"0"]
    assert ((read / "file").read_text(), (write / "file").read_text()) == ("x", "z\n")
    for path, errno in ((kernel.place, Errno.EINVAL), ("/", Errno.EINVAL), (tmp_path / "none", Errno.ENOENT)):
        with pytest.raises(SyscallError) as caught:
            system.sandbox(["true"], read=[path])
        assert caught.value.errno is errno
    eventually(lambda: not in_use(kernel), "what could not be started has left no endpoint")


@pytest.mark.usefixtures("able")
def test_another_kernel_of_its_user_s_in_a_directory_that_it_sees_is_not_for_it(
    kernel: Booted, system: System, agent: Process, tmp_path: Path
) -> None:
    tool = """
import sys, llmasos
sys.stdin.read()
try:
    llmasos.System.connect(sys.argv[1], timeout=100.0)
except llmasos.SyscallError as error:
    print(error.errno.name, error.reason)
with llmasos.System.connect(timeout=100.0) as system:
    print(len(system.grants()))
"""
    with tempfile.TemporaryDirectory(dir=tmp_path) as project:
        place = Path(project) / "run"
        words = [sys.executable, "-c", tool, str(place)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with (
            system.sandbox(words, grants={agent: "read"}, write=[project], **pipes) as tool_there,
            booted(place=place) as other,  # it is there only after the sandbox is
            llmasos.System.connect(other.place, timeout=PATIENCE),
        ):
            assert tool_there.stdin is not None
            assert tool_there.stdout is not None
            tool_there.stdin.close()
            said = tool_there.stdout.read().decode().splitlines()
    assert said[0].startswith("EPERM attach: this program is in a sandbox")
    assert said[1:] == ["1"]


def no_bubblewrap() -> Iterator[str]:
    return iter(())


@pytest.mark.parametrize("there", [False, True], ids=["no bubblewrap", "no namespaces"])
def test_where_a_program_cannot_be_held_nothing_is_started(
    there: bool, kernel: Booted, system: System, agent: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, fake = tmp_path / "ran", tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(bubblewrap, "_installed", lambda: iter([str(fake)]) if there else no_bubblewrap())
    with pytest.raises(SyscallError) as caught:
        system.sandbox(["touch", str(ran)], grants={agent: "read"}, write=[tmp_path])
    assert caught.value.errno is Errno.ENOTSUP
    said = (
        "No permissions to create a new namespace); allow user namespaces" if there else "pip install 'llmasos[sandbox]'"
    )
    assert said in caught.value.reason
    assert not ran.exists()
    eventually(lambda: not in_use(kernel), "no endpoint is left")
    assert system.grants() == []


@pytest.mark.usefixtures("able")
def test_the_command_line_and_an_event_loop_start_them_too(kernel: Booted, system: System, agent: Process) -> None:
    words = ["sandbox", "--grant", f"{agent.pid}:read", "--", "sh", "-c", "python -m llmasos ps -o name; exit 7"]
    place = {**os.environ, "LLMASOS_RUNTIME": str(kernel.place)}
    done = subprocess.run([sys.executable, "-m", "llmasos", *words], env=place, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
    assert {"init", "lent"} <= set(done.stdout.split())

    async def main() -> None:
        async with llmasos.aio.System.connect(kernel.place, timeout=PATIENCE) as here:
            child = await here.sandbox(["sh", "-c", "exit 3"])
            assert await child.wait(PATIENCE) == 3
            while in_use(kernel):  # noqa: ASYNC110 - the kernel tells nobody
                await trio.sleep(0.02)

    trio.run(main)
