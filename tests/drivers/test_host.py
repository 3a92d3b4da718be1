"""The driver's loop as a real process: what it says, what it survives, and that it never outlives its kernel."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmasos.drivers import host, orphaned, places
from llmasos.drivers.answers import encoded
from llmasos.drivers.cpu.native import library
from llmasos.drivers.protocol import (
    EX_UNUSABLE,
    Copy,
    Done,
    Drop,
    DropWeights,
    Failed,
    Heartbeat,
    Inspect,
    Load,
    Loaded,
    Note,
    Probe,
    Probed,
    Progress,
    Quit,
    Run,
    Sample,
    Step,
    StepDone,
    Unload,
    decode_from_driver,
)
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import BootInfoCall
from tests import models_zoo
from tests.booted import booted, eventually, is_gone
from tests.drivers.process import PATIENCE, driver, noted

GREEDY = Sampler()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_zoo.build("llama", tmp_path_factory.mktemp("llama"))


def test_a_driver_says_hello_probes_loads_steps_and_goes_on_after_errors(tmp_path: Path, model: Path) -> None:
    with driver("cpu", tmp_path / "r", "threads=1", "dtype=fp32") as cpu:
        cpu.send(Probe(1, str(model), ""))
        probed = cpu.wait_for(Probed, 1)
        assert (probed.architecture, probed.dtype, probed.vocab) == ("llama", "fp32", models_zoo.VOCAB)

        cpu.send(Probe(2, str(tmp_path / "nowhere"), ""))
        assert cpu.wait_for(Failed, 2).errno == Errno.ENOENT

        cpu.send(Load(3, 9, str(model), "", 8))
        cpu.wait_for(Loaded, 3)
        assert [message.fraction for message in cpu.heard if isinstance(message, Progress)]

        cpu.send(Step(4, [Run(1, 9, 0, [5, 6, 7], 0, [0], Sample(GREEDY, 3, True))]))
        first = cpu.wait_for(StepDone, 4)
        assert set(first.phases) == {"prepare", "swap", "copy", "model", "sample"}
        assert first.results[0].token >= 0

        cpu.send(Step(5, [Run(1, 99, 0, [5], 0, [0])]))
        refused = cpu.wait_for(Failed, 5)
        assert refused.errno == Errno.EINVAL
        assert "99" in refused.reason

        cpu.send(Drop([1, 12345]))  # unknown contexts are ignored, and nothing is answered
        cpu.send(Step(6, [Run(1, 9, 0, [5, 6, 7], 0, [3], Sample(GREEDY, 3, True))]))
        assert cpu.wait_for(StepDone, 6).results == first.results

        cpu.send(Unload(7, 9))
        cpu.wait_for(Done, 7)
        cpu.send(Unload(8, 9))
        assert cpu.wait_for(Failed, 8).errno == Errno.EINVAL
        cpu.send(Quit())
        assert cpu.wait() == 0
        assert "Traceback" not in cpu.output()


def test_an_answer_that_cannot_be_encoded_is_that_requests_failure_and_the_driver_goes_on(
    tmp_path: Path,
) -> None:
    with driver("sim", tmp_path / "r", "time_scale=0") as sim:
        sim.send(Probe(1, "sim:1e30", ""))
        failed = sim.wait_for(Failed, 1)
        assert failed.errno == Errno.EIO
        assert "the driver's answer (Probed) cannot be sent" in failed.reason
        sim.send(Probe(2, "sim:1b", ""))
        assert sim.wait_for(Probed, 2).parameters == 10**9


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (Failed(7, Errno.ENOENT, "no \udc80"), Failed(7, Errno.ENOENT, r"no \udc80")),
        (Note("error", "what \udc80 says"), Note("error", r"what \udc80 says")),
        (Done(1 << 40), Done(1 << 40)),
    ],
    ids=["failed", "note", "done"],
)
def test_words_that_cannot_be_encoded_are_escaped(message: Any, sent: Any) -> None:
    assert decode_from_driver(encoded(message)) == sent


def test_an_unexpected_error_is_answered_and_its_traceback_noted(tmp_path: Path, model: Path) -> None:
    with driver("cpu", tmp_path / "r", "threads=1") as cpu:
        cpu.send(Load(1, 9, str(model), "", 8))
        cpu.wait_for(Loaded, 1)
        cpu.send(Step(2, [], [Copy(9, 1 << 40, 0)]))  # a frame no kernel would name
        failed = cpu.wait_for(Failed, 2)
        assert failed.errno == Errno.EIO
        assert "slab" in noted(cpu.heard)
        cpu.send(Probe(3, str(model), ""))
        cpu.wait_for(Probed, 3)


def test_files_are_looked_at_and_heartbeats_sent_while_the_device_is_busy(tmp_path: Path, model: Path) -> None:
    with driver("cpu", tmp_path / "r", "threads=1", "dtype=fp32") as cpu:
        cpu.send(Load(1, 9, str(model), "", 64))
        cpu.wait_for(Loaded, 1)
        refs = itertools.count(100)

        def work() -> int:
            """Send one more step; returns its ref."""
            ref = next(refs)
            cpu.send(Step(ref, [Run(ref, 9, 0, [i % 250 for i in range(500)], 0, list(range(32)))]))
            return ref

        cpu.process.send_signal(signal.SIGSTOP)  # so that the question is there before the first step is done
        last = [work() for _ in range(40)][-1]
        cpu.send(Inspect(7, str(tmp_path / "nothing")))
        cpu.process.send_signal(signal.SIGCONT)
        assert cpu.wait_for(Failed, 7).errno is Errno.ENOENT
        answered = sum(isinstance(message, StepDone) for message in cpu.heard)
        assert answered < 40, "the look at the file overtook the steps before it"

        # However fast the device is, it stays busy until a heartbeat comes: each step that ends is followed by another.
        for _ in range(answered):
            last = work()
        while not isinstance(beat := cpu.receive(), Heartbeat):
            assert isinstance(beat, StepDone)
            last = work()
        assert beat.busy
        cpu.wait_for(StepDone, last)
        while (idle := cpu.wait_for(Heartbeat)).busy:
            pass
        assert idle.progress > beat.progress


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_steps_are_answered_while_a_model_is_read(tmp_path: Path, model: Path, slow: Path, dtype: str) -> None:
    with driver("cpu", tmp_path / "r", "threads=1") as cpu:
        cpu.send(Load(1, 9, str(model), "fp32", 8))
        cpu.wait_for(Loaded, 1)
        cpu.send(Load(2, 10, str(slow), dtype, 8))
        cpu.send(Load(3, 11, str(model), "bf16", 8))
        for ref in range(4, 8):
            cpu.send(Step(ref, [Run(ref, 9, 0, [5, 6, 7], 0, [0], Sample(GREEDY, 3, True))]))
            assert not cpu.wait_for(StepDone, ref).results[0].error
        cpu.send(DropWeights(8, 9))
        cpu.wait_for(Done, 8)
        while not cpu.wait_for(Heartbeat).busy:
            pass
        assert not [m for m in cpu.heard if isinstance(m, Loaded | Failed)], "loads are done one after the other"
        (slow / "go").touch()
        assert cpu.wait_for(Failed, 2).errno is Errno.EIO
        cpu.wait_for(Loaded, 3)
        cpu.send(Load(9, 9, str(model), "fp32", 8, again=True))
        cpu.wait_for(Loaded, 9)
        cpu.send(Step(10, [Run(4, 9, 3, [8], 1, [], Sample(GREEDY, 4, True))]))
        assert not cpu.wait_for(StepDone, 10).results[0].error


@pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")
def test_what_a_driver_tells_pythons_logging_is_a_line_of_the_kernels_log(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(places.DIRECTORY, str(tmp_path / "installed"))
    with driver("cpu", tmp_path / "r", "threads=1") as cpu:
        cpu.send(Load(1, 9, str(model), "int8", 8))
        cpu.wait_for(Loaded, 1)
        (note,) = (message for message in cpu.heard if isinstance(message, Note))
        assert note.level == "info"
        assert note.text.startswith(f"installed {model}: ")


def test_a_driver_quits_while_it_reads_a_model(tmp_path: Path, slow: Path) -> None:
    with driver("cpu", tmp_path / "r", "threads=1") as cpu:
        cpu.send(Load(1, 9, str(slow), "fp32", 8))
        cpu.send(Inspect(2, str(tmp_path / "nothing")))
        cpu.wait_for(Failed, 2)
        cpu.send(Quit())
        assert cpu.wait() == 0


def test_a_driver_leaves_and_cleans_up_when_its_kernel_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "r"
    with driver("sim", place) as sim:
        assert sim.process.stdin is not None
        sim.process.stdin.close()
        assert sim.wait() == 0
        assert not any((place / name).exists() for name in (runtime.PROGRAMS, runtime.DRIVERS, runtime.LOCK))


def test_a_driver_leaves_the_files_of_another_kernel_alone(tmp_path: Path) -> None:
    place = tmp_path / "r"
    with driver("sim", place) as sim:
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); "
                "print(flush=True); sys.stdin.read()",
                str(place / runtime.LOCK),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            assert sim.process.stdin is not None
            sim.process.stdin.close()
            assert sim.wait() == 0
            assert all((place / name).exists() for name in (runtime.PROGRAMS, runtime.DRIVERS, runtime.LOCK))
        finally:
            holder.kill()
            holder.communicate()


def locked_by_another(place: Path) -> subprocess.Popen[bytes]:
    """A process that holds the lock; what it is told on stdin it writes into the lock."""
    script = """
        import fcntl, sys
        lock = open(sys.argv[1], "r+")
        fcntl.flock(lock, fcntl.LOCK_EX)
        print(flush=True)
        for line in sys.stdin:
            lock.write(line)
            lock.flush()
        """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(place / runtime.LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


def test_cleaning_waits_for_a_kernel_that_lets_go_of_its_lock_after_its_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (runtime.PROGRAMS, runtime.DRIVERS):
        (tmp_path / name).touch()
    lock = os.open(tmp_path / runtime.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, b"123 1.0\n")
    slept = 0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += 1
        if slept == 3:
            os.close(lock)

    monkeypatch.setattr(orphaned, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    orphaned.clean(tmp_path, b"123 1.0\n")
    assert slept == 3
    assert list(tmp_path.iterdir()) == []


def test_cleaning_gives_a_lock_up_that_is_held_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(orphaned, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    (tmp_path / runtime.PROGRAMS).touch()
    with (tmp_path / runtime.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        orphaned.clean(tmp_path, b"")
    assert now > 0.0
    assert (tmp_path / runtime.PROGRAMS).exists()


def test_a_driver_leaves_a_new_kernel_alone_even_if_that_ends_soon(tmp_path: Path) -> None:
    place = tmp_path / "r"
    with driver("sim", place) as sim, locked_by_another(place) as holder:
        assert holder.stdin is not None
        holder.stdin.write(b"12345 1.0\n")
        holder.stdin.flush()
        while not (place / runtime.LOCK).read_bytes():
            time.sleep(0.01)
        assert sim.process.stdin is not None
        sim.process.stdin.close()
        assert sim.wait() == 0
        holder.kill()
        assert all((place / name).exists() for name in (runtime.PROGRAMS, runtime.DRIVERS, runtime.LOCK))


def test_a_killed_kernel_leaves_nothing_however_often_it_is_tried() -> None:
    for _ in range(5):
        with booted() as kernel:
            with kernel.connect() as program:
                eventually(lambda: program(BootInfoCall()).devices[0].state == "up", "the driver is up")
            os.kill(kernel.pid, signal.SIGKILL)
            kernel.wait()
            eventually(
                lambda: {path.name for path in kernel.place.iterdir()} <= {runtime.LOG},
                "the driver has cleaned up",
            )


def test_a_driver_is_gone_soon_after_its_kernel_was_killed(tmp_path: Path) -> None:
    """The parent holds the pipe; SIGKILL gives it no chance to say anything. The driver is still importing torch."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
            import subprocess, sys, time
            words = [sys.executable, "-m", "llmasos.drivers.host", "cpu", "--identity", "x.1",
                     "--endpoint", "ipc://" + sys.argv[1] + "/drivers.sock", "--runtime", sys.argv[1]]
            child = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
            print(child.pid, flush=True)
            time.sleep(600)
            """),
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
    finally:
        parent.kill()
        parent.communicate()
    eventually(lambda: is_gone(child), "the driver has left")


def test_terminate_ends_a_driver_in_good_order_and_ctrl_c_does_not(tmp_path: Path) -> None:
    with driver("sim", tmp_path / "r") as sim:
        os.killpg(sim.process.pid, signal.SIGINT)
        sim.send(Probe(1, "sim", ""))
        sim.wait_for(Probed, 1)
        sim.process.send_signal(signal.SIGTERM)
        assert sim.wait() == 0


@pytest.mark.parametrize(
    ("kind", "option", "words"),
    [
        ("cpu", "thread=2", "no option 'thread'"),
        ("cpu", "threads=two", "'two'"),
        ("cpu", "dtype=int3", "int3"),
    ],
)
def test_a_wrong_option_ends_the_driver_with_a_line_that_names_it(
    tmp_path: Path, kind: str, option: str, words: str
) -> None:
    with driver(kind, tmp_path / "r", option, hello=False) as process:
        assert process.wait() == EX_UNUSABLE
        last = process.output().strip().splitlines()[-1]
        assert words in last


def test_an_unknown_kind_is_refused_naming_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        host.main(["tpu", "--endpoint", "ipc:///tmp/x", "--identity", "a.1", "--runtime", "/tmp/x"])
    assert ended.value.code == 2
    assert "'tpu'" in capsys.readouterr().err


def test_progress_grows_while_a_model_is_loaded(tmp_path: Path, model: Path) -> None:
    with driver("cpu", tmp_path / "r", "threads=1", "dtype=fp32") as cpu:
        cpu.send(Inspect(7, str(tmp_path / "nothing")))  # an idle driver is silent
        before = cpu.wait_for(Heartbeat).progress
        cpu.send(Load(1, 1, str(model), "", 8))
        cpu.wait_for(Loaded, 1)
        deadline = time.monotonic() + PATIENCE
        while (beat := cpu.wait_for(Heartbeat)).busy and time.monotonic() < deadline:
            pass
        assert beat.progress > before


def test_a_driver_that_has_lost_its_connection_to_the_kernel_ends_and_says_so(tmp_path: Path) -> None:
    with driver("sim", tmp_path) as running:
        running._socket.close(linger=0)  # the kernel's end of the pipe stays open
        assert running.wait() == 1
        assert "its connection to the kernel is lost" in running.output()


def test_a_thread_that_fails_ends_its_driver() -> None:
    """What it was to do would never be done, and the kernel would wait until the driver counts as hung."""
    program = (
        "import threading; from llmasos.drivers import host\n"
        "threading.excepthook = host._end\n"
        "threading.Thread(target=lambda: 1 / 0).start()\n"
        "threading.Event().wait()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
