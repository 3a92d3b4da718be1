"""`llmasos top` on a terminal, as a person has it: it starts, hears keys, and leaves the terminal as it was."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from llmasos.syscalls.records import State
from llmasos.syscalls.table import Getinfo, Spawn
from llmasos.userland.programs import ps
from tests.booted import Booted, booted, eventually
from tests.reborn import Reborn
from tests.userland.screen_of import ScreenOf, llmasos_on

pytestmark = pytest.mark.processes
SIM = "sim:context=256,vocab=100"
SPEED = ["--device", "sim:overhead=0.01"]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted(*SPEED) as kernel:
        yield kernel


def modes(screen: ScreenOf) -> list[object]:
    """The settings of the terminal: echo, lines, signals."""
    return list(termios.tcgetattr(screen.child.fileno()))


def opened(kernel: Booted, *words: str, size: tuple[int, int] = (100, 30)) -> tuple[ScreenOf, list[object]]:
    screen = llmasos_on(kernel.place, "top", "--seconds", "0.2", *words, size=size)
    before = modes(screen)
    screen.shows(r"sim0 +busy \[")
    screen.shows("q leaves")
    assert screen.alternate
    assert modes(screen) != before, "it reads keys, not lines"
    return screen, before


def whole(screen: ScreenOf, before: list[object]) -> bool:
    """The terminal is as it was: settings, screen, cursor, mouse, pasting."""
    left = [screen.raw.rfind(f"\x1b[?{mode}l".encode()) > screen.raw.rfind(f"\x1b[?{mode}h".encode())
            for mode in (1049, 1000, 1003, 1006, 2004, 1004)]  # fmt: skip
    cursor = screen.raw.rfind(b"\x1b[?25h") > screen.raw.rfind(b"\x1b[?25l")
    return all(left) and cursor and modes(screen) == before


@pytest.mark.parametrize("keys", ["q", "\x03", "\x04"])
def test_it_leaves_by_q_ctrl_c_and_ctrl_d_and_the_terminal_is_as_before(kernel: Booted, keys: str) -> None:
    screen, before = opened(kernel)
    with screen:
        screen.press(keys)
        screen.until(lambda: not screen.alternate, "the other screen")
        screen.until(lambda: whole(screen, before), "the terminal is whole")
        assert screen.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_and_the_terminal_is_as_before(kernel: Booted, number: signal.Signals) -> None:
    screen, before = opened(kernel)
    with screen:
        screen.kill(number)
        screen.until(lambda: whole(screen, before), "the terminal is whole")
        assert screen.ended() == (0 if number is signal.SIGINT else -number)


def test_it_fills_the_terminal_that_it_has_whatever_size_the_environment_names(kernel: Booted) -> None:
    command = [sys.executable, "-m", "llmasos", "top", "--seconds", "0.2"]
    told = {"LLMASOS_RUNTIME": os.fspath(kernel.place), "COLUMNS": "80", "LINES": "24", "PYTHONWARNINGS": "ignore"}

    def fills(screen: ScreenOf, lines: int) -> bool:
        shown = screen.screen[:lines]
        return shown[0].startswith("llmasos") and shown[-1].startswith("q leaves") and "  PID NAME" in screen.text

    with ScreenOf(command, told, size=(60, 15)) as screen:
        screen.until(lambda: fills(screen, 15), "the picture fills it")
        screen.child.setwinsize(12, 60)
        screen.until(lambda: fills(screen, 12), "the picture fills the smaller one")
        screen.press("q")
        assert screen.ended() == 0


def test_its_terminal_may_vanish(kernel: Booted) -> None:
    screen, _ = opened(kernel)
    with kernel.connect() as client:
        eventually(lambda: any(row.name == "top" for row in ps.processes(client)), "it is attached")
        screen.hang_up()
        eventually(lambda: not any(row.name == "top" for row in ps.processes(client)), "it has gone")
    assert screen.ended() == -signal.SIGHUP


def test_it_stops_at_ctrl_z_without_a_call_and_goes_on(kernel: Booted) -> None:
    screen, before = opened(kernel)
    with screen, kernel.connect() as client:
        screen.press("\x1a")
        screen.until(lambda: whole(screen, before), "the terminal is whole while it is stopped")
        eventually(lambda: Path(f"/proc/{screen.child.pid}/stat").read_text().split()[2] == "T", "it is stopped")
        (top,) = ps.processes(client, lambda row: row.name == "top")
        assert client(Getinfo(top.pid)).state is State.BLOCKED
        screen.kill(signal.SIGCONT)
        screen.until(lambda: screen.alternate, "it is back")
        screen.shows(r"sim0 +busy \[")
        screen.press("q")
        assert screen.ended() == 0


def in_order(screen: ScreenOf, names: list[str]) -> bool:
    return re.findall(r"^ *\d+ +(ada|bert|cleo)\b", screen.text, re.M) == names


@pytest.mark.parametrize("size", [(60, 15), (80, 24), (200, 50)])
def test_keys_filter_sort_signal_stop_and_open_details(kernel: Booted, size: tuple[int, int]) -> None:
    with kernel.connect(name="owner") as client:
        ada = client(Spawn(model=SIM, tokens=list(range(40)), name="ada"))
        bert = client(Spawn(model=SIM, tokens=list(range(40)), name="bert"))
        screen, _ = opened(kernel, size=size)
        with screen:
            screen.shows(r"\bbert\b")
            screen.press("/ada\r")
            screen.until(lambda: "bert" not in screen.text and "ada" in screen.text, "only ada")
            screen.press("G")
            screen.press("z")
            eventually(lambda: client(Getinfo(ada)).state is State.STOPPED, "ada is stopped")
            screen.shows(rf"STOP sent to ada \({ada}\)")
            screen.shows(r"ada +stopped")
            screen.press("z")
            eventually(lambda: client(Getinfo(ada)).state is State.BLOCKED, "ada goes on")
            screen.press("\r")
            screen.shows("waits for +somebody to feed it")
            screen.press("q")
            screen.shows("q leaves")
            screen.press("\x1b")
            screen.shows(r"\bbert\b")
            screen.press("ts\x1b[H\r")  # a flat list by its first column, the pid
            for keys, names in (("", ["ada", "bert"]), ("r", ["bert", "ada"])):
                screen.press(keys)
                screen.until(partial(in_order, screen, names), f"{names} in this order")
            screen.press("/bert\r")
            screen.until(partial(in_order, screen, ["bert"]), "only bert")
            screen.press("Gk")
            screen.shows(rf"to bert \({bert}\)")
            screen.press("\r")
            eventually(lambda: client(Getinfo(bert)).state is State.ZOMBIE, "TERM is the first, and bert has ended")
            screen.press("q")
            assert screen.ended() == 0


def test_the_mouse_sorts_and_chooses(kernel: Booted) -> None:
    with kernel.connect(name="owner") as client:
        for name in ("ada", "bert", "cleo"):
            client(Spawn(model=SIM, tokens=list(range(40)), name=name))
        screen, _ = opened(kernel)
        with screen:
            screen.shows(r"\bcleo\b")
            screen.press("t")
            screen.until(lambda: "├" not in screen.text, "processes only")

            def click(word: str) -> None:
                row = next(at for at, line in enumerate(screen.screen) if re.search(rf"\b{word}\b", line))
                column = re.search(rf"\b{word}\b", screen.screen[row])
                assert column is not None
                for last in "Mm":
                    screen.press(f"\x1b[<0;{column.start() + 1};{row + 1}{last}")

            click("NAME")
            screen.until(partial(in_order, screen, ["ada", "bert", "cleo"]), "by name")
            click("NAME")
            screen.until(partial(in_order, screen, ["cleo", "bert", "ada"]), "by name, the other way round")
            click("bert")
            screen.press("\r")
            screen.shows(r"name +bert")
            screen.press("\x03")
            assert screen.ended() == 0


def test_in_the_shell_it_is_a_command_and_the_prompt_comes_back(kernel: Booted) -> None:
    with llmasos_on(kernel.place, "shell") as shell:
        shell.shows("llmasos>")
        for _ in range(2):
            shell.press("top\r")
            shell.until(lambda: shell.alternate, "its own screen")
            shell.shows(r"sim0 +busy \[")
            shell.press("q")
            shell.until(lambda: not shell.alternate, "the shell's screen")
        shell.press("uptime\r")
        shell.shows(r"up \d")
        shell.press("exit\r")
        assert shell.ended() == 0


def test_a_signal_ends_the_shell_too_and_the_terminal_is_as_before(kernel: Booted) -> None:
    with llmasos_on(kernel.place, "shell") as shell:
        before = modes(shell)
        shell.shows("llmasos>")
        shell.press("top\r")
        shell.shows(r"sim0 +busy \[")
        shell.kill(signal.SIGTERM)
        while shell.read():
            pass
        assert whole(shell, before)
        assert shell.ended() == -signal.SIGTERM


@pytest.mark.parametrize("journal", [True, False])
def test_a_kernel_that_dies_is_told_of_and_the_next_is_shown(tmp_path: Path, journal: bool) -> None:
    kernel = Reborn(tmp_path / "run", device="sim", journal=journal)
    kernel.boot()
    told = "the kernel has died; waiting up to 30 s" if journal else r"the kernel of\s[^;]*gone;"
    try:
        with llmasos_on(kernel.place, "top", "--seconds", "0.2") as screen:
            screen.shows(r"sim0 +busy \[")
            kernel.kill()
            screen.shows(told)
            kernel.boot()
            screen.until(lambda: re.search(told, screen.text) is None, "nothing of it any more")
            screen.shows(r"up \d")
            kernel.kill()
            screen.shows(told)
            screen.press("q")
            assert screen.ended() == 0
    finally:
        kernel.end()


def test_without_textual_it_says_what_to_install(kernel: Booted, tmp_path: Path) -> None:
    (tmp_path / "textual").mkdir()
    (tmp_path / "textual" / "__init__.py").write_text("raise ImportError('no textual')")
    screen = ScreenOf(
        ["/bin/sh", "-c", f"PYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} -m llmasos top"],
        {"LLMASOS_RUNTIME": os.fspath(kernel.place), "PYTHONWARNINGS": "ignore"},
    )
    with screen:
        assert screen.ended() == 1
        assert "ENOTSUP" in screen.text
        assert "pip install textual" in screen.text.replace("\n", "")
