"""Where programs print: what others wrote cannot command a terminal."""

from __future__ import annotations

import io

import pytest

from llmasos.syscalls.printable import printable
from llmasos.userland.programs.flow import Flow
from llmasos.userland.programs.screen import Column, Screen, Table


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


EVIL = "a\x1b]0;owned\x07b\x9b2Jc\rd\x7f"
SHOWN = r"a\x1b]0;owned\x07b\x9b2Jc\x0dd\x7f"


@pytest.fixture(autouse=True)
def without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def test_control_characters_are_shown_and_newlines_tabs_and_words_stay() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("süß\n\t→ 日本") == "süß\n\t→ 日本"
    assert printable("a\nb", one_line=True) == r"a\x0ab"


def test_streamed_text_is_shown_on_a_terminal_and_raw_in_a_pipe() -> None:
    for out, expected in ((Tty(), SHOWN), (io.StringIO(), EVIL)):
        flow = Flow(Screen(out, io.StringIO()), 0)
        for character in EVIL:
            flow.push(character)
        flow.flush()
        assert out.getvalue() == expected


def test_a_hint_stands_in_a_line_of_its_own_and_the_text_goes_on() -> None:
    out = Tty()
    flow = Flow(Screen(out, io.StringIO()))
    flow.head("bob: ", "cyan")
    flow.push("one two")
    flow.aside("[nothing comes]")
    flow.push(" three ")
    flow.flush()
    assert out.getvalue() == "bob: one \n[nothing comes]\ntwo three "


def test_cells_of_a_table_and_errors_are_shown_everywhere() -> None:
    out, err = io.StringIO(), io.StringIO()
    table = Table((Column("NAME"),))
    table.add("x\ny" + EVIL)
    screen = Screen(out, err)
    screen.table(table)
    screen.error(EVIL)
    assert out.getvalue() == rf"NAME{chr(10)}x\x0ay{SHOWN}" + "\n"
    assert err.getvalue() == SHOWN + "\n"
