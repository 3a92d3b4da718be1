"""The full-screen `top`, driven by keys and clicks, with a real kernel on a simulated device."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Signal, State
from llmasos.syscalls.table import Decode, Getinfo, GroupCreate, GroupMove, Kill, Spawn, StatsCall
from llmasos.userland.top.app import TopApp
from llmasos.userland.top.columns import BY_TITLE, NAME
from llmasos.userland.top.live import Live, Taken
from llmasos.userland.top.main import _signals_kept
from llmasos.userland.top.player import Player
from llmasos.userland.top.record import Writer, read
from tests import leftovers
from tests.booted import PATIENCE, Booted, booted
from tests.userland.top_screen import put_on, shown, until

pytestmark = pytest.mark.processes
SIM = "sim:context=100000,vocab=100"
NAMES = ("ada", "bert", "a-name-of-some-length", "cleo")
SIZES = [(60, 15), (80, 24), (120, 40), (200, 50)]
Scenario = Callable[[TopApp, Pilot[None]], Awaitable[None]]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted("--device", "sim:overhead=0.01,swap=1g") as kernel:
        yield kernel


@pytest.fixture
def owner(kernel: Booted) -> Iterator[Client]:
    """A program with four agents, two of which decode, and one in a group of its own."""
    with kernel.connect(name="owner") as client:
        pids = [client(Spawn(model=SIM, tokens=list(range(40)), name=name)) for name in NAMES]
        team = f"/users/team-{pids[0]}"
        client(GroupCreate(team))
        client(GroupMove(pids[3], team))
        threads = [threading.Thread(target=decode, args=(client, pid)) for pid in pids[:2]]
        for thread in threads:
            thread.start()
        yield client
    for thread in threads:
        thread.join()


def decode(client: Client, pid: int) -> None:
    with contextlib.suppress(SyscallError):  # its program ends before
        client(Decode(pid=pid, max_tokens=90_000))


def pid_of(client: Client, name: str) -> int:
    from llmasos.userland.programs import ps

    return max(row.pid for row in ps.processes(client) if row.name == name)


def played(scenario: Scenario, live: Live | None, size: tuple[int, int], player: Player | None = None) -> None:
    async def play() -> None:
        app = TopApp(live, player, light=False)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.picture is not None, "the first picture")
            await pilot.pause()
            await scenario(app, pilot)

    try:
        asyncio.run(play())
    finally:
        if live is not None:
            live.stop(PATIENCE)


async def another(app: TopApp, pilot: Pilot[None]) -> None:
    """Wait for another sample."""
    seen = app.picture
    await until(pilot, lambda: app.picture is not seen, "another sample")


def watching(kernel: Booted, scenario: Scenario, size: tuple[int, int] = (120, 40), **options: Any) -> None:
    """Run `top` as a program of its own."""
    with kernel.connect(name="top") as client:
        played(scenario, Live(client, 0.1, **options), size)


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", text))


# --- the screen -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(kernel: Booted) -> set[str]:
    """Every word that may stand on the screen: those of a screen on which all have room, the titles, and the states."""
    found: set[str] = set()

    async def look(app: TopApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.picture is not None and app.picture.seconds > 0, "rates")
        found.update(words(shown(app)))

    watching(kernel, look, (600, 120))
    states = {str(state) for state in State} | {"input", "child", "line", "lines", "more", "procs", "proc"}
    states |= words(
        "ram swap fair model pages of KV kept for prefixes process processes MiB GiB KiB all agents agent running ready"
    )
    return found | states | set().union(*(words(title) for title in BY_TITLE))


@pytest.mark.parametrize("size", SIZES)
def test_at_every_size_names_are_whole_and_no_word_is_cut(
    kernel: Booted, owner: Client, vocabulary: set[str], size: tuple[int, int]
) -> None:
    async def look(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"llm", "enter")
        await until(pilot, lambda: all(name in shown(app) for name in NAMES[:2]), "its agents")
        await until(pilot, lambda: app.picture is not None and app.picture.seconds > 0, "rates")
        await pilot.pause()
        text = shown(app)
        assert len(text.splitlines()) == size[1]
        assert all(cell_len(line) <= size[0] for line in text.splitlines())
        known = (
            vocabulary | words(" ".join(NAMES)) | words("owner team filter llm agents running decoded sim context vocab")
        )
        assert words(text) <= known, words(text) - known
        assert "…" not in text
        assert "q leaves" in text
        assert re.search(r"sim0 +busy \[", text)
        assert re.search(r"\d+ agents +\d+ running", text)
        assert {"PID", NAME, "STATE", "TOK/S"} <= set(text.split())
        if size[0] >= 80:
            assert {"TOKENS", "PAGES", "STALL"} <= set(text.split())
            assert "pressure" in text
        lines = [line for line in text.splitlines() if re.match(r" *\d+ ", line)]
        assert len(lines) >= 4, "even on the smallest there is room for some"

    watching(kernel, look, size)


def followed(app: TopApp, width: int, height: int) -> bool:
    lines = shown(app).splitlines()
    titles = {place.column.title for place in app._table.placed}
    fits = len(lines) == height and max(map(cell_len, lines)) <= width and any(map(str.strip, lines))
    columns = app._table._wide is (width > 100) and ("MODEL" in titles) is (width == 200)
    return fits and columns and any(line.startswith("pressure") for line in lines)


def test_it_follows_the_size_of_the_terminal(kernel: Booted, owner: Client) -> None:
    async def resize(app: TopApp, pilot: Pilot[None]) -> None:
        for width, height in (*SIZES, *reversed(SIZES)):
            await pilot.resize_terminal(width, height)
            await until(pilot, partial(followed, app, width, height), f"all has followed to {width} x {height}")

    watching(kernel, resize)


def test_the_tree_folds_by_keys_and_by_the_mouse(kernel: Booted, owner: Client) -> None:
    async def fold(app: TopApp, pilot: Pilot[None]) -> None:
        def listed() -> bool:
            return any(line.name == "ada" for line in app._table.lines)

        await put_on(app, pilot, "owner")
        await pilot.press("left")
        await until(pilot, lambda: not listed(), "it is folded")
        await pilot.press("right")
        await until(pilot, listed, "it is unfolded")
        at = app._table.cursor
        mark = next(place.start for place in app._table.placed if place.column.title == NAME)
        await pilot.click(app._table, offset=(mark, at - app._table.scroll_offset.y))
        await until(pilot, lambda: not listed(), "it is folded by the mouse")
        await pilot.press("t")
        await until(pilot, listed, "flat, nothing is folded")

    watching(kernel, fold)


def test_a_click_on_a_title_sorts_by_it_and_another_turns_it_round(kernel: Booted, owner: Client) -> None:
    async def sort(app: TopApp, pilot: Pilot[None]) -> None:
        def names(falling: bool) -> bool:
            found = [line.name for line in app._table.lines]
            return set(NAMES) <= set(found) and found == sorted(found, reverse=falling)

        def pids(falling: bool) -> bool:
            found = [int(line.key) for line in app._table.lines]
            return len(found) >= len(NAMES) and found == sorted(found, reverse=falling)

        await pilot.press("t", "slash", *SIM[:8], "enter")
        await until(pilot, lambda: {line.name for line in app._table.lines} >= set(NAMES), "all are listed, flat")
        for falling in (False, True):
            place = next(place for place in app._table.placed if place.column.title == "NAME")
            await pilot.click(app._heading, offset=(place.start + 1, 0))
            await until(pilot, partial(names, falling), "by name")
        await pilot.press("s", "home", "enter")  # the first column
        await until(pilot, partial(pids, False), "by pid")
        await pilot.press("r")
        await until(pilot, partial(pids, True), "the other way round")

    watching(kernel, sort)


def test_a_key_in_the_last_line_can_be_clicked(kernel: Booted, owner: Client) -> None:
    async def click(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"ada")
        foot = shown(app).splitlines()[-1]
        await pilot.click(app._footer, offset=(foot.index("tree"), 0))
        await until(pilot, lambda: app.arrangement.flat, "t was pressed")
        assert app.arrangement.needle == "ada", "and not typed"
        await pilot.click(app._footer, offset=(foot.index("help"), 0))
        await until(pilot, lambda: len(app.screen_stack) == 2, "? was pressed")

    watching(kernel, click)


def test_the_cursor_stays_with_its_process_when_the_order_changes(kernel: Booted, owner: Client) -> None:
    async def stay(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "cleo")
        for key in ("r", "t", "greater_than_sign"):
            await pilot.press(key)
            await pilot.pause()
            assert app._table.at is not None
            assert app._table.at.name == "cleo"

    watching(kernel, stay)


def test_help_devices_and_the_light_theme(kernel: Booted, owner: Client) -> None:
    async def look(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        await until(pilot, lambda: "stop, or let go on" in shown(app), "help")
        await pilot.press("escape", "d")
        await until(pilot, lambda: bool(re.search(r"pages of .*sim:context", shown(app))), "devices")
        await pilot.press("q", "T")
        await until(pilot, lambda: app.theme == "textual-light" and len(app.screen_stack) == 1, "the light theme")

    watching(kernel, look)


# --- acting ---------------------------------------------------------------------------------------------------------


def test_signals_are_chosen_from_a_list_and_sent(kernel: Booted, owner: Client) -> None:
    bert, cleo = pid_of(owner, "bert"), pid_of(owner, "cleo")

    async def send(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "bert")
        await pilot.press("k")
        await until(pilot, lambda: f"to bert ({bert})" in shown(app), "to whom")
        assert all(signal.name in shown(app) for signal in (Signal.TERM, Signal.INT, Signal.STOP, Signal.KILL))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1, "it is over")
        await pilot.press("k", "down", "down", "enter")
        await until(pilot, lambda: owner(Getinfo(bert)).state is State.STOPPED, "it is stopped")
        await until(pilot, lambda: f"STOP sent to bert ({bert})" in shown(app), "that is told")
        await put_on(app, pilot, "cleo")
        await pilot.press("k", "enter")
        await until(pilot, lambda: owner(Getinfo(cleo)).state is State.ZOMBIE, "TERM is the first, and it has ended")
        await until(pilot, lambda: app._table.at is not None and "zombie" in shown(app), "it is shown")

    watching(kernel, send)


def test_z_stops_and_lets_go_on_one_or_all_of_a_group(kernel: Booted, owner: Client) -> None:
    ada, cleo = pid_of(owner, "ada"), pid_of(owner, "cleo")

    async def stop(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "ada")
        await pilot.press("z")
        await until(pilot, lambda: owner(Getinfo(ada)).state is State.STOPPED, "it is stopped")
        await until(pilot, lambda: "ada" in shown(app) and "stopped" in shown(app), "that is shown")
        await pilot.press("z")
        await until(pilot, lambda: owner(Getinfo(ada)).state in (State.RUNNING, State.READY), "it goes on")
        team = owner(Getinfo(cleo)).group.rpartition("/")[2]
        await put_on(app, pilot, team)
        await pilot.press("z")
        await until(pilot, lambda: owner(Getinfo(cleo)).state is State.STOPPED, "all in the group are")
        await until(pilot, lambda: f"STOP sent to all 1 in /users/{team}" in shown(app), "that is told")

    watching(kernel, stop)


def test_nice_is_typed_or_changed_by_one_and_what_it_cannot_be_is_said(kernel: Booted, owner: Client) -> None:
    bert = pid_of(owner, "bert")

    async def be_nice(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "bert")
        await pilot.press("n", *"99", "enter")
        await until(pilot, lambda: "nice is from -20 to 19, found '99'" in shown(app), "what it can be")
        await pilot.press("backspace", "backspace", *"x", "enter")
        await until(pilot, lambda: "found 'x'" in shown(app), "that is no number")
        await pilot.press("backspace", *"-7", "enter")
        await until(pilot, lambda: owner(Getinfo(bert)).nice == -7, "it is nice")
        await until(pilot, lambda: f"nice of bert ({bert}): -7" in shown(app), "that is told")
        await pilot.press("plus")
        await until(pilot, lambda: owner(Getinfo(bert)).nice == -6, "by one")
        await put_on(app, pilot, "owner")
        await pilot.press("n")
        await until(pilot, lambda: "has no nice value: it is no agent" in shown(app), "a program has none")

    watching(kernel, be_nice)


def test_a_refusal_of_the_kernel_is_shown(kernel: Booted, owner: Client) -> None:
    async def send(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "init")
        await pilot.press("k", "end", "enter")
        await until(pilot, lambda: "EINVAL" in shown(app) or "EPERM" in shown(app), "the refusal")

    watching(kernel, send)


def test_it_does_not_stop_or_kill_itself(kernel: Booted, owner: Client) -> None:
    async def send(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "top")
        for key in ("z", "k"):
            await pilot.press(key)
            await until(pilot, lambda: "q leaves, Ctrl-Z suspends" in shown(app), "why not")
            assert len(app.screen_stack) == 1
            app._said.display = False

    watching(kernel, send)


def test_details_tell_what_it_waits_for_and_its_keys_act_on_it(kernel: Booted, owner: Client) -> None:
    bert = pid_of(owner, "a-name-of-some-length")

    async def look(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "a-name-of-some-length")
        await pilot.press("enter")
        await until(pilot, lambda: "somebody to feed it" in shown(app), "what it waits for")
        text = shown(app)
        assert re.search(r"context +40 of 8192 tokens", text)
        assert re.search(r"limits +context -, tokens -, pages -", text)
        await pilot.press("z")
        await until(pilot, lambda: owner(Getinfo(bert)).state is State.STOPPED, "it is stopped")
        await until(pilot, lambda: "a CONT: it was stopped" in shown(app), "the details follow")
        owner(Kill(bert, Signal.KILL))
        await until(pilot, lambda: "its status to be collected" in shown(app), "also its end")
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1, "it is closed")

    watching(kernel, look)


# --- what it asks of the kernel -------------------------------------------------------------------------------------


def test_a_sample_is_five_calls_and_a_pause_is_none(kernel: Booted) -> None:
    asked = ("boot_info", "stats", "models", "group_stat", "ps")

    async def count(app: TopApp, pilot: Pilot[None]) -> None:
        live = app.live
        assert live is not None

        async def paused() -> dict[str, int]:
            """Pause, and the calls made up to then: those of a sample that was under way, too."""
            await pilot.press("p")
            await until(pilot, lambda: live.paused, "a pause")
            before, after = dict[str, int](), live.kernel(StatsCall()).calls_by_name
            while {**before, "stats": 0} != {**after, "stats": 0}:
                await pilot.pause(0.5)
                before, after = after, live.kernel(StatsCall()).calls_by_name
            return after

        first = await paused()
        taken = app.picture
        await pilot.press("p")
        await until(pilot, lambda: app.picture is not taken, "another sample")
        before = await paused()
        await pilot.pause(1.0)
        after = live.kernel(StatsCall()).calls_by_name
        for name in asked:
            assert after[name] - before[name] == (1 if name == "stats" else 0), "the one of this test"
        made = {name: before[name] - first[name] for name in asked if name != "stats"}
        assert len(set(made.values())) == 1, made
        assert made["ps"] > 0
        assert before["stats"] - first["stats"] > made["ps"], "one a sample, and those of this test"
        assert {name for name in before if before[name] != first.get(name, 0)} <= {*asked}, "and no other call"
        seen = app.picture
        await pilot.press("p")
        await until(pilot, lambda: app.picture is not seen, "it goes on")

    watching(kernel, count)


def test_events_are_read_while_they_are_shown(kernel: Booted, owner: Client) -> None:
    ada = pid_of(owner, "ada")

    async def look(app: TopApp, pilot: Pilot[None]) -> None:
        await put_on(app, pilot, "ada")
        await pilot.press("e")
        await until(pilot, lambda: "sched.step" in shown(app), "what the kernel does")
        await pilot.press("e")
        owner(Kill(ada, Signal.STOP))
        await until(pilot, lambda: "sig.stop" in shown(app), "what happens to it")
        await pilot.press("e")
        await until(pilot, lambda: "sig.stop" not in shown(app), "they are gone")
        assert app.live is not None
        assert not app.live.tracing

    watching(kernel, look)


def test_a_recording_has_what_was_seen_and_can_be_played(kernel: Booted, owner: Client, tmp_path: Path) -> None:
    cleo = pid_of(owner, "cleo")

    async def see(app: TopApp, pilot: Pilot[None]) -> None:
        await another(app, pilot)
        owner(Kill(cleo, Signal.STOP))
        await until(pilot, lambda: "stopped" in shown(app), "cleo is stopped")
        await another(app, pilot)

    watching(kernel, see, writer=Writer(tmp_path / "r"))
    recording = read(tmp_path / "r")
    assert len(recording.moments) > 2
    assert "sig.stop" in [event.what for moment in recording.moments for event in moment.events if event.pid == cleo]
    last = {row.pid: row for row in recording.moments[-1].sample.rows}
    assert last[cleo].state is State.STOPPED

    async def play(app: TopApp, pilot: Pilot[None]) -> None:
        assert app.player is not None
        await pilot.press("p")
        await until(pilot, lambda: app.player is not None and app.player.position > 0, "it plays")
        await pilot.press("comma", "0")  # a step pauses, whether it still plays or has come to its end
        await until(pilot, lambda: bool(re.search(r"paused 1x  0.0s [━─]+", shown(app))), "it is at its beginning")
        assert "recorded" in shown(app)
        await pilot.press("full_stop")
        await until(pilot, lambda: app.player is not None and app.player.index == 1, "one sample further")
        await pilot.press("right_curly_bracket")
        await until(pilot, lambda: "paused 2x" in shown(app), "twice as fast")
        assert app._timeline is not None
        await pilot.click(app._timeline, offset=(app._timeline._start + app._timeline._width - 1, 0))
        last = len(recording.moments) - 1
        await until(
            pilot, lambda: app.player is not None and app.player.index == last, "where the line of time was clicked"
        )
        await pilot.press("9", *["full_stop"] * len(recording.moments))
        await until(
            pilot, lambda: f"sample {len(recording.moments)} of {len(recording.moments)}" in shown(app), "the end"
        )
        await put_on(app, pilot, "cleo")
        assert re.search(r"cleo +stopped", shown(app))
        await pilot.press("z")
        await until(pilot, lambda: "nothing in it can be changed" in shown(app), "it is the past")
        await pilot.press("e")
        await until(pilot, lambda: shown(app).count("sched.step") > 2, "its events, as many as there is room for")

    player = Player(recording)
    player.play()  # paused: a slow start does not play it to its end before the first key
    played(play, None, (120, 40), player)


def test_a_file_that_cannot_be_written_any_more_is_told_and_the_screen_goes_on(kernel: Booted, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    writer._file.close()
    writer._file = Path("/dev/full").open("wb")  # noqa: SIM115

    async def see(app: TopApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "No space left" in shown(app), "why it ended")
        seen = app.picture
        await until(pilot, lambda: app.picture is not seen, "it goes on")

    watching(kernel, see, writer=writer)


def test_the_thread_ends_and_signals_do_what_they_did(kernel: Booted) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)}
    with _signals_kept():
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        signal.signal(signal.SIGWINCH, lambda *_: None)
    assert {number: signal.getsignal(number) for number in before} == before
    heard: list[object] = []
    others = leftovers.threads("llmasos-top")
    with kernel.connect(name="top") as client:
        client.notify = heard.append
        live = Live(client, 0.05)
        live.start(heard.append)
        deadline = time.monotonic() + PATIENCE
        while not any(isinstance(news, Taken) for news in heard):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        live.stop(PATIENCE)
        assert client.notify == heard.append
    assert not leftovers.threads("llmasos-top") - others
