"""Policies of a user's own in a running kernel: what they do wrong is ended, and the kernel goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from llmasos.kernel.edge.standing import MARK, SERVED_LOOKS, Standing
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Right
from llmasos.syscalls.table import BootInfoCall, Decode, Dmesg, Sched, Spawn
from llmasos.userland.sdk.system import System
from tests.booted import Booted, booted, command, eventually, wait_for_kernel

pytestmark = pytest.mark.processes

TEXT = '''\
import time

from llmasos.policies import LLMProcess, Policy


class Good(Policy):
    """Last come, first served."""

    def key(self, process: LLMProcess) -> int:
        return -process.pid


class Loops(Policy):
    def key(self, process):
        while True:
            pass


class LoopsOn(Policy):
    def ran(self, process, tokens):
        while True:
            try:
                while True:
                    pass
            except Exception:
                pass


class Immortal(Policy):
    def key(self, process):
        while True:
            try:
                while True:
                    pass
            except:
                pass


class Slow(Policy):
    def key(self, process):
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return super().key(process)


class Raises(Policy):
    def ran(self, process, tokens):
        return self.nothing


class Text(Policy):
    def key(self, process):
        return "first"
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted("--device", "sim:time_scale=0,vocab=1000") as kernel:
        yield kernel


def log(client: blocking.Client) -> list[str]:
    return [line.text for line in client(Dmesg()) if line.level == "error"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Loops", "`key` does not come back"),
        ("LoopsOn", "`ran` does not come back"),
        ("Slow", r"3 calls in 60 s took more than 5 ms of processor time; the last one, of `key`, [\d.]+ ms"),
        ("Raises", r"`ran` raised AttributeError: .*\(mine\.py, line \d+\)"),
        ("Text", "`key` returned 'first', and a number of less than 64 bits was wanted"),
    ],
)
def test_what_a_policy_does_wrong_ends_it_and_not_the_kernel(kernel: Booted, file: Path, name: str, fault: str) -> None:
    with kernel.connect() as client:
        client(Sched(policy="mlfq"))
        good = client(Sched(policy=f"{file}:Good")).policy
        bad = client(Sched(policy=f"{file}:{name}")).policy
        pid = client(Spawn("sim", [1, 2, 3]))
        assert len(client(Decode(pid, 30)).tokens) == 30
        assert client(Sched()).policy == good
        assert re.search(rf"scheduling policy {re.escape(bad)} is taken out: {fault}", log(client)[-1])
        assert good in client(BootInfoCall()).policies
        assert bad not in client(BootInfoCall()).policies


def test_a_module_that_does_not_come_back_is_not_loaded(kernel: Booted, file: Path) -> None:
    file.write_text("while True: pass\n")
    with kernel.connect() as client, pytest.raises(SyscallError, match="does not come back when it is loaded") as caught:
        client(Sched(policy=f"{file}:Good"))
    assert caught.value.errno is Errno.EINVAL


def test_it_takes_the_right_admin(kernel: Booted, file: Path) -> None:
    with kernel.connect(rights=Right.ALL & ~Right.ADMIN) as client, pytest.raises(SyscallError) as caught:
        client(Sched(policy=f"{file}:Good"))
    assert caught.value.errno is Errno.EPERM


def test_the_sdk_takes_a_path_from_its_own_directory(kernel: Booted, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    with System.connect(kernel.place) as system:
        assert system.sched("mine.py:Good").policy.startswith("mine.py:Good@")


def test_a_kernel_is_booted_with_one_and_the_next_has_it_elsewhere_and_a_halt_forgets_it(
    file: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run"

    def boot(*more: str, where: Path) -> subprocess.Popen[bytes]:
        words = command(place, "--device", "sim:time_scale=0", "--quiet", *more)
        process = subprocess.Popen(words, cwd=where, stdout=subprocess.DEVNULL)
        # A process that the killed one was starting has its lock and its socket until it is another program.
        eventually(lambda: process.poll() is not None or runtime.holder(place) == process.pid, "it holds the place")
        wait_for_kernel(place, lambda: process.poll() is None)
        return process

    first = boot("--policy", "mine.py:Good", where=file.parent)
    with blocking.connect(place) as client:
        name = client(Sched()).policy
        assert name.startswith("mine.py:Good@")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert {one.name for one in (place / "policies").iterdir()} == {f"{name.partition('@')[2]}.py", "names.json"}
    file.unlink()
    second = boot(where=Path("/"))
    with blocking.connect(place) as client:
        assert client(Sched()).policy == name
        assert any(name in line.text for line in client(Dmesg()))
    second.kill()
    second.wait()
    second = boot("--policy", "mine.py:Good", where=Path("/"))  # by the same words, from elsewhere
    with blocking.connect(place) as client:
        assert client(Sched()).policy == name
        warned = [line.text for line in client(Dmesg()) if line.level == "warning"]
        assert any("what an earlier kernel kept of mine.py:Good goes on" in text for text in warned)
    subprocess.run([sys.executable, "-m", "llmasos", "--runtime", place, "halt"], check=True, stdout=subprocess.DEVNULL)
    assert second.wait() == 0, "a policy was called just before"
    assert not (place / "policies").exists()


def test_one_that_nothing_ends_ends_the_kernel_and_the_next_does_not_take_it(file: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    words = command(place, "--device", "sim:time_scale=0")
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_kernel(place, lambda: first.poll() is None)
    with blocking.connect(place) as client:
        pid = client(Spawn("sim", [1, 2, 3]))
        name = client(Sched(policy=f"{file}:Immortal")).policy
        with pytest.raises(SyscallError):
            client(Decode(pid, 3))
    assert first.stderr is not None
    assert f"its policy {name} does not come back" in first.stderr.read()
    assert first.wait() == 70
    first.stderr.close()
    again = booted("--device", "sim:time_scale=0", "--journal", os.fspath(place), place=place)
    with again as kernel, kernel.connect() as client:
        assert client(Sched()).policy == "fair"
        warned = [line.text for line in client(Dmesg()) if line.level == "warning"]
        assert any("hung an earlier kernel and is not taken again" in text for text in warned)
        assert [out.name for out in client(Sched()).taken_out] == [name]


ENDS = """
import ctypes, os, signal

from llmasos.policies import Policy


class Exit(Policy):
    def key(self, process):
        os._exit(3)


class Kill(Policy):
    def ran(self, process, tokens):
        os.kill(os.getpid(), signal.SIGKILL)


class Fault(Policy):
    def key(self, process):
        ctypes.string_at(0)


class Good(Policy):
    pass
"""


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        ("Exit", r"within its `key`"),
        ("Kill", r"within its `ran`"),
        ("Fault", r"within its `key` by Segmentation fault \(ends\.py, line 19\)"),
    ],
)
def test_one_that_ends_the_process_is_not_taken_by_the_next_kernel(tmp_path: Path, cls: str, told: str) -> None:
    place, file = tmp_path / "run", tmp_path / "ends.py"
    file.write_text(ENDS)
    policy = f"{file}:{cls}"
    words = command(place, "--device", "sim:time_scale=0", "--policy", policy, "--quiet")
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_kernel(place, lambda: first.poll() is None)
    with blocking.connect(place, reconnect=0) as client:
        name = client(Sched()).policy
        with pytest.raises(SyscallError):
            client(Decode(client(Spawn("sim", [1, 2, 3])), 3))
    assert first.wait() != 0
    again = "--device", "sim:time_scale=0", "--policy", policy, "--journal", os.fspath(place)
    with booted(*again, place=place) as kernel, kernel.connect() as client:
        found = client(Sched())
        assert found.policy == "fair"
        (out,) = found.taken_out
        assert out.name == name
        assert re.search(told, out.why)
        assert any(name in text and "is taken out" in text for text in log(client))
        for verb in ("status", "policy"):
            words = [sys.executable, "-m", "llmasos", "--runtime", os.fspath(place), verb]
            said = " ".join(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
            assert "taken out" in said
            assert f"{name}, 2" in said, "when"
            assert re.search(told, said)
        assert len(client(Decode(client(Spawn("sim", [1, 2, 3])), 3)).tokens) == 3
        assert client(Sched(policy=policy)).policy == name, "it may be named again"


def alive(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def test_deaths_from_outside_take_no_policy_out(tmp_path: Path) -> None:
    place, file = tmp_path / "run", tmp_path / "ends.py"
    file.write_text(ENDS)
    words = command(place, "--device", "sim:context=100_000", "--policy", f"{file}:Good", "--quiet")
    for _ in range(3):
        kernel = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_kernel(place, partial(alive, kernel))
        with blocking.connect(place) as client:
            assert client(Sched()).policy.startswith("ends.py:Good@")
            assert client(Sched()).taken_out == []
            pid = client(Spawn("sim", [1, 2, 3]))
            client(Decode(pid, 90_000, wait=False))
            assert client(Decode(client(Spawn("sim", [4, 5])), 8)).tokens
            kernel.send_signal(signal.SIGSTOP)
            while (place / MARK).read_bytes()[0]:  # a kill within a call is another case
                kernel.send_signal(signal.SIGCONT)
                kernel.send_signal(signal.SIGSTOP)
            kernel.kill()
            kernel.wait()


def test_a_death_within_a_call_is_forgiven_once_if_the_policy_had_served_and_not_if_not(tmp_path: Path) -> None:
    name, digest, mark = "mine.py:Mine@0123456789abcdef", "0123456789abcdef", tmp_path / "mark"

    def dies_within(*, served: bool) -> Standing:
        one = Standing(tmp_path, mark)
        for _ in range(SERVED_LOOKS * served):
            one.looked(name)
        one.enter(name, "key")
        return Standing(tmp_path, mark)

    standing = dies_within(served=True)
    ((level, text),) = standing.after_death()
    assert (level, standing.refusal(digest, named=False), standing.outs) == ("warning", "", [])
    assert name in text
    assert standing.after_death() == [], "a mark tells of one death"
    standing = dies_within(served=True)
    assert [level for level, _ in standing.after_death()] == ["error"]
    assert [one.name for one in standing.outs] == [name]
    assert "`policy FILE.py:CLASS` tries it again" in standing.refusal(digest, named=False)
    assert standing.refusal(digest, named=True) == ""
    standing = dies_within(served=False)
    standing.after_death()
    assert standing.refusal(digest, named=True) == standing.refusal(digest, named=False) == "", "it had served before"


def test_a_mark_that_is_none_and_one_of_before_the_machine_started_say_nothing(tmp_path: Path) -> None:
    name, mark = "mine.py:Mine@0123456789abcdef", tmp_path / "mark"
    one = Standing(tmp_path, mark)
    one.enter(name, "key")
    text = mark.read_bytes()
    cut = text.index(b"\n")
    for wrong in (
        b"",
        b"\x01",
        text[:40],
        b"\0" + text[1:],
        b"\xff" + text[1:],
        text[:1] + b"another" + text[cut:],
        text[:cut] + b"\n[]",
    ):
        mark.write_bytes(wrong)
        assert Standing(tmp_path, mark).after_death() == [], wrong
    mark.write_bytes(text)
    assert Standing(tmp_path, mark).after_death() != []


def test_a_mark_holds_more_policies_than_it_has_places_for(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    one = Standing(tmp_path, mark)
    for number in range(600):
        one.enter(f"{'x' * 200}.py:Mine{number}@0123456789abcdef", "key")
        assert f"Mine{number}@" in Standing(tmp_path, _copy(mark)).after_death()[0][1]
        one.leave()
        (tmp_path / "0123456789abcdef.died").unlink()


def _copy(mark: Path) -> Path:
    copy = mark.with_name("copy")
    copy.write_bytes(mark.read_bytes())
    return copy


def test_a_wrong_one_is_refused_at_boot_in_one_line(file: Path, tmp_path: Path) -> None:
    for name, said in ((f"{file}:Nope", "Nope is not there"), ("none.py:Good", "cannot be read"), ("best", "no sched")):
        words = command(tmp_path / "run", "--device", "sim", "--policy", name)
        ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == 1, ended.stderr
        assert re.fullmatch(rf"llmasos boot: .*{said}.*\n", ended.stderr)


def test_a_configuration_names_files_from_its_own_directory(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "llmasos.toml"
    config.write_text('[[device]]\nkind = "sim"\npolicy = "mine.py:Good"\noptions = { time_scale = 0 }\n')
    with booted("--config", os.fspath(config)) as kernel, kernel.connect() as client:
        assert client(Sched()).policy.startswith("mine.py:Good@")


WATCHED = """
import select, signal, time
from llmasos.kernel.edge.guards import HANG_SECONDS, LOOK_SECONDS, Hang, Watchdog
from llmasos.kernel.edge.standing import Standing

watch = Watchdog(Standing(), lambda name: (_ for _ in ()).throw(AssertionError(name)))
assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "nobody is watched before there is anything to watch"
assert watch.call("one", lambda a, b: a + b, (1, 2))[0] == 3
assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
while signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):
    time.sleep(LOOK_SECONDS)  # goes off by itself: an idle kernel sleeps

def loop():
    while True:
        pass

def nested():
    try:
        loop()
    finally:
        ended.append(1)

ended = []
for function in (loop, nested):
    before = time.thread_time()
    try:
        watch.call("two", function, ())
    except Hang:
        assert time.thread_time() - before >= HANG_SECONDS
    else:
        raise AssertionError("it came back")
assert ended == [1]
assert watch.call("three", sorted, ([2, 1],))[0] == [1, 2]
print("good")
"""


def test_the_watch_ends_loops_and_lets_an_idle_kernel_sleep() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("good\n", "")


def test_one_that_starves_a_process_is_taken_out(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from llmasos.policies import Policy\nclass First(Policy):\n    def key(self, process): return process.pid\n"
    )
    config = tmp_path / "llmasos.toml"
    config.write_text(
        '[kernel]\naging_seconds = 0.2\n[[device]]\nkind = "sim"\npolicy = "mine.py:First"\nmax_runs = 1\n'
        "options = { time_scale = 0, context = 100_000, params = 1000 }\n"
    )
    with booted("--config", os.fspath(config)) as kernel, kernel.connect() as client:
        one, two = (client(Spawn("sim", [number, 2, 3])) for number in (1, 2))
        client(Decode(one, 50_000, wait=False))
        assert len(client(Decode(two, 5)).tokens) == 5
        assert client(Sched()).policy == "fair"
        (text,) = log(client)
        assert re.search(rf"policy mine\.py:First@\w+ is taken out: it leaves process {two} ready and unplanned", text)
