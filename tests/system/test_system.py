"""`boot --system`: one kernel for all users of a machine, who are real users of this one."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from llmasos.kernel.edge import boot, service
from llmasos.syscalls import pids, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind
from llmasos.syscalls.table import BootInfoCall, Dmesg, GroupSet, GroupStat, Ps, Shutdown, Spawn
from tests.booted import PATIENCE, SIM, eventually, is_gone
from tests.system.machine import SERVICE, Machine, User, machine

PYTHON = "/opt/llmasos/bin/python"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can be other users"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) makes the service's user"),
]

ANN, BEN, EVE, NOBODY = 54_001, 54_002, 54_003, 65_534
GROUP = 54_100
CONFIGURATION = f"""
[users]
operators = [{EVE}, "no-such-user"]
default = {{ pids_max = 3 }}
quota.{BEN}.tokens_total = 20
quota."@no-such-group".kv_max = "1GiB"
"""
MINE = "sorted(row.pid for row in kernel(Ps()) if row.kind is Kind.LLM)"
END = f"[(kernel(Kill(pid, Signal.KILL)), kernel(Wait(pid))) for pid in {MINE}]"


@pytest.fixture(scope="module")
def served() -> Iterator[Machine]:
    """A machine whose kernel runs."""
    with machine() as found:
        found.configure(CONFIGURATION)
        found.boot()
        yield found


@pytest.fixture(scope="module")
def ann(served: Machine) -> User:
    user = served.user(ANN)
    user.connect()
    return user


@pytest.fixture(scope="module")
def ben(served: Machine) -> User:
    user = served.user(BEN)
    user.connect()
    return user


def directives() -> dict[str, list[str]]:
    """What the unit of an installation says, by the names of its directives."""
    found: dict[str, list[str]] = {}
    for line in service.unit(PYTHON, Path("/opt/llmasos")).splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def refused(user: User, expression: str) -> tuple[Errno, str]:
    with pytest.raises(SyscallError) as caught:
        user.does(expression)
    return caught.value.errno, caught.value.reason


def test_each_user_has_his_own_processes_and_root_has_all(served: Machine, ann: User, ben: User) -> None:
    anns, bens = (user.does("kernel(Spawn('sim', [1, 2, 3], name='one'))") for user in (ann, ben))
    assert ann.does(MINE) == [anns]
    assert ben.does(MINE) == [bens]
    with served.connect() as root:
        rows = {row.pid for row in root(Ps()) if row.kind is Kind.LLM}
        assert rows == {pids.pid_of(ANN, anns), pids.pid_of(BEN, bens)}
    for theirs in (pids.pid_of(ANN, anns), anns + 100):
        assert refused(ben, f"kernel(Kill({theirs}, Signal.KILL))")[0] is Errno.ESRCH
    for user in (ann, ben):
        user.does(END)


def test_a_user_can_look_but_not_halt(ann: User) -> None:
    assert refused(ann, "kernel(Shutdown())")[0] is Errno.EPERM
    about = ann.does("status.read(kernel, runtime.default())")
    assert about["journal"]["kept"]
    assert about["audit"]["trouble"] == ""
    assert "the next kernel goes on" in str(ann.does("status.pairs(status.read(kernel, runtime.default()))"))
    shown = "groups.LISTING.show(screen.Screen(io.StringIO(), io.StringIO()), groups.read(kernel), listing.Asked())"
    ann.does(shown)


def test_a_user_who_has_used_up_his_quota_gets_no_more_and_others_go_on(served: Machine, ann: User, ben: User) -> None:
    for _ in range(2):  # with the program itself these are three
        ann.does("kernel(Spawn('sim', [1, 2, 3]))")
    errno, reason = refused(ann, "kernel(Spawn('sim', [1, 2, 3]))")
    assert errno is Errno.EAGAIN
    assert f"/users/{ANN}" in reason
    assert refused(ann, f"kernel(GroupSet('/users/{ANN}', GroupSettings()))")[0] is Errno.EPERM
    ben.does("here.__setitem__('pid', kernel(Spawn('sim', [1, 2, 3])))")
    assert len(ben.does("kernel(Decode(pid, 100)).tokens")) <= 20
    errno, reason = refused(ben, "kernel(Decode(pid, 1))")
    assert errno is Errno.EDQUOT
    with served.connect() as root:
        settings = root(GroupStat(f"/users/{BEN}"))[0].settings
        assert (settings.pids_max, settings.tokens_total) == (3, 20)  # what is said of him, and of everybody
        root(GroupSet(f"/users/{BEN}", msgspec.structs.replace(settings, tokens_total=0)))
    assert len(ben.does("kernel(Decode(pid, 1)).tokens")) == 1
    for user in (ann, ben):
        user.does(END)


def test_an_operator_by_the_configuration_has_every_right(served: Machine, ann: User) -> None:
    eve = served.user(EVE)
    eve.connect()
    pid = ann.does("kernel(Spawn('sim', [1, 2, 3]))")
    eve.does(f"kernel(Kill({pids.pid_of(ANN, pid)}, Signal.KILL))")
    assert ann.does(f"kernel(Wait({pid})).pid") == pid


def test_names_of_the_configuration_that_are_nobodys_are_told(served: Machine, ann: User) -> None:
    with served.connect() as root:
        said = "\n".join(line.text for line in root(Dmesg()))
    assert "[users] operators: no user of this machine is called 'no-such-user'" in said
    assert "[users.quota.\"@no-such-group\"]: no group of this machine is called 'no-such-group'" in said
    assert "no-such" not in ann.does("str(kernel(Dmesg()))")


def test_a_user_id_that_stands_for_those_of_other_machines_is_refused(served: Machine) -> None:
    nobody = served.user(NOBODY)
    errno, reason = refused(nobody, "blocking.connect(runtime.default(), timeout=20)")
    assert errno is Errno.EPERM
    assert "has no id on this machine" in reason


def test_users_reach_the_programs_socket_and_nothing_else_of_the_kernel(served: Machine, ann: User) -> None:
    files = [path for top in (served.run, served.state) for path in top.rglob("*")]
    names = {path.name for path in files}
    assert {"kernel.lock", "kernel.sock", "drivers.sock", "kernel.journal", "seal.key", "keys", "audit"} <= names
    for path in files:
        for flags in (os.O_RDONLY, os.O_WRONLY):
            no = (
                errno.ENXIO if path.name in (runtime.PROGRAMS, runtime.FILES) else errno.EACCES
            )  # a socket is reached, and not opened
            with pytest.raises(OSError, match=re.escape(f"[Errno {no}]")):
                ann.does(f"os.open({os.fspath(path)!r}, {flags})")
    ann.does("here.__setitem__('place', runtime.system())")
    for act in ("os.listdir(place)", "os.mkdir(place / 'x')", "(place / runtime.PROGRAMS).unlink()"):
        with pytest.raises(PermissionError):
            ann.does(act)
    with pytest.raises(PermissionError):
        ann.does("socket.socket(socket.AF_UNIX).connect(os.fspath(place / runtime.DRIVERS))")


def test_a_program_finds_the_machines_kernel_unless_its_user_has_his_own(served: Machine, ann: User) -> None:
    system, own = os.fspath(served.run), os.fspath(ann.home / "run" / "llmasos")
    assert ann.does("os.fspath(runtime.default())") == system
    assert ann.does("os.fspath(runtime.locate(None, boot=True))") == own
    left = f"pathlib.Path({os.fspath(ann.home / 'state' / 'llmasos')!r})"  # the agents of one that ended with a reboot
    ann.does(f"[{left}.mkdir(), ({left} / runtime.JOURNAL).touch()]")
    assert ann.does("os.fspath(runtime.default())") == own
    ann.does(f"({left} / runtime.JOURNAL).unlink()")
    assert ann.does("os.fspath(runtime.default())") == system
    lock = f"pathlib.Path({own!r}) / runtime.LOCK"
    ann.does(f"[pathlib.Path({own!r}).mkdir(0o700), here.__setitem__('lock', os.open({lock}, os.O_RDWR | os.O_CREAT))]")
    ann.does("fcntl.flock(lock, fcntl.LOCK_EX)")
    assert ann.does("os.fspath(runtime.default())") == own
    ann.does("os.close(lock)")
    assert ann.does("os.fspath(runtime.default())") == system
    assert served.kernel is not None
    assert ann.does("runtime.holder(runtime.default())") == served.kernel.pid


def test_a_place_that_others_could_have_made_is_not_the_machines(served: Machine, ann: User) -> None:
    above = served.run.parent
    above.chmod(0o777)
    try:
        assert refused(ann, "blocking.connect(runtime.system(), timeout=20)")[0] is Errno.EPERM
        assert ann.does("os.fspath(runtime.default())") != os.fspath(served.run)
    finally:
        above.chmod(0o755)


def test_a_program_of_another_user_that_the_service_cannot_signal_is_disconnected(served: Machine) -> None:
    user, other = served.user(ANN + 10), served.user(ANN + 10)
    user.connect()
    other.connect()
    pid = user.does("kernel.pid")
    user.does("kernel(Spawn('sim', [1, 2, 3]))")
    other.does(f"kernel(Kill({pid}, Signal.KILL))")
    eventually(lambda: pid not in other.does("[row.pid for row in kernel(Ps())]"), "it is out of the table")
    eventually(lambda: other.does(MINE) == [], "what it had started has ended")
    assert user.process.poll() is None


# --- boots ----------------------------------------------------------------------------------------------------------


def test_the_next_kernel_goes_on_after_a_kill_and_a_halt_leaves_nothing() -> None:
    with machine() as found:
        kernel = found.boot()
        family = [psutil.Process(kernel.pid), *psutil.Process(kernel.pid).children(recursive=True)]
        ann = found.user(ANN)
        ann.connect()
        pid = ann.does("kernel(Spawn('sim', [1, 2, 3]))")
        found.end_kernel(signal.SIGKILL)
        eventually(lambda: all(map(is_gone, family)), "the kernel and its drivers are gone")
        assert ann.does("os.fspath(runtime.default())") == os.fspath(found.run)  # it died: the next one is waited for
        other = found.user(BEN)
        errno, reason = refused(other, "blocking.connect(runtime.default(), timeout=20)")
        assert errno is Errno.ECONNREFUSED
        assert "the machine's kernel does not run now" in reason
        kernel = found.boot()
        assert ann.does(MINE) == [pid]
        with found.connect() as root:
            root(Shutdown())
        assert kernel.wait(60) == 0
        assert list(found.run.iterdir()) == []
        assert not (found.state / runtime.JOURNAL).exists()
        assert other.does("os.fspath(runtime.default())") == os.fspath(other.home / "run" / "llmasos")
        left = [path for path in found.base.rglob("*") if path.stat().st_uid == SERVICE and path.stat().st_mode & 0o077]
        assert left == [found.run]


def test_a_kernel_can_be_for_a_group_of_users() -> None:
    with machine() as found:
        found.configure(f'users = {{ group = "{GROUP}" }}')
        kernel = found.boot(groups=[GROUP])
        member, other = found.user(ANN, [GROUP]), found.user(BEN)
        member.connect()
        assert refused(other, "blocking.connect(runtime.system(), timeout=20)")[0] is Errno.EPERM
        assert other.does("os.fspath(runtime.default())") == os.fspath(other.home / "run" / "llmasos")
        assert kernel.poll() is None


def test_a_user_who_cannot_make_its_place_is_told_what_to_do() -> None:
    with machine() as found:
        found.run.rmdir()
        found.state.rmdir()
        done = subprocess.run(
            found.command(uid=ANN), env=found.environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 1
        assert "EACCES" in done.stderr
        assert "boot it as root or by its systemd unit" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not found.run.exists()


def test_the_unit_of_an_installation_that_a_user_can_change_is_refused() -> None:
    for python in ("/home/ada/venv/bin/python", "/root/venv/bin/python"):
        with pytest.raises(SyscallError, match="in a home directory") as caught:
            service.unit(python, Path("/opt/llmasos"))
        assert caught.value.errno is Errno.ENOTSUP


def test_where_it_is_is_for_one_kernel_and_for_its_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with machine() as found:
        for words, why in (
            (["--runtime", os.fspath(found.run)], "`llmasos boot --system`"),
            (["--system", "--runtime", os.fspath(tmp_path)], "leave out --runtime"),
            (["--system", "--die-with-parent"], "--die-with-parent"),
            (["--system"], f"{found.state} belongs to user {SERVICE}"),  # it is root who tries
            (["--unit"], "`llmasos boot --system --unit`"),
        ):
            assert boot.main([*words, *SIM]) == 1
            assert why in capsys.readouterr().err


# --- the service ------------------------------------------------------------------------------------------------------


def test_the_unit_boots_a_kernel_that_says_when_it_is_ready_and_is_kept_at_a_stop() -> None:
    with machine() as found, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(told := os.fspath(found.base / "notify"))
        os.chown(told, SERVICE, SERVICE)
        manager.settimeout(PATIENCE)
        words = shlex.split(directives()["ExecStart"][0])
        words = [sys.executable if word == PYTHON else word for word in words]
        kernel = found.boot(*words, *SIM, NOTIFY_SOCKET=told)
        assert manager.recv(100) == b"READY=1"
        with found.connect() as root:
            assert {device.state for device in root(BootInfoCall()).devices} == {"up"}
            root(Spawn("sim", [1, 2, 3], detached=True))
        for process in psutil.Process(kernel.pid).children(recursive=True):
            assert "NOTIFY_SOCKET" not in process.environ()
        found.end_kernel(signal.SIGTERM)
        assert kernel.returncode == 0
        assert os.path.lexists(found.run / runtime.JOURNAL)


def test_the_unit_has_the_places_of_the_kernel_and_gives_it_no_more_rights_than_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(runtime.SYSTEM, raising=False)
    said = {name: values[-1] for name, values in directives().items()}
    places = (runtime.system(), runtime.system_state())
    assert [f"/run/{said['RuntimeDirectory']}", f"/var/lib/{said['StateDirectory']}"] == list(map(os.fspath, places))
    assert (said["RuntimeDirectoryMode"], said["StateDirectoryMode"]) == ("0711", "0700")
    assert said["User"] == "llmasos"
    assert said["Type"] == "notify"
    assert said["CapabilityBoundingSet"] == said["AmbientCapabilities"] == ""
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictSUIDSGID", "RestrictNamespaces"):
        assert said[name] == "yes"
    assert said["ProtectSystem"] == "strict"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    file = tmp_path / "llmasos.service"
    file.write_text(service.unit(shutil.which("true") or "/bin/true", Path("/opt")))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "llmasos.service" in line]
    assert not said
