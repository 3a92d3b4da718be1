"""`python -m docs.shell_screens`: the picture of a shell session, dark and light, in docs/screens.

The lines are typed into a real terminal (docs/sessions.py), and the picture is what stands there then, letter by letter:
SVG with real text, which scales, can be searched and fetches nothing. A renderer of its own, since rich draws what rich
has printed, and here an editor of lines and bash have a word, too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from pyte.screens import Char

from docs.sessions import REFUSED, Terminal, user

PLACE = Path(__file__).with_name("screens")
COLUMNS, ROWS = 110, 120  # all of the session fits
# Not in the picture: a kernel, and a group so slow that an agent can be stopped in mid-sentence.
BEFORE = (("$ ", "llmasos boot --detach"), ("$ ", "echo group /slow tokens_max=6 | llmasos shell"))
SESSION = (
    ("$ ", "llmasos"),
    ("llmasos> ", "spawn alice My lucky number is 42."),
    ("llmasos> ", "spawn bob --group /slow Tell me a long story about a fox. &"),
    ("llmasos> ", "stop bob"),
    ("llmasos> ", "ps"),
    ("llmasos> ", "exit"),
    ("$ ", "kill -9 $(llmasos status | grep -o 'process [0-9]*' | tr -dc 0-9)"),
    ("$ ", "llmasos"),
    ("llmasos> ", "say alice What is my lucky number?"),
    ("llmasos> ", "cont bob"),
    ("llmasos> ", "wait bob"),
    ("llmasos> ", "cat bob"),
)
PAUSES = {"stop bob": 3.0}  # seconds before it is typed: he is to have begun

Line = list[Char]


@dataclass(frozen=True)
class Theme:
    """Colours of a terminal; `colours` by pyte's names, in which yellow is brown."""

    ground: str
    text: str
    faint: str
    edge: str
    colours: Mapping[str, str]


_NAMES = ("red", "green", "brown", "blue", "magenta", "cyan")
_ON_DARK = ("#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf")
_ON_LIGHT = ("#cf222e", "#1a7f37", "#9a6700", "#0969da", "#8250df", "#1b7c83")
THEMES = {
    "dark": Theme("#0d1117", "#e6edf3", "#8b949e", "#30363d", dict(zip(_NAMES, _ON_DARK, strict=True))),
    "light": Theme("#ffffff", "#1f2328", "#59636e", "#d1d9e0", dict(zip(_NAMES, _ON_LIGHT, strict=True))),
}
SIZE, WIDTH, HEIGHT, MARGIN, BAR = 14, 8.4, 19, 16, 30  # pixels: a letter's size, its cell, the picture's edges


def main() -> None:
    lines = record()
    PLACE.mkdir(exist_ok=True)
    for name, theme in THEMES.items():
        path = PLACE / f"shell-{name}.svg"
        path.write_text(picture(lines, theme))
        print(path)


def record() -> list[Line]:
    """Type the session, and return the lines that stand in the terminal in the end. Raises RuntimeError if one that is
    typed is refused."""
    with (
        tempfile.TemporaryDirectory(prefix="llmasos-") as base,
        user(Path(base)) as environment,
        Terminal(environment, Path(base), COLUMNS, ROWS) as terminal,
    ):
        for prompt, line in BEFORE:
            _enter(terminal, prompt, line)
        first = terminal.row
        for prompt, line in SESSION:
            time.sleep(PAUSES.get(line, 0.0))
            _enter(terminal, prompt, line)
        return [[terminal.screen.buffer[y][x] for x in range(COLUMNS)] for y in range(first, terminal.row)]


def _enter(terminal: Terminal, prompt: str, line: str) -> None:
    if refused := [said for said in terminal.enter(prompt, line) if REFUSED.match(said)]:
        raise RuntimeError(f"`{line}` is refused: {refused[0]}")


def picture(lines: list[Line], theme: Theme) -> str:
    """The SVG of a terminal in which these lines stand."""
    width, height = COLUMNS * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + BAR + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="a terminal">',
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8" fill="{theme.ground}" '
        f'stroke="{theme.edge}"/>',
        *(f'<circle cx="{MARGIN + 4 + 18 * n}" cy="{BAR / 2:g}" r="5" fill="{theme.edge}"/>' for n in range(3)),
        f'<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="{SIZE}" fill="{theme.text}" '
        'xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        y = BAR + (number + 0.75) * HEIGHT
        runs = "".join(_run(start, cells, theme) for start, cells in _runs(line))
        if runs:
            parts.append(f'<text y="{y:g}">{runs}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _runs(line: Line) -> Iterator[tuple[int, Line]]:
    """The pieces of a line that look alike, with the column where each begins; blank ones are left out."""
    end = max((x + 1 for x, cell in enumerate(line) if cell.data.strip()), default=0)
    start = 0
    for x in range(1, end + 1):
        if x == end or line[x]._replace(data="") != line[start]._replace(data=""):
            if any(cell.data.strip() for cell in line[start:x]):
                yield start, line[start:x]
            start = x


def _run(start: int, cells: Line, theme: Theme) -> str:
    look, text = cells[0], "".join(cell.data for cell in cells)
    colour = theme.colours.get(look.fg.removeprefix("bright"), "")
    if look.blink:  # which stands for faint (sessions.py)
        colour = theme.faint
    style = (f' fill="{colour}"' if colour else "") + (' font-weight="bold"' if look.bold else "")
    # The length holds columns together whatever font a reader has.
    place = f'x="{MARGIN + start * WIDTH:g}" textLength="{len(text) * WIDTH:g}" lengthAdjust="spacingAndGlyphs"'
    return f"<tspan {place}{style}>{escape(text)}</tspan>"


if __name__ == "__main__":
    main()
