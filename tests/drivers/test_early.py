"""Beginning a step before it is asked for: no token changes by it, whatever is asked then, and it can be stopped."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers import hal
from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.cpu.native.image import SPARE_FRAMES
from llmasos.drivers.device import Device
from llmasos.drivers.engine.early import MOST_SKIPPED, Patience
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.protocol import BLOCK_TOKENS, Drop, Load, Step
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Sampler
from tests.drivers.feeder import GREEDY, IMAGE, Feeder, Process

FRAMES = 400
LOOP = [5, 9, 2, 7, 7, 1]

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")


@contextmanager
def opened(directory: Path, dtype: str = "int8", **options: str) -> Iterator[Engine]:
    device = open_device({"threads": "2", "installed": "no", "early": "yes", **options})
    assert isinstance(device, Engine)
    device.fetch(Load(1, IMAGE, str(directory), dtype, FRAMES), lambda fraction: None)()
    yield device
    device.unload(IMAGE)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the native steps, by whether they were `asked` for or begun `early`."""
    counts = {"asked": 0, "early": 0}
    whole = library.Library.step

    def step(self: library.Library, decoder: int, batch: library.Batch) -> None:
        counts["early" if batch.stop else "asked"] += 1
        whole(self, decoder, batch)

    monkeypatch.setattr(library.Library, "step", step)
    return counts


SAMPLERS = [
    GREEDY,
    Sampler(temperature=0.8, seed=5),
    Sampler(temperature=1.0, top_k=9, repetition_penalty=1.2, seed=6),
]


@pytest.mark.parametrize("ahead", [0, 5], ids="ahead={}".format)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_decoding_that_goes_on_takes_what_was_begun(
    zoo: Callable[[str], Path], steps: dict[str, int], sampler: Sampler, ahead: int
) -> None:
    """Over many frames, so that most contexts need one that the kernel has not given yet when the step begins."""
    if sampler.repetition_penalty != 1.0:
        ahead = 0  # as the kernel has it
    logs = [LOOP * 6, list(range(30)) * 2, [3] * 20, [11, 4]]
    made = []
    for idle in (False, True):
        steps.update(asked=0, early=0)
        with opened(zoo("qwen3")) as device:
            feeder = Feeder(device, FRAMES, seed=idle, ahead=ahead, idle=idle)
            made.append(feeder.generate([feeder.spawn(log, sampler) for log in logs], 5 * BLOCK_TOKENS))
    assert made[0] == made[1]
    assert steps["early"] > steps["asked"]


def test_logprobs_are_those_asked_for(zoo: Callable[[str], Path]) -> None:
    found = []
    for idle in (False, True):
        with opened(zoo("llama")) as device:
            feeder = Feeder(device, FRAMES, idle=idle)
            process = feeder.spawn(LOOP)
            feeder.generate([process], 20, logprobs=3)
            found.append(process.logprobs)
    assert found[0] == found[1]
    assert len(found[0]) == 20


def busy(feeder: Feeder, seed: int) -> list[list[int]]:
    """What processes say that are spawned, forked, preempted, cut, ended and decoded together at random."""
    rng = random.Random(seed)
    processes: list[Process] = [feeder.spawn(LOOP * 3)]
    said = []
    for _ in range(40):
        what = rng.random()
        one = rng.choice(processes)
        if what < 0.1 and len(processes) < 6:
            processes.append(feeder.spawn([rng.randrange(200) for _ in range(rng.randrange(1, 40))]))
        elif what < 0.2 and len(processes) < 6 and one.computed:
            processes.append(feeder.fork(one, Sampler(temperature=0.9, seed=rng.randrange(9))))
        elif what < 0.27:
            feeder.preempt(one)
        elif what < 0.32 and len(one.log) > 4:
            feeder.truncate(one, len(one.log) - 2)
        elif what < 0.37 and len(processes) > 1:
            processes.remove(one)
            feeder.end(one)
        some = rng.sample(processes, rng.randrange(1, len(processes) + 1)) if what < 0.5 else processes
        count = rng.choice((1, 1, 2, 5))
        lengths = [len(process.log) + count for process in some]
        said += feeder.generate(some, count, chunk=rng.choice((1, 7, 64)))
        for process, length in zip(some, lengths, strict=True):
            if len(process.log) > length:  # by guessing; how far depends on what is measured
                feeder.truncate(process, length)
    return said


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_whatever_is_asked_no_token_changes(zoo: Callable[[str], Path], seed: int) -> None:
    said = []
    for idle in (False, True):
        with opened(zoo("llama")) as device:
            said.append(busy(Feeder(device, FRAMES, seed=idle, ahead=seed % 4, idle=idle), seed))
    assert said[0] == said[1]


def started(device: Device) -> tuple[Feeder, Process]:
    """A process that has just been given its first token."""
    feeder = Feeder(device, FRAMES)
    process = feeder.spawn(LOOP * 3)
    feeder.generate([process], 1)
    return feeder, process


def test_what_is_not_asked_for_is_stopped(zoo: Callable[[str], Path], steps: dict[str, int]) -> None:
    """Told of another request while it computes, it leaves at once; the next step is computed as ever."""
    with opened(zoo("llama")) as device:
        feeder, process = started(device)
        feeder.generate([process], 8)
        wanted = list(process.log)
    with opened(zoo("llama")) as device:
        feeder, process = started(device)
        whole = device._ahead._compute
        stopped = []

        def told(*arguments: object) -> object:
            device.hears(Drop([77]))
            try:
                return whole(*arguments)  # type: ignore[arg-type]
            except Exception as error:
                stopped.append(error)
                raise

        device._ahead._compute = told  # type: ignore[assignment]
        device.go_on(lambda: False)
        device._ahead._compute = whole
        assert [type(error).__name__ for error in stopped] == ["Stopped"]
        steps.update(asked=0, early=0)
        feeder.generate([process], 8)
        assert steps["asked"] == 8
        assert process.log == wanted


def test_nothing_begins_while_something_is_asked(zoo: Callable[[str], Path], steps: dict[str, int]) -> None:
    with opened(zoo("llama")) as device:
        started(device)
        device.go_on(lambda: True)
        assert steps["early"] == 0


def test_it_begins_only_where_it_is_known_how_all_go_on(zoo: Callable[[str], Path], steps: dict[str, int]) -> None:
    """Not after part of a prompt, nor at the end of the window, nor where there is no spare frame for each."""
    with opened(zoo("llama")) as device:
        feeder, process = started(device)
        other = feeder.spawn(LOOP * 4)
        feeder.step([feeder.run(process, 1), feeder.run(other, 7)])
        device.go_on(lambda: False)
        assert steps["early"] == 0

        many = [feeder.spawn([i % 200] * BLOCK_TOKENS) for i in range(SPARE_FRAMES + 1)]
        for few, begun in ((many, 0), (many[1:], 1)):
            for one in few:
                feeder.truncate(one, BLOCK_TOKENS)
                one.computed = 0
            feeder.step([feeder.run(one, BLOCK_TOKENS) for one in few])
            device.go_on(lambda: False)
            assert steps["early"] == begun

        window = device._images[IMAGE].layout.context
        last = feeder.spawn([i % 200 for i in range(window)])
        feeder.step([feeder.run(last, window)])
        device.go_on(lambda: False)
        assert steps["early"] == 1


def test_by_default_it_begins_early_where_a_core_is_left(zoo: Callable[[str], Path], steps: dict[str, int]) -> None:
    cores = hal.cpu().cores
    for threads in {1, cores}:
        steps.update(asked=0, early=0)
        with opened(zoo("llama"), threads=str(threads), early="") as device:
            started(device)
            device.go_on(lambda: False)
        assert steps["early"] == (threads < cores)
    with pytest.raises(SyscallError, match="early='perhaps'"):
        open_device({"early": "perhaps"})


def test_a_step_that_copies_frames_is_computed_anew(zoo: Callable[[str], Path], steps: dict[str, int]) -> None:
    with opened(zoo("llama")) as device:
        feeder, process = started(device)
        device.go_on(lambda: False)
        feeder.fork(process)
        steps.update(asked=0, early=0)
        feeder.step([feeder.run(process, 1)])
        assert steps == {"asked": 1, "early": 0}


def test_it_is_heard_from_another_thread(zoo: Callable[[str], Path]) -> None:
    """As in a driver: one thread computes, another is told what is asked, in no order."""
    with opened(zoo("llama")) as device:
        feeder, process = started(device)
        over = threading.Event()

        def disturb() -> None:
            while not over.is_set():
                device.hears(Step(1, []))

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            feeder._idle = True
            feeder.generate([process], 60)
        finally:
            over.set()
            thread.join()
        disturbed = process.log
    with opened(zoo("llama")) as device:
        feeder, process = started(device)
        feeder.generate([process], 60)
        assert process.log == disturbed


def test_where_nothing_comes_of_it_it_is_tried_ever_more_seldom() -> None:
    patience = Patience()
    assert all(patience.ask() for _ in range(9))
    waits = []
    for _ in range(12):
        patience.miss()
        waits.append(0)
        while not patience.ask():
            waits[-1] += 1
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[-1] == MOST_SKIPPED
    patience.hit()
    assert patience.ask()
    patience.miss()
    assert patience.ask()
