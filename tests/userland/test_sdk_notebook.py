"""How tables and streams look in a notebook, without one: by the protocol that IPython asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmasos.syscalls.records import Sampler, SchedInfo
from llmasos.userland.sdk import notebook
from llmasos.userland.sdk.notebook import SHOWN_ROWS, Table


class Cells(HTMLParser):
    """The texts of a table's cells, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_a_table_shows_what_is_told_and_takes_everything_for_text() -> None:
    rows = Table([SchedInfo("<b>cpu</b>", "fair", 0, 64), SchedInfo("gpu", "fcfs", 0, 128)])
    seen = Cells(rows._repr_html_())
    assert seen.cells == ["device", "policy", "step_tokens", "<b>cpu</b>", "fair", "64", "gpu", "fcfs", "128"]
    assert "b" not in seen.tags
    assert rows[0].max_runs == 0, "left out of the picture only"


def test_an_empty_table_and_a_long_one_say_so() -> None:
    assert "nothing" in Table[SchedInfo]()._repr_html_()
    many = Table([SchedInfo(f"d{number}", "fair", 1, 1) for number in range(SHOWN_ROWS + 5)])
    assert "and 5 more" in many._repr_html_()
    assert Cells(many._repr_html_()).cells.count("fair") == SHOWN_ROWS


def test_cells_are_short_text() -> None:
    shown = [notebook.cell(value) for value in (None, "", 1 / 3, [1, "x"], {"a": 2}, "two\nlines\x1b[2J")]
    assert shown[:5] == ["", "", "0.3333", "1, x", "a 2"]
    assert "\n" not in shown[5]
    assert "\x1b" not in shown[5]
    assert notebook.cell(Sampler(temperature=0.5, seed=3)).startswith("temperature 0.5")


def test_a_thing_has_a_picture_and_plain_text() -> None:
    bundle = notebook.bundle("Process(4)", [("pid", 4), ("name", "<alice>")])
    assert bundle["text/plain"] == "Process(4)"
    assert Cells(bundle["text/html"]).cells == ["pid", "name", "4", "<alice>"]


TERMINAL = """
from llmasos.userland.sdk.streams_async import AsyncStream

async def pieces():
    yield "once upon a time"

{first}display(AsyncStream(pieces()))
"""


@pytest.mark.processes
@pytest.mark.parametrize("first", ["", "import asyncio; await asyncio.sleep(0)\n"])
def test_on_a_terminal_ipython_a_stream_that_is_awaited_says_how_to_read_it(tmp_path: Path, first: str) -> None:
    words = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", TERMINAL.format(first=first)]
    env = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, env=env)
    assert "`async for piece in it: print(piece, end='')`" in done.stdout
    assert done.stderr == ""
