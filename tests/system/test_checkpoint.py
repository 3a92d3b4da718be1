"""Process images through the whole system: agents that go on in another kernel, on another device, after a mishap."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmasos.drivers.cpu.native import library
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import CheckpointInfo, Finish, LogLine, State
from llmasos.syscalls.table import BootInfoCall, Call, Checkpoint, Decode, Dmesg, Read, Restore
from llmasos.userland.sdk.system import Process, System
from tests.booted import eventually

NATIVE = not isinstance(library.load(), str)
DTYPES = ["fp32", "bf16", *(["int8", "int4"] if NATIVE else [])]
PROMPT = [(7 * i + i * i) % 251 for i in range(200)]


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """A kernel with two devices."""
    flags = ["--device", "cpu:threads=1", "--device", "cpu:threads=1"]
    with System.connect(boot=True, flags=flags) as system:
        yield system


def log_of(system: System) -> list[LogLine]:
    return system(Dmesg())


def warnings(system: System) -> list[str]:
    return [line.text for line in log_of(system) if line.level != "info"]


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kv", [True, False], ids="kv={}".format)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_agent_goes_on_in_another_kernel_and_on_another_device(
    system: System,
    cpu_system: System,
    zoo: Callable[[str], Path],
    tmp_path: Path,
    dtype: str,
    kv: bool,
    sampled: bool,
) -> None:
    model, image = str(zoo("qwen3")), tmp_path / "image"
    how = {"temperature": 0.8, "top_k": 40, "seed": 3} if sampled else {}
    process = cpu_system.spawn(model, PROMPT, dtype=dtype, name="traveller", **how)  # type: ignore[arg-type]
    cpu_system(Decode(process.pid, 9))
    info = process.checkpoint(image, kv=kv)
    assert (info.tokens, info.kv_tokens) == (len(PROMPT) + 9, len(PROMPT) + 8 if kv else 0)
    assert info.bytes == image.stat().st_size
    wanted = cpu_system(Decode(process.pid, 30)).tokens
    before = len(warnings(system))
    for device in ("", "cpu1"):
        restored = system.restore(image, device=device)
        assert restored.info().name == "traveller"
        assert restored.info().device == (device or "cpu0")
        assert system(Decode(restored.pid, 30)).tokens == wanted
        if kv:
            assert restored.info().usage.computed == 30
        else:
            assert restored.info().usage.computed + restored.info().usage.reused == len(PROMPT) + 8 + 30
        restored.end()
    process.end()
    assert warnings(system)[before:] == []


def test_a_decode_goes_on_where_it_was(system: System, zoo: Callable[[str], Path], tmp_path: Path) -> None:
    process = system.spawn(str(zoo("llama")), PROMPT, dtype="fp32")
    system(Decode(process.pid, 200, wait=False))
    system(Read(process.pid, len(PROMPT) + 2))
    info = process.checkpoint(tmp_path / "image")
    assert len(PROMPT) < info.tokens < len(PROMPT) + 200
    process.stop()
    eventually(lambda: process.info().state is State.STOPPED, "it stops")
    stopped = process.checkpoint(tmp_path / "stopped")
    assert stopped.kv_tokens == stopped.tokens - 1, "its pages are in the swap file, and in the image"
    process.cont()
    others = [system.restore(tmp_path / name) for name in ("image", "stopped")]
    assert others[1].info().state is State.STOPPED
    others[1].cont()
    for other in (process, *others):
        eventually(lambda other=other: not other.info().decoding, "it ends")  # type: ignore[misc]
        assert other.info().finish is Finish.LENGTH
        assert other.tokens() == process.tokens()
        assert other.info().length == len(PROMPT) + 200
    for other in (process, *others):
        other.end()


@pytest.mark.skipif(not NATIVE, reason="KV in int8 needs the native decoder")
def test_kv_in_int8_and_with_a_passphrase(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    with System.connect(boot=True, flags=["--device", "cpu:threads=1,kv=int8"]) as one:
        process = one.spawn(str(zoo("qwen3")), PROMPT, dtype="int8")
        one(Decode(process.pid, 9))
        process.checkpoint(tmp_path / "image", passphrase="open sesame")
        wanted = one(Decode(process.pid, 30)).tokens
    with System.connect(boot=True, flags=["--device", "cpu:threads=1,kv=int8"]) as other:
        with pytest.raises(SyscallError) as caught:
            other.restore(tmp_path / "image", passphrase="sesame")
        assert caught.value.errno is Errno.EPERM
        restored = other.restore(tmp_path / "image", passphrase="open sesame")
        assert other(Decode(restored.pid, 30)).tokens == wanted
        assert restored.info().usage.computed == 30
        assert not any("sesame" in line.text for line in log_of(other))


def test_kv_of_another_form_is_computed_again_and_the_log_says_why(
    system: System, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    """torch's may depend on the number of threads."""
    with System.connect(boot=True, flags=["--device", "cpu:threads=2"]) as other:
        process = other.spawn(str(zoo("gpt2")), PROMPT[::-1], dtype="fp32")
        other(Decode(process.pid, 5))
        process.checkpoint(tmp_path / "image")
        wanted = other(Decode(process.pid, 9)).tokens
    restored = system.restore(tmp_path / "image")
    assert system(Decode(restored.pid, 9)).tokens == wanted
    assert restored.info().usage.computed == len(PROMPT) + 5 - 1 + 9
    assert any("threads was 2, is 1" in line for line in warnings(system))
    restored.end()


def flip(file: Path, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def test_a_flipped_bit_costs_time_and_no_token(system: System, zoo: Callable[[str], Path], tmp_path: Path) -> None:
    process = system.spawn(str(zoo("llama")), PROMPT, dtype="fp32")
    system(Decode(process.pid, 9))
    image = tmp_path / "image"
    size = process.checkpoint(image).bytes
    wanted = system(Decode(process.pid, 30)).tokens
    process.end()
    with System.connect(boot=True, flags=["--device", "cpu:threads=1"]) as fresh:
        flip(image, size // 2)
        restored = fresh.restore(image)
        assert any("is damaged: it is not what was encrypted" in line for line in warnings(fresh))
        assert fresh(Decode(restored.pid, 30)).tokens == wanted
        assert 30 < restored.info().usage.computed < len(PROMPT) + 9 + 30
        os.truncate(image, size // 3)
        again = fresh.restore(image)
        assert fresh(Decode(again.pid, 30)).tokens == wanted
        flip(image, 100)
        with pytest.raises(SyscallError) as caught:
            fresh.restore(image)
        assert caught.value.errno is Errno.EIO
        assert any("could not be restored" in line for line in warnings(fresh))


def test_a_driver_killed_while_it_writes_or_reads_loses_nothing(
    cpu_system: System, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    """Killed at whatever moment: the file under the name is a whole one, and the agents go on."""
    process = cpu_system.spawn(str(zoo("llama")), PROMPT, dtype="fp32")
    cpu_system(Decode(process.pid, 9))
    image = tmp_path / "image"
    process.checkpoint(image)
    before = process.tokens()

    def outcome(call: Call[Any]) -> CheckpointInfo | int | Errno:
        try:
            return cpu_system(call)
        except SyscallError as error:
            return error.errno

    calls: list[Checkpoint | Restore] = [Checkpoint(process.pid, str(image)), Restore(str(image))]
    for number, call in enumerate(calls * 2):
        (device,) = cpu_system(BootInfoCall()).devices
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(outcome, call)
            if number >= 2:
                time.sleep(0.005)
            os.kill(device.os_pid, signal.SIGKILL)
            answer = made.result()
        assert answer is Errno.ERESTART or not isinstance(answer, Errno)
        eventually(
            lambda old=device.incarnation: (
                cpu_system(BootInfoCall()).devices[0].incarnation > old  # type: ignore[misc]
                and cpu_system(BootInfoCall()).devices[0].state == "up"
            ),
            "the driver is started again",
        )
        restored = cpu_system.restore(image)
        assert restored.tokens() == before
        restored.end()
        if isinstance(answer, int) and not isinstance(answer, Errno):
            Process(cpu_system, answer, process.model).end()
    process.checkpoint(image)  # also takes away what a writer left that was killed at the very end
    assert os.listdir(tmp_path) == ["image"]
    assert cpu_system(Decode(process.pid, 9)).finish is Finish.LENGTH
    process.end()
