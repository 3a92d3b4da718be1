"""`top` at rest: a recording that pauses while the terminal changes, and the question before many are stopped."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from llmasos.syscalls.records import Signal, State
from llmasos.syscalls.table import Getinfo, GroupCreate, GroupKill, GroupMove, GroupRemove, Spawn, Wait
from llmasos.userland.top.app import TopApp
from llmasos.userland.top.live import Live
from llmasos.userland.top.player import Player
from llmasos.userland.top.record import Writer, read
from llmasos.userland.top.screens import SIGNALS as CHOICES
from tests.booted import PATIENCE, Booted, booted
from tests.userland.top_pictures import agent, sample
from tests.userland.top_screen import put_on, shown, until

SIGNALS = [signal for signal, _ in CHOICES]
SIM = "sim:context=256,vocab=100"
SIZES = [(60, 15), (200, 50), (80, 24), (120, 40), (60, 15)]


def laid_out(app: TopApp, width: int) -> bool:
    """The columns are those of this width, and what stands in a row stands under its title."""
    lines = shown(app).splitlines()
    title = next((line for line in lines if re.match(r" +PID ", line)), "")
    row = next((line for line in lines if re.match(r" +4 ", line)), "")
    if not title or not row or "TOKENS" not in title or ("MODEL" in title) is not (width == 200):
        return False
    pid, tokens = title.index("PID") + len("PID"), title.index("TOKENS") + len("TOKENS")
    under = row[:pid].split() == ["4"] and row[:tokens].split()[-1] in {"1234", "1235", "1236"}
    return under and row[tokens : tokens + 1] in ("", " ") and cell_len(title) <= width


def test_the_titles_follow_the_size_of_the_terminal_also_in_a_pause(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    for second in range(3):
        rows = [agent(4, "bob", computed=1234 + second, decoded=56, seed=7), agent(5, "a-longer-name", computed=99)]
        writer.add(sample(float(second), rows, tokens_computed=second))
    writer.close()

    async def resize() -> None:
        app = TopApp(None, Player(read(tmp_path / "r")), light=False)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "bob" in shown(app), "the first picture")
            await pilot.press("p")
            for width, height in SIZES:
                await pilot.resize_terminal(width, height)
                await until(pilot, partial(laid_out, app, width), f"titles and rows of {width} columns")

    asyncio.run(resize())


Act = Callable[[TopApp, Pilot[None], Callable[[], set[State]]], Awaitable[None]]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted() as kernel:
        yield kernel


def on_a_team_of_two(kernel: Booted, act: Act) -> None:
    """`act` with the cursor on a group of two agents, and what tells their states."""
    with kernel.connect(name="owner") as owner:
        group = owner(GroupCreate("/users/team")).path
        pids = [owner(Spawn(model=SIM, tokens=[1, 2, 3], name=name)) for name in ("ada", "bob")]
        for pid in pids:
            owner(GroupMove(pid, group))

        def states() -> set[State]:
            return {owner(Getinfo(pid)).state for pid in pids}

        async def play(live: Live) -> None:
            app = TopApp(live, light=False)
            async with app.run_test(size=(80, 24)) as pilot:
                await until(pilot, lambda: "bob" in shown(app) and states() == {State.BLOCKED}, "the agents")
                await put_on(app, pilot, "team")
                await act(app, pilot, states)

        with kernel.connect(name="top") as client:
            live = Live(client, 0.1)
            try:
                asyncio.run(play(live))
            finally:
                live.stop(PATIENCE)
        owner(GroupKill(group, Signal.KILL))
        for pid in pids:
            owner(Wait(pid))
        owner(GroupRemove(group))


@pytest.mark.processes
def test_z_asks_before_it_stops_more_than_one_and_not_before_it_lets_them_go_on(kernel: Booted) -> None:
    async def stop(app: TopApp, pilot: Pilot[None], states: Callable[[], set[State]]) -> None:
        for answer in ("n", "escape"):
            await pilot.press("z")
            await until(pilot, lambda: "stop all 2 in /users/team?" in shown(app), "the question")
            await pilot.press(answer)
            await until(pilot, lambda: len(app.screen_stack) == 1, "it is over")
        assert states() == {State.BLOCKED}
        await pilot.press("z")
        await until(pilot, lambda: "stop all 2" in shown(app), "the question")
        await pilot.press("y")
        await until(pilot, lambda: states() == {State.STOPPED}, "both are stopped")
        await until(pilot, lambda: shown(app).count("stopped") >= 2, "that is shown")
        await put_on(app, pilot, "team")
        await pilot.press("z")
        await until(pilot, lambda: states() == {State.BLOCKED}, "both go on, without a question")

    on_a_team_of_two(kernel, stop)


@pytest.mark.processes
def test_k_asks_how_many_it_ends_and_not_before_it_interrupts_them(kernel: Booted) -> None:
    async def end(app: TopApp, pilot: Pilot[None], states: Callable[[], set[State]]) -> None:
        async def choose(position: int) -> None:
            await pilot.press("k")
            await until(pilot, lambda: "to all 2 in /users/team" in shown(app), "the signals")
            await pilot.press(*["down"] * position, "enter")

        for answer in ("n", "escape"):
            await choose(SIGNALS.index(Signal.TERM))
            await until(pilot, lambda: "end all 2 in /users/team?" in shown(app), "the question")
            await pilot.press(answer)
            await until(pilot, lambda: len(app.screen_stack) == 1, "it is over")
        await choose(SIGNALS.index(Signal.INT))
        await until(pilot, lambda: "INT sent to all 2" in shown(app), "it is sent without a question")
        assert states() == {State.BLOCKED}
        await choose(SIGNALS.index(Signal.STOP))
        await until(pilot, lambda: "stop all 2 in /users/team?" in shown(app), "the question")
        await pilot.press("n")
        await until(pilot, lambda: len(app.screen_stack) == 1, "it is over")
        await choose(SIGNALS.index(Signal.KILL))
        await until(pilot, lambda: "end all 2 in /users/team?" in shown(app), "the question")
        await pilot.press("y")
        await until(pilot, lambda: states() == {State.ZOMBIE}, "both have ended")

    on_a_team_of_two(kernel, end)
