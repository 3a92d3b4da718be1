"""What a program drops is closed: its processes end, its descriptors and threads go."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

import llmasos
from llmasos import aio
from llmasos.userland.sdk.system import System
from tests.booted import eventually
from tests.leftovers import nothing_left_open
from tests.loops import LOOPS, run_under

# ruff: noqa: PT031 - what is warned of is dropped at the end of a statement, or at the next collection
pytestmark = pytest.mark.processes
WARNED = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def programs(system: System) -> set[str]:
    return {row.name for row in system.ps() if row.kind is llmasos.Kind.PROGRAM}


USES: dict[str, Callable[[Path], object]] = {
    "system": lambda place: System.connect(place, name="dropped"),
    "process": lambda place: System.connect(place, name="dropped").spawn().ask("hi"),
    "LLM": lambda place: llmasos.LLM.from_pretrained("tiny", system=System.connect(place, name="dropped")).generate(
        "Once", max_new_tokens=2
    ),
    "client": lambda place: System.connect(place, name="dropped").ps(),
}


@pytest.mark.parametrize("use", USES)
def test_a_system_that_is_dropped_is_closed_and_warned_of(cpu_system: System, use: str) -> None:
    place = cpu_system.kernel.runtime
    with pytest.warns(ResourceWarning, match="unclosed <System of"):
        USES[use](place)
        gc.collect()
    eventually(lambda: "dropped" not in programs(cpu_system), "the program has ended")


@WARNED
def test_dropped_systems_leave_no_descriptors(cpu_system: System) -> None:
    def drop() -> None:
        System.connect(cpu_system.kernel.runtime, name="dropped")
        gc.collect()

    drop()
    with nothing_left_open():
        for _ in range(5):
            drop()


def test_what_is_still_used_holds_its_system(cpu_system: System) -> None:
    agent = System.connect(cpu_system.kernel.runtime, name="held").spawn()
    agent.feed("Once upon a time")
    for stream in (agent.stream(20), agent.say("A story.", 20), agent.pieces("A story.", 20)):
        gc.collect()
        assert list(stream)
    story, system = agent.stream(40), agent.system
    del agent, stream
    assert next(story)
    del system
    gc.collect()
    assert "".join(story)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del story
        gc.collect()


@pytest.mark.parametrize("loop", LOOPS)
def test_an_asynchronous_system_that_is_dropped_ends_its_program(cpu_system: System, loop: str) -> None:
    async def main() -> None:
        async def use() -> None:
            system = await aio.System.connect(cpu_system.kernel.runtime, name="dropped")
            await (await system.spawn()).ask("hi")

        with pytest.warns(ResourceWarning, match="unclosed <System of"):
            await use()
            gc.collect()

    run_under(loop, main)
    eventually(lambda: "dropped" not in programs(cpu_system), "the program has ended")
