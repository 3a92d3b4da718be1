"""What ends in the kernel goes when its last reference does: Python's collector of cycles, which stops all else, finds
none of it. And the collector itself is kept short."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from llmasos.kernel.edge import garbage
from llmasos.kernel.objects.image import Image
from llmasos.simulator import simulate
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.table import Checkpoint, Decode, GroupCreate, GroupRemove, Kill, Restore, Setsched, Spawn, Wait
from tests.booted import PATIENCE, eventually
from tests.kernel.chaos import Chaos

OURS = "llmasos.kernel", "llmasos.syscalls", "llmasos.drivers.protocol"


def kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


@contextmanager
def left_to_the_collector() -> Iterator[Counter[str]]:
    """Counts what of the kernel is made within this and becomes garbage that is in cycles, by kind."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.freeze()  # what other tests have left may become garbage meanwhile
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(name for name in map(kind, gc.garbage) if name.startswith(OURS))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


@pytest.mark.long
def test_nothing_of_the_core_is_in_a_cycle_when_it_ends() -> None:
    chaos = Chaos(
        3,
        processes=40,
        models=["sim", "sim:1.5m", "sim:2m", "sim:7b"],  # one that is refused
        options={"link": "2e9", "fail_load_every": "7"},
        config={"weight_bytes": 5_000_000, "weight_quantum": 0.05},
        deaths=0.0005,
    )
    with left_to_the_collector() as found:
        chaos.run(1.0, report=float("inf"))
        chaos.end()
    assert not found


def test_nor_are_programs_groups_images_and_moves(tmp_path: Path) -> None:
    sim = simulate(devices=2, journal=True)
    program = sim.program()
    with left_to_the_collector() as found:
        for number in range(3):
            other = sim.program()
            pid = other.call(Spawn("sim", [number, 2, 3]))
            other.call(GroupCreate("a"))
            other.call(GroupCreate("a/b"))
            other.call(GroupRemove("a/b"))
            waiting, decoding = other.start(Wait(pid)), other.start(Decode(pid, 50))
            sim.run_for(0.01)
            other.call(Setsched(pid, device="sim1"))
            other.call(Checkpoint(pid, str(tmp_path / "image")))
            copy = program.call(Restore(str(tmp_path / "image")))
            program.start(Wait(copy)).cancel()
            program.call(Kill(copy))
            program.call(Wait(copy))
            sim.crash()
            sim.run_for(1.0)
            other.disconnect()
            sim.run_idle()
            assert decoding.done
            assert not waiting.done
            del other, waiting, decoding
    assert not found


def test_a_model_goes_with_its_driver_and_not_when_it_would_have_been_idle() -> None:
    def there() -> int:
        return sum(type(one) is Image for one in gc.get_objects())

    before = there()
    sim = simulate(idle_seconds=1e6)
    program = sim.program()
    for number in range(4):
        pid = program.call(Spawn("sim", [number, 2, 3]))
        program.call(Decode(pid, 2))
        program.call(Kill(pid))
        program.call(Wait(pid))
        sim.crash()
        sim.run_for(100.0)
    assert there() - before <= 1


KERNEL = """
    import contextlib, gc, signal, sys
    from llmasos.kernel.edge import boot
    def count(number, frame):
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        print(len(gc.garbage), *{getattr(one, '__qualname__', type(one).__qualname__) for one in gc.garbage}, flush=True)
        gc.garbage.clear()
        gc.set_debug(0)
        gc.collect()
    signal.signal(signal.SIGUSR1, count)
    boot.short_pauses = contextlib.nullcontext
    gc.disable()
    sys.exit(boot.main())
"""


@pytest.mark.processes
def test_a_running_kernel_leaves_nothing_of_what_it_does_to_the_collector(tmp_path: Path) -> None:
    place = tmp_path / "run"
    words = ["--runtime", os.fspath(place), "--die-with-parent", "--quiet", "--device", "sim:time_scale=0"]
    kernel = subprocess.Popen(
        [sys.executable, "-c", dedent(KERNEL), *words, "--journal", os.fspath(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=runtime.environment(),
    )
    assert kernel.stdout is not None
    left = []
    try:
        eventually(lambda: runtime.listening(place), "it listens")
        for rounds in (5, 40):
            for number in range(rounds):
                with blocking.connect(place, timeout=PATIENCE) as program:
                    pid = program(Spawn("sim", [number, 2, 3]), timeout=PATIENCE)
                    program(Decode(pid, 3), timeout=PATIENCE)
                    program(Kill(pid))
                    program(Wait(pid))
            os.kill(kernel.pid, signal.SIGUSR1)
            left.append(kernel.stdout.readline())
    finally:
        kernel.communicate(timeout=PATIENCE)
    assert kernel.returncode == 0
    assert int(left[1].split()[0]) < 40, f"after 40 rounds it left to the collector: {left[1]}"


def test_a_collection_that_took_long_is_the_last_that_looks_at_what_it_found_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, callbacks = gc.get_threshold(), list(gc.callbacks)
    try:
        with garbage.short_pauses():
            kept = [[number] for number in range(1000)]
            monkeypatch.setattr(garbage, "LONG_SECONDS", 1e9)
            gc.collect()
            assert gc.get_objects(generation=2), "a short one leaves all where it was"
            monkeypatch.setattr(garbage, "LONG_SECONDS", 0.0)
            gc.collect()
            assert gc.get_freeze_count() > len(kept)
            looked_at = gc.get_objects(generation=2)
            assert not any(one is kept for one in looked_at)
    finally:
        assert (gc.get_threshold(), list(gc.callbacks)) == (before, callbacks)
    assert gc.get_freeze_count() == 0
