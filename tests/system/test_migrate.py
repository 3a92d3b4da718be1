"""Migration through the whole system: agents that change devices while they talk, and drivers killed under them."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers.cpu.native import library
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, State
from llmasos.syscalls.table import BootInfoCall, Decode, Dmesg, Read, Setsched
from llmasos.userland.sdk.system import Process, System
from tests.booted import booted, eventually, is_gone

NATIVE = not isinstance(library.load(), str)
DTYPES = ["fp32", "bf16", *(["int8", "int4"] if NATIVE else [])]
FLAGS = ["--device", "cpu:threads=1", "--device", "cpu:threads=1"]
PROMPT = [(7 * i + i * i) % 251 for i in range(200)]
TOKENS = 300
ATTEMPTS = 5  # at moving a process in the midst of its decode: one may have ended before


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """A kernel with two devices."""
    with System.connect(boot=True, flags=FLAGS) as system:
        yield system


def shared() -> list[str]:
    """Files in shared memory that have a name of ours. Tests that run beside this one have others there, and directories
    (tests/faults/crash_states.py)."""
    ours = [one for one in Path("/dev/shm").iterdir() if "llmasos" in one.name or "parcel" in one.name]
    return sorted(one.name for one in ours if one.is_file())


def warnings(system: System) -> list[str]:
    return [line.text for line in system(Dmesg()) if line.level != "info"]


def moves(system: System, process: Process) -> list[str]:
    about = f"process {process.pid}: moved from "
    return [line.text for line in system(Dmesg()) if line.text.startswith(about)]


def outcome(system: System, process: Process, device: str, timeout: float | None = None) -> Errno:
    """How a move ends."""
    try:
        system.kernel(Setsched(process.pid, device=device), timeout=timeout)
    except SyscallError as error:
        return error.errno
    return Errno.OK


def unmoved(system: System, model: str, dtype: str, **how: float) -> list[int]:
    """What a process says that stays where it is."""
    process = system.spawn(model, PROMPT, dtype=dtype, **how)  # type: ignore[arg-type]
    tokens = system(Decode(process.pid, TOKENS)).tokens
    process.end()
    return tokens


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_goes_on_without_a_gap_and_with_the_same_tokens(
    system: System, cpu_system: System, zoo: Callable[[str], Path], dtype: str, sampled: bool
) -> None:
    model = str(zoo("qwen3"))
    how: dict[str, float] = {"temperature": 0.8, "top_k": 40, "seed": 3} if sampled else {"seed": 0}
    wanted = unmoved(cpu_system, model, dtype, **how)
    system.load(model, dtype, "cpu1")
    before = len(warnings(system))
    for _ in range(ATTEMPTS):
        if moved_in_its_midst(system, model, dtype, how, wanted):
            break
    else:
        raise AssertionError(f"it had ended before it was moved, {ATTEMPTS} times")
    assert warnings(system)[before:] == []


def moved_in_its_midst(system: System, model: str, dtype: str, how: dict[str, float], wanted: list[int]) -> bool:
    """Move a process that decodes, while another program reads what it says. Whether it still did when it had moved."""
    process = system.spawn(model, PROMPT, dtype=dtype, **how)  # type: ignore[arg-type]
    system(Decode(process.pid, TOKENS, wait=False))
    read: list[int] = []

    def reader() -> None:
        with System.connect(system.kernel.boot.runtime) as other:
            while True:
                result = other(Read(process.pid, len(PROMPT) + len(read)))
                read.extend(result.tokens)
                if not result.decoding:
                    return

    reading = threading.Thread(target=reader)
    reading.start()
    midst = False
    for device in ("cpu1", "cpu0", "cpu1"):
        process.move(device)
        info = process.info()
        assert info.device == device
        midst = midst or info.decoding
    reading.join()
    assert read == wanted
    assert process.tokens() == PROMPT + wanted
    assert process.info().finish is Finish.LENGTH
    assert len(moves(system, process)) == 3
    process.end()
    return midst


def test_an_idle_process_computes_nothing_again(system: System, zoo: Callable[[str], Path]) -> None:
    process = system.spawn(str(zoo("llama")), PROMPT, dtype="fp32")
    first = system(Decode(process.pid, 9)).tokens
    before = process.info().usage.computed
    process.move("cpu1")
    info = process.info()
    assert (info.device, info.cached) == ("cpu1", len(PROMPT) + 8)
    second = system(Decode(process.pid, 30)).tokens
    assert process.info().usage.computed - before == 30
    twin = system.spawn(str(zoo("llama")), PROMPT + first, dtype="fp32")
    assert system(Decode(twin.pid, 30)).tokens == second
    for one in (process, twin):
        one.end()


def test_a_stopped_process_whose_pages_are_in_the_swap_file(system: System, zoo: Callable[[str], Path]) -> None:
    process = system.spawn(str(zoo("gpt2")), PROMPT[::-1], dtype="fp32")
    system(Decode(process.pid, 9))
    process.stop()
    eventually(lambda: process.info().swapped > 0, "its pages are moved out")
    process.move("cpu1")
    assert process.info().state is State.STOPPED
    process.cont()
    before = process.info().usage.computed
    system(Decode(process.pid, 20))
    assert process.info().usage.computed - before == 20, "from one swap file to the other"
    twin = system.spawn(str(zoo("gpt2")), PROMPT[::-1], dtype="fp32")
    assert system(Decode(twin.pid, 29)).tokens == process.tokens()[len(PROMPT) :]
    for one in (process, twin):
        one.end()


# Two drivers of their own that import torch take ten seconds of a processor: without it where there is a native decoder.
@pytest.mark.parametrize(
    ("first", "second", "model", "dtype", "why"),
    [("kv=int8", "kv=bf16", "llama", "bf16", "computed again: a frame has")]
    if NATIVE
    else [("threads=1", "threads=2", "gpt2", "fp32", "threads was 1, is 2")],
)
def test_where_kv_has_another_form_the_log_is_computed_and_the_kernel_says_why(
    first: str, second: str, model: str, dtype: str, why: str, zoo: Callable[[str], Path]
) -> None:
    with System.connect(boot=True, flags=["--device", f"cpu:{first}", "--device", f"cpu:{second}"]) as system:
        process = system.spawn(str(zoo(model)), PROMPT, dtype=dtype)
        system(Decode(process.pid, TOKENS, wait=False))
        process.move("cpu1")
        assert any(why in line for line in warnings(system)), warnings(system)
        eventually(lambda: not process.info().decoding, "it ends")
        assert process.info().length == len(PROMPT) + TOKENS


def test_the_embedded_agent_talks_on(system: System) -> None:
    with system.spawn(name="ada") as agent, system.spawn() as other:
        agent.ask("My name is Mira.")
        other.ask("My name is Mira.")
        agent.move("cpu1")
        assert agent.ask("What is my name?") == other.ask("What is my name?")
        assert agent.tokens() == other.tokens()


def test_no_file_has_a_name_and_no_descriptor_stays_open(system: System, zoo: Callable[[str], Path]) -> None:
    place = Path(system.kernel.boot.runtime)
    before = sorted(os.listdir(place)), shared()

    def parcels() -> list[str]:
        found = []
        for device in system(BootInfoCall()).devices:
            for name in os.listdir(f"/proc/{device.os_pid}/fd"):
                try:
                    target = os.readlink(f"/proc/{device.os_pid}/fd/{name}")
                except FileNotFoundError:
                    continue
                if "llmasos-parcel" in target:
                    found.append(target)
        return found

    process = system.spawn(str(zoo("llama")), PROMPT, dtype="fp32")
    for device in ("cpu1", "cpu0"):
        process.move(device)
    eventually(lambda: not parcels(), "the drivers let go of what was moved")
    assert (sorted(os.listdir(place)), shared()) == before
    process.end()


@pytest.fixture(scope="module")
def wanted(system: System, zoo: Callable[[str], Path]) -> list[int]:
    return unmoved(system, str(zoo("llama")), "fp32")


@settings(max_examples=8)
@given(delays=st.lists(st.floats(0, 0.02), min_size=1, max_size=4))
def test_second_thoughts_leave_it_where_it_is_or_there(
    delays: list[float], system: System, wanted: list[int], zoo: Callable[[str], Path]
) -> None:
    process = system.spawn(str(zoo("llama")), PROMPT, dtype="fp32")
    system(Decode(process.pid, TOKENS, wait=False))
    for delay in delays:
        there = "cpu1" if process.info().device == "cpu0" else "cpu0"
        assert outcome(system, process, there, timeout=delay) in (Errno.OK, Errno.ETIME, Errno.EBUSY)
        assert process.info().device in ("cpu0", "cpu1")
    eventually(lambda: not process.info().decoding, "it ends")
    assert process.tokens() == PROMPT + wanted
    process.end()


@pytest.mark.parametrize(("victim", "delays"), [("cpu0", (0.0, 0.005)), ("cpu1", (0.002, 0.01))])
def test_a_driver_killed_under_a_move_costs_no_token(
    victim: str, delays: tuple[float, ...], zoo: Callable[[str], Path]
) -> None:
    with System.connect(boot=True, flags=FLAGS) as system:
        model = str(zoo("llama"))
        wanted = unmoved(system, model, "fp32")
        system.load(model, "fp32", "cpu1")
        for number, delay in enumerate(delays):
            process = system.spawn(model, PROMPT, dtype="fp32", device="cpu0")
            system(Decode(process.pid, TOKENS, wait=False))
            (pid,) = (d.os_pid for d in system(BootInfoCall()).devices if d.name == victim)

            with ThreadPoolExecutor(1) as pool:
                moving = pool.submit(outcome, system, process, "cpu1")
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                answer = moving.result()
            assert answer in (Errno.OK, Errno.ERESTART), number
            assert process.info().device == ("cpu1" if answer is Errno.OK else "cpu0")
            eventually(lambda: all(d.state == "up" for d in system(BootInfoCall()).devices), "both drivers are up")
            eventually(lambda process=process: not process.info().decoding, "it ends")  # type: ignore[misc]
            assert process.tokens() == PROMPT + wanted
            process.end()


def test_a_kernel_killed_under_a_move_leaves_nothing(zoo: Callable[[str], Path]) -> None:
    before = shared()
    with booted(*FLAGS) as kernel:
        with System.connect(kernel.place) as system:
            process = system.spawn(str(zoo("llama")), PROMPT, dtype="fp32", detached=True)
            system.load(str(zoo("llama")), "fp32", "cpu1")
            family = kernel.descendants()
            death = threading.Timer(0.003, psutil.Process(kernel.pid).kill)
            death.start()
            devices = itertools.cycle(("cpu1", "cpu0"))
            while (answer := outcome(system, process, next(devices))) is Errno.OK:
                pass
            assert answer in (Errno.EPIPE, Errno.ECONNREFUSED)
        death.join()
        kernel.wait()
        eventually(lambda: all(is_gone(one) for one in family), "the drivers follow their kernel")
        assert shared() == before
