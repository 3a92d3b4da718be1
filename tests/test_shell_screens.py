"""The pictures of the shell say, letter by letter, what a session types and shows; those in docs/screens are fresh."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pyte.screens import Char

from docs import shell_screens
from docs.shell_screens import COLUMNS, Line

SVG = "{http://www.w3.org/2000/svg}"


def text(picture: str) -> list[str]:
    """The lines of a picture, each run put where the picture has it."""
    lines = []
    for line in ElementTree.fromstring(picture).iter(f"{SVG}text"):
        cells = [" "] * COLUMNS
        for run in line.iter(f"{SVG}tspan"):
            start = round((float(run.attrib["x"]) - shell_screens.MARGIN) / shell_screens.WIDTH)
            cells[start : start + len(run.text or "")] = run.text or ""
        lines.append("".join(cells).rstrip())
    return lines


def told(lines: list[str]) -> str:
    """All letters, without what differs from session to session: numbers, the user's home, where lines end."""
    joined = re.sub(r"\s", "", "".join(lines))
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"/[\w/.-]*?/llmasos-\w{8}", "~", joined))


@pytest.mark.processes
def test_the_pictures_of_the_shell_are_those_of_the_session_as_it_is_today() -> None:
    session = shell_screens.record()
    shown = ["".join(cell.data for cell in line).rstrip() for line in session]
    assert shown[0] == "$ llmasos"
    assert "alice: Your lucky number is 42." in shown, "after the kernel has been killed"
    assert any(re.fullmatch(r" *\d+ .* stopped .* bob", line) for line in shown)
    assert "and they all smiled." in " ".join(shown), "bob has told his story to its end"
    for name, theme in shell_screens.THEMES.items():
        assert text(shell_screens.picture(session, theme)) == [line for line in shown if line]
        kept = (shell_screens.PLACE / f"shell-{name}.svg").read_text()
        assert told(text(kept)) == told(shown), "`python -m docs.shell_screens` makes them anew"


def test_a_picture_has_the_colours_and_the_text_of_each_letter() -> None:
    look = Char(" ")
    cells: Line = [
        *(look._replace(data=letter, fg="cyan", bold=True) for letter in "a<b"),
        *(look._replace(data=letter, blink=True) for letter in " & c"),
    ]
    line = [*cells, *[look] * (COLUMNS - len(cells))]
    dark = shell_screens.THEMES["dark"]
    runs = list(ElementTree.fromstring(shell_screens.picture([line], dark)).iter(f"{SVG}tspan"))
    assert [(run.text, run.get("fill"), run.get("font-weight")) for run in runs] == [
        ("a<b", dark.colours["cyan"], "bold"),
        (" & c", dark.faint, None),
    ]
    assert text(shell_screens.picture([line], dark)) == ["a<b & c"]


@pytest.mark.parametrize("picture", sorted(shell_screens.PLACE.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_fetches_nothing_and_the_readme_has_both(picture: Path) -> None:
    assert not re.search(r"(?:href|src|url)\W+(?:https?:)?//", picture.read_text())
    if picture.name.startswith("shell-"):
        assert f"docs/screens/{picture.name}" in (shell_screens.PLACE.parent.parent / "README.md").read_text()
