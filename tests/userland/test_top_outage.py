"""`top` while its kernel does not answer: what stands on the screen is never taken for how it is now."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmasos.syscalls import runtime
from llmasos.syscalls.blocking import Client, connect
from llmasos.syscalls.records import Signal, State
from llmasos.syscalls.table import Detach, Getinfo, Kill, Spawn
from llmasos.userland.top.app import TopApp
from llmasos.userland.top.live import SILENT, Done, Live, News, Taken, Trouble, Wish
from tests.booted import PATIENCE, booted, eventually
from tests.reborn import Reborn
from tests.userland.command_line import DEADLINE
from tests.userland.screen_of import llmasos_on
from tests.userland.top_screen import shown, until

SIM = "sim:context=256,vocab=100"
LOST = r"the kernel\s+has died|the connection to the kernel is\s+lost"


@pytest.mark.processes
def test_a_kernel_that_is_stopped_is_told_of_and_the_picture_goes_on_with_it() -> None:
    async def watch(app: TopApp, kernel: int) -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "bob" in shown(app), "the agent")
            os.kill(kernel, signal.SIGSTOP)
            await until(pilot, lambda: "the kernel has not answered for" in shown(app), "it is silent")
            await until(pilot, lambda: bool(re.search(r"this is how\s+it was \d+ s ago", shown(app))), "since when")
            await pilot.press("G", "enter")
            await until(pilot, lambda: "the kernel has not answered for" in shown(app), "also of one process")
            os.kill(kernel, signal.SIGCONT)
            await until(pilot, lambda: "has not answered" not in shown(app), "it answers")
            await until(pilot, lambda: bool(re.search(r"state +blocked", shown(app))), "its details")

    with booted("--device", "sim:time_scale=0") as kernel, kernel.connect(name="owner") as owner:
        owner(Spawn(model=SIM, tokens=[1, 2, 3], name="bob"))
        with kernel.connect(name="top") as client:
            live = Live(client, 0.1)
            try:
                asyncio.run(watch(TopApp(live, light=False), client.boot.os_pid))
            finally:
                os.kill(client.boot.os_pid, signal.SIGCONT)
                live.stop(PATIENCE)


@pytest.mark.processes
def test_a_kernel_is_dead_also_while_its_lock_is_held_and_nothing_is_sent_to_the_next(tmp_path: Path) -> None:
    """The lock of a kernel that boots looks like this, and like that of a process that the system is slow to end."""
    kernel = Reborn(tmp_path / "run", device="sim")
    kernel.boot()
    try:
        with connect(kernel.place) as owner:
            bob = owner(Spawn(model=SIM, tokens=[1, 2, 3], name="bob"))
            owner(Detach(bob))
        lock = os.open(kernel.place / runtime.LOCK, os.O_RDONLY)
        taker = threading.Thread(target=fcntl.flock, args=(lock, fcntl.LOCK_EX))
        taker.start()
        with llmasos_on(kernel.place, "top", "--seconds", "0.2", size=(80, 24)) as screen:
            screen.shows(r"\bbob\b")
            screen.press("/bob\r")
            screen.until(lambda: "driver:" not in screen.text and "bob" in screen.text, "only bob")
            screen.press("G")
            screen.kill(signal.SIGSTOP)  # it must not look before the lock is taken over
            kernel.kill()
            taker.join(PATIENCE)
            assert not taker.is_alive()
            screen.kill(signal.SIGCONT)
            assert "within 30 seconds" not in screen.shows(LOST), "it is told while the next kernel is waited for"
            screen.press("z")
            screen.shows("nothing was sent: the kernel has died")
            os.close(lock)
            kernel.boot()
            screen.until(lambda: re.search(LOST, screen.text) is None, "nothing of it any more")
            screen.shows(r"bob +input")
            with connect(kernel.place) as owner:
                assert owner(Getinfo(bob)).state is not State.STOPPED
            screen.press("q")
            assert screen.ended() == 0
    finally:
        kernel.end()


@pytest.mark.processes
def test_a_wish_that_waited_for_an_answer_is_not_for_the_next_kernel(tmp_path: Path) -> None:
    kernel = Reborn(tmp_path / "run", device="sim")
    kernel.boot()
    told: list[News] = []
    client: Client | None = None
    try:
        with connect(kernel.place) as owner:
            bob = owner(Spawn(model=SIM, tokens=[1, 2, 3], name="bob"))
            owner(Detach(bob))
        client = connect(kernel.place, name="top", reconnect=PATIENCE)
        live = Live(client, 0.05)
        live.start(told.append)
        eventually(lambda: any(isinstance(news, Taken) for news in told), "a sample")
        os.kill(client.boot.os_pid, signal.SIGSTOP)
        since = len(told)
        eventually(lambda: live._since is not None, "a call is under way")
        live.ask(Wish((Kill(bob, Signal.STOP),), "STOP sent"))
        kernel.kill()
        eventually(lambda: any(isinstance(news, Trouble) for news in told[since:]), "its death")
        kernel.boot()
        eventually(lambda: any(isinstance(news, Done) for news in told), "what became of the wish")
        assert [news for news in told if isinstance(news, Done)] == [
            Done("nothing was sent: the kernel has died", refused=True)
        ]
        with connect(kernel.place) as owner:
            assert owner(Getinfo(bob)).state is not State.STOPPED
        live.stop(PATIENCE)
    finally:
        if client is not None:
            client.close()
        kernel.end()


class Silent:
    """A connection whose kernel does not answer."""

    notify = None
    reconnect = 30.0
    pid = 4
    away = False


def test_it_is_old_by_what_the_connection_says_also_if_nobody_was_told() -> None:
    kernel = Silent()
    live = Live(kernel, 2.0)  # type: ignore[arg-type]
    assert live.stale(100.0, "") == ""
    live._taken, live._since = 90.0, 99.0
    assert live.stale(99.0 + SILENT / 2, "") == ""
    assert live.stale(109.0, "") == "the kernel has not answered for 10 s; this is how it was 19 s ago"
    kernel.away = True
    lost = live.stale(109.0, "")
    assert lost.startswith("the connection to the kernel is lost")
    assert lost.endswith("19 s ago")
    assert live.stale(109.0, "it has died") == "it has died; this is how it was 19 s ago"


@pytest.mark.processes
def test_a_recording_without_a_terminal_tells_of_the_kernel_in_words(tmp_path: Path) -> None:
    kernel = Reborn(tmp_path / "run", device="sim")
    kernel.boot()
    path = tmp_path / "recording"

    def samples() -> int:
        return path.read_bytes().count(b'"type":"sample"') if path.exists() else 0

    try:
        with subprocess.Popen(
            [sys.executable, "-m", "llmasos", "--runtime", os.fspath(kernel.place), "top", "--seconds", "0.1", "--record",
             os.fspath(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as top:  # fmt: skip
            eventually(lambda: samples() > 2, "there are samples")
            kernel.kill()
            before = samples()
            kernel.boot()
            eventually(lambda: samples() > before, "it goes on")
            top.send_signal(signal.SIGINT)
            _, err = top.communicate(timeout=DEADLINE)
    finally:
        kernel.end()
    assert top.returncode == 0
    first, last = err.splitlines()
    assert first.startswith("the kernel has died; waiting")
    assert last == "the kernel answers again"
