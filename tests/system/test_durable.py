"""A kernel that is killed and booted again: programs that talk to the embedded model go on as if nothing had happened.

The texts are compared with those of a run that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from llmasos import aio
from llmasos.drivers.cpu.native import library
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Dmesg, Getinfo, Null
from llmasos.userland.sdk.system import System
from tests.booted import PATIENCE, eventually
from tests.reborn import Reborn, reborn

PROMPTS = [
    "Tell me a long story about a fox.",
    "Tell me a long story about a lighthouse.",
    "Reverse this list: pear, fig, lime, apple, plum, cherry",
]
TOKENS = 120


NATIVE = not isinstance(library.load(), str)
PACED = Path(__file__).parent / "paced"


@pytest.fixture(scope="module", autouse=True)
def unhurried() -> Iterator[None]:
    """The native decoder has told a story before anybody can kill the kernel that it is told in; torch's has not."""
    with pytest.MonkeyPatch.context() as patch:
        if NATIVE:
            patch.setenv("LLMASOS_PACE", "0.02")
            patch.setenv("PYTHONPATH", os.fspath(PACED), prepend=os.pathsep)
        yield


def tell(system: System, prompt: str, seed: int) -> Iterator[str]:
    agent = system.spawn(name=f"teller {seed}", temperature=0.9, seed=seed)
    return agent.say(prompt, TOKENS)


@pytest.fixture(scope="module")
def wanted(cpu_system: System) -> list[str]:
    """What the model says when nobody dies."""
    return ["".join(tell(cpu_system, prompt, seed)) for seed, prompt in enumerate(PROMPTS)]


class Tellers:
    """Three programs, each streaming an answer in a thread of its own; `texts` grow."""

    def __init__(self, place: Path) -> None:
        self.texts = ["" for _ in PROMPTS]
        self.pids: set[int] = set()
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._tell, args=(place, seed)) for seed in range(len(PROMPTS))]
        for thread in self._threads:
            thread.start()

    def _tell(self, place: Path, seed: int) -> None:
        try:
            with System.connect(place, name=f"program {seed}", reconnect=PATIENCE) as system:
                self.pids.add(system.kernel.pid)
                for piece in tell(system, PROMPTS[seed], seed):
                    self.texts[seed] += piece
        except BaseException as error:
            self.errors.append(error)

    @property
    def going(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        assert not self.errors


def test_programs_that_stream_go_on_when_the_kernel_is_killed(tmp_path: Path, wanted: list[str]) -> None:
    with reborn(tmp_path) as kernel:
        tellers = Tellers(tmp_path)
        eventually(lambda: all(len(text) > 10 for text in tellers.texts), "all have begun to speak")
        assert tellers.going
        kernel.kill()
        before = list(tellers.texts)
        kernel.boot()
        with System.connect(tmp_path) as observer:
            assert observer.kernel.pid not in tellers.pids
            tellers.join()
            said = "\n".join(line.text for line in observer(Dmesg()))
        assert tellers.texts == wanted
        assert before != wanted
        assert "journal" in said
    assert not (tmp_path / runtime.JOURNAL).exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_kernel_that_is_killed_again_and_again_at_any_moment_changes_no_word(
    tmp_path: Path, wanted: list[str], seed: int
) -> None:
    chance = random.Random(seed)
    with reborn(tmp_path) as kernel:
        tellers = Tellers(tmp_path)
        kills = 0
        while tellers.going and kills < 6:
            time.sleep(chance.uniform(0.0, 0.8))
            kernel.kill()
            kills += 1
            kernel.boot()
        tellers.join()
        assert tellers.texts == wanted
        assert kills >= 2


def test_async_a_program_goes_on_with_its_calls_and_streams(tmp_path: Path, wanted: list[str]) -> None:
    """A stream, a call that waits for a whole answer, and one made while there is no kernel."""
    texts: dict[str, str] = {}

    async def scenario(kernel: Reborn) -> None:
        async with aio.System.connect(tmp_path, reconnect=PATIENCE) as system:

            async def stream(seed: int) -> None:
                agent = await system.spawn(temperature=0.9, seed=seed)
                async for piece in agent.say(PROMPTS[seed], TOKENS):
                    texts["stream"] = texts.get("stream", "") + piece

            async def ask(key: str, seed: int) -> None:
                agent = await system.spawn(temperature=0.9, seed=seed)
                texts[key] = await agent.ask(PROMPTS[seed], TOKENS)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream, 0)
                nursery.start_soon(ask, "whole", 1)
                with trio.fail_after(PATIENCE):
                    while len(texts.get("stream", "")) < 10:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                await trio.to_thread.run_sync(kernel.kill)
                nursery.start_soon(ask, "later", 2)
                await trio.to_thread.run_sync(kernel.boot)
            assert [texts["stream"], texts["whole"], texts["later"]] == wanted

    with reborn(tmp_path) as kernel:
        trio.run(scenario, kernel)


def test_a_decode_that_was_taken_back_while_there_was_no_kernel_does_not_go_on(tmp_path: Path) -> None:
    with reborn(tmp_path) as kernel, System.connect(tmp_path, reconnect=PATIENCE) as system:
        agent = system.spawn(prompt="Once upon a time", temperature=1.0, seed=1)
        agent.generate(1)  # what takes long the first time
        errors: list[SyscallError] = []

        def decode() -> None:
            try:
                system.kernel(Decode(agent.pid, 1500), timeout=3.0)
            except SyscallError as error:
                errors.append(error)

        thread = threading.Thread(target=decode)
        thread.start()
        eventually(lambda: agent.info().decoding, "it decodes")
        kernel.kill()
        thread.join()
        assert [error.errno for error in errors] == [Errno.ETIME]
        kernel.boot()
        eventually(lambda: not agent.info().decoding, "it has been interrupted")
        assert agent.info().usage.decoded < 1500
        assert agent.generate(4)


def kill_in_its_midst(kernel: Reborn, pid: int) -> None:
    """Kill the kernel as soon as a process decodes."""
    with blocking.connect(kernel.place, timeout=PATIENCE, name="killer", reconnect=0.0) as killer:
        eventually(lambda: killer(Getinfo(pid)).decoding, "it decodes")
        kernel.kill()


def test_what_is_called_after_a_decode_was_taken_back_finds_it_ended_by_the_next_kernel(
    tmp_path: Path,
) -> None:
    with reborn(tmp_path) as kernel, System.connect(tmp_path, reconnect=PATIENCE) as system:
        agent = system.spawn(prompt="Once upon a time", temperature=1.0, seed=1)
        agent.generate(1)
        down = threading.Event()
        system.kernel.notify = lambda boot: down.set() if boot is None else None
        threading.Thread(target=kill_in_its_midst, args=(kernel, agent.pid)).start()
        with pytest.raises(SyscallError, match=r"^ETIME"):
            system.kernel(Decode(agent.pid, 1500), timeout=3.0)
        assert down.wait(PATIENCE)
        boot = threading.Timer(0.5, kernel.boot)
        boot.start()
        assert len(system.kernel(Decode(agent.pid, 4)).tokens) == 4
        boot.join()


def test_async_what_is_called_after_a_decode_was_taken_back_finds_it_ended_by_the_next_kernel(
    tmp_path: Path,
) -> None:
    async def scenario(kernel: Reborn) -> None:
        async with aio.System.connect(tmp_path, reconnect=PATIENCE) as system:
            agent = await system.spawn(prompt="Once upon a time", temperature=1.0, seed=1)
            await agent.generate(1)
            down = trio.Event()
            system.kernel.notify = lambda boot: down.set() if boot is None else None
            threading.Thread(target=kill_in_its_midst, args=(kernel, agent.pid)).start()
            with trio.move_on_after(3.0):
                await system.kernel(Decode(agent.pid, 1500))
            await down.wait()
            boot = threading.Timer(0.5, kernel.boot)
            boot.start()
            assert len((await system.kernel(Decode(agent.pid, 4))).tokens) == 4
            await trio.to_thread.run_sync(boot.join)

    with reborn(tmp_path) as kernel:
        trio.run(scenario, kernel)


def test_a_program_that_comes_right_after_a_boot_waits_for_the_model_of_a_process_that_is_back(
    tmp_path: Path,
) -> None:
    with reborn(tmp_path) as kernel:
        with System.connect(tmp_path) as system:
            pid = system.spawn(dtype="int8", prompt="Once upon a time", detached=True).pid
        kernel.kill()
        kernel.boot()
        with System.connect(tmp_path) as system:
            agent = system.process(pid)
            assert agent.text().startswith("Once upon a time")
            assert agent.model.dtype == "int8"
            assert [model.dtype for model in system.models() if model.device] == ["int8"]


def test_a_kernel_that_does_not_come_back_ends_the_stream_with_what_to_do(tmp_path: Path) -> None:
    with reborn(tmp_path) as kernel, System.connect(tmp_path, reconnect=1.0) as system:
        agent = system.spawn(temperature=0.9, seed=0)
        errors: list[SyscallError] = []

        def hear() -> None:
            try:
                list(agent.say(PROMPTS[0], TOKENS))
            except SyscallError as error:
                errors.append(error)

        agent.stop()  # the answer might be there before the kernel is killed
        hearing = threading.Thread(target=hear)
        hearing.start()
        eventually(lambda: agent.info().decoding, "it is to answer")
        kernel.kill()
        hearing.join()
    (error,) = errors
    assert error.errno is Errno.EPIPE
    assert "llmasos boot" in error.reason


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_kernel_that_halts_is_not_waited_for(tmp_path: Path, elsewhere: bool) -> None:
    place = tmp_path / "run"
    flags = ["--journal", os.fspath(tmp_path / "kept")] if elsewhere else []
    with reborn(place, *flags) as kernel:
        program = System.connect(place, reconnect=10 * PATIENCE)
        program(Null())
        if elsewhere:
            assert (place / runtime.JOURNAL).is_symlink()
        kernel.end()
        with pytest.raises(SyscallError) as caught:
            program(Null())
        assert caught.value.errno is Errno.EPIPE
        assert "has halted" in caught.value.reason
        program.close()
        left = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
        assert all(path.parent.name == "audit" for path in left), "only the audit log outlives a halt"


def test_a_journal_that_lies_elsewhere_brings_programs_back_too(tmp_path: Path) -> None:
    place, kept = tmp_path / "run", tmp_path / "kept"
    with (
        reborn(place, "--journal", os.fspath(kept)) as kernel,
        System.connect(place, reconnect=PATIENCE) as system,
    ):
        agent = system.spawn(prompt="Once upon a time", seed=1)
        tokens = agent.tokens()
        kernel.kill()
        kernel.boot()
        assert agent.tokens() == tokens
