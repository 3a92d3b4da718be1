"""docs/top.md has every column and every key, in the words of the program; its pictures are of it."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from llmasos.userland.top.columns import COLUMNS
from llmasos.userland.top.keys import KEYS, PLAYED
from llmasos.userland.top.screens import manual

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "top.md").read_text()


@pytest.mark.parametrize(
    ("name", "about"), [*((column.title, column.about) for column in COLUMNS), *KEYS, *PLAYED], ids=lambda text: text[:20]
)
def test_the_page_tells_what_the_program_tells(name: str, about: str) -> None:
    assert f"| `{name}` | {about} |" in PAGE
    console = Console(width=200, file=io.StringIO())
    console.print(manual(played=True))
    assert isinstance(console.file, io.StringIO)
    assert re.search(rf"{re.escape(name)} +{re.escape(about)}", console.file.getvalue())


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_its_pictures_show_the_program_and_fetch_nothing(theme: str) -> None:
    picture = (DOCS / "screens" / f"top-{theme}.svg").read_text()
    text = html.unescape(picture).replace("\xa0", " ")
    assert all(word in text for word in ("busy [", "pressure", "TOK/S", "coder", "stopped", " leaves"))
    assert not re.search(r"url\((?!#)", picture), "nothing but its own parts"
    assert not re.search(r"(?:src|href)=", picture)


def test_the_manual_has_no_line_that_a_narrow_terminal_would_break_within_a_name() -> None:
    assert all(cell_len(name) <= 20 for name, _ in (*KEYS, *PLAYED))
