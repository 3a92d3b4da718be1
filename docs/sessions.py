"""The sessions in the documents, typed: a real bash in a real terminal, whose screen is read as a person reads it.

A block of a document whose lines begin with `$ ` or `llmasos> ` is a session: these lines are typed, and what follows
each is what the terminal must show, line by line. A line `...` stands for any lines, and `…` for any words. Numbers may
differ (seconds, sizes, tokens), but not in what an agent says. A block with a title (```python title="clerk.py") is a
file, which is written where the session runs before the next line is typed.

pexpect and pyte, since a line editor draws its lines anew: only a terminal's emulator knows what a screen shows in the
end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pexpect
import pyte

PROMPTS = ("$ ", "llmasos> ")
COLUMNS, ROWS = 250, 60
LOOK_SECONDS = 3.0  # how long a look that does not show yet what it should is taken again, as a person does
PATIENCE = 120.0  # seconds that a command may take: the machine may be busy
_BLOCK = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_ANSWER = re.compile(r"(?:\[\d+\] )?[a-z]\w*: (?!copy of|idle after)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_FULL_SCREEN = re.compile(r"top(?! --once)\b")  # it has tests of its own
_LOOK = re.compile(r"(ps|groups?|jobs|models|dmesg|status)\b[^=]*$")
REFUSED = re.compile(r"(?:\w+: )?E[A-Z]{3,}: ")


@dataclass
class Step:
    """A line that is typed at a prompt, and what the document shows behind it."""

    prompt: str
    typed: str
    shown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    """A file that the reader writes."""

    name: str
    text: str


def script(text: str) -> list[Step | File]:
    """What a reader of a document types and writes, in order."""
    made: list[Step | File] = []
    for indent, _, title, block in _BLOCK.findall(text):
        lines = [line.removeprefix(indent) for line in block.splitlines()]
        if title:
            made.append(File(title, "\n".join(lines) + "\n"))
            continue
        step: Step | None = None
        for line in lines:
            prompt = next((one for one in PROMPTS if line.startswith(one)), None)
            if prompt is not None:
                step = Step(prompt, line.removeprefix(prompt))
                made.append(step)
            elif step is not None and line.strip():
                step.shown.append(line)
    return made


def difference(shown: list[str], printed: list[str], *, wrapped: bool = False) -> str:
    """Why what was printed is not what a document shows; empty if it is. `wrapped`: the terminal was narrow, and where
    lines end counts for nothing."""
    pattern = "".join(r"(?:[^\n]*\n)*" if line.strip() == "..." else _pattern(line) + r"\n" for line in shown)
    text = "".join(f"{_plain(line)}\n" for line in printed)
    if wrapped:
        pattern = "".join(".*" if line.strip() == "..." else _pattern(line).replace("\\ ", "") for line in shown)
        text = re.sub(r"\s", "", text)
    refused, told = (sum(REFUSED.match(line) is not None for line in lines) for lines in (printed, shown))
    if re.fullmatch(pattern, text) and refused == told:
        return ""
    return "shown:\n" + "\n".join(shown) + "\nprinted:\n" + "\n".join(printed)


def _plain(line: str) -> str:
    """A line with single spaces, and `#` for each number that may differ."""
    words = " ".join(line.split())
    if _ANSWER.match(words):
        return re.sub(r"^\[\d+\] ", "[#] ", words)
    return _NUMBER.sub("#", words)


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part.rstrip()) for part in _plain(line).split("…"))


class _Screen(pyte.HistoryScreen):
    """A screen that answers when it is asked where its cursor is, and knows faint letters: pyte has no bit for them, so
    they have that of blinking ones, which nobody prints here."""

    answers = ""

    def select_graphic_rendition(self, *attrs: int) -> None:
        super().select_graphic_rendition(*attrs)
        if 2 in attrs or 22 in attrs:
            self.cursor.attrs = self.cursor.attrs._replace(blink=2 in attrs)

    def write_process_input(self, data: str) -> None:
        self.answers += data


class Terminal:
    """A bash with the prompt `$ ` in a terminal. `where` is its working directory, `row` the line of the last prompt in
    all that has stood there."""

    def __init__(self, environment: Mapping[str, str], where: Path, columns: int = COLUMNS, rows: int = ROWS) -> None:
        self.screen = _Screen(columns, rows, history=100_000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR", "PYTHONPATH") if name in os.environ}
        env = {**kept, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PS1": "$ ", "PAGER": "cat", **environment}
        self._child = pexpect.spawn(
            "/bin/bash",
            ["--norc", "--noprofile"],
            env=env,
            cwd=os.fspath(where),
            dimensions=(rows, columns),
            timeout=PATIENCE,
            encoding="utf-8",
            codec_errors="replace",
        )
        self.row = -1
        self._prompt(("$ ",))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close(force=True)

    def enter(self, prompt: str, line: str) -> list[str]:
        """Type a line at a prompt, wait for the next one, and return what was printed in between, without empty lines.
        Raises ValueError if another prompt stands there: what is meant for one shell is not typed into the other."""
        start, here = self.row, self.screen.display[self.screen.cursor.y].rstrip()
        if here != prompt.rstrip():
            raise ValueError(f"`{line}` is to be typed at `{prompt}`, and the terminal shows `{here}`")
        self._child.send(line + "\r")
        self._prompt(PROMPTS)
        typed = (len(prompt) + len(line)) // self.screen.columns  # further rows of the line itself
        lines = [row.rstrip() for row in self.rows()[start + 1 + typed : self.row]]
        return [row for row in lines if row]

    def rows(self) -> list[str]:
        """All that stands in the terminal, with what has left its screen at the top."""
        columns = range(self.screen.columns)
        gone = ["".join(row[x].data for x in columns) for row in self.screen.history.top]
        return [*gone, *self.screen.display]

    def _prompt(self, prompts: tuple[str, ...]) -> None:
        """Read until a prompt with nothing behind it stands below the last one."""
        deadline = time.monotonic() + PATIENCE
        while not self._at_prompt(prompts):
            if time.monotonic() > deadline:
                raise TimeoutError("no prompt; the terminal shows:\n" + "\n".join(self.rows()[-ROWS:]).rstrip())
            self.read(0.1)
        self.row = len(self.screen.history.top) + self.screen.cursor.y

    def _at_prompt(self, prompts: tuple[str, ...]) -> bool:
        y, x = self.screen.cursor.y, self.screen.cursor.x
        line = self.screen.display[y]
        return (
            any(x == len(one) and line.rstrip() == one.rstrip() for one in prompts)
            and len(self.screen.history.top) + y > self.row
        )

    def read(self, seconds: float) -> None:
        """Take in what is printed within some seconds. Raises EOFError if the shell has ended."""
        try:
            self._stream.feed(self._child.read_nonblocking(65536, seconds))
        except pexpect.TIMEOUT:
            return
        except pexpect.EOF:
            raise EOFError("the shell has ended") from None
        if self.screen.answers:
            self._child.send(self.screen.answers)
            self.screen.answers = ""


@contextmanager
def user(home: Path) -> Iterator[Mapping[str, str]]:
    """The environment of somebody who has just installed the system, on a machine with a CPU alone (each device's driver
    has a pid, so that with a GPU all others would be greater by one). Their kernel is halted in the end."""
    (home / "run").mkdir(mode=0o700)
    (home / ".config" / "llmasos").mkdir(parents=True)
    (home / ".config" / "llmasos" / "kernel.toml").write_text('[[device]]\nkind = "cpu"\n')
    environment = {
        "HOME": os.fspath(home),
        "XDG_RUNTIME_DIR": os.fspath(home / "run"),
        "USER": "ada",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.fspath(Path(__file__).resolve().parents[1]),
    }
    try:
        yield environment
    finally:
        halt = [sys.executable, "-m", "llmasos", "halt"]
        subprocess.run(halt, env=environment, capture_output=True, timeout=PATIENCE, check=False)


def play(text: str, terminal: Terminal, where: Path, pause: float = 0.0) -> Iterator[tuple[Step, str]]:
    """Type a document's sessions into a terminal, with a pause of so many seconds before each line, as people read; gives
    each step with what is wrong about it, or an empty string. A document that does not say how to open the shell means
    `llmasos`."""
    steps = script(text)
    if next(step.prompt for step in steps if isinstance(step, Step)) != "$ ":
        terminal.enter("$ ", "llmasos")
    for step in steps:
        if isinstance(step, File):
            (where / step.name).write_text(step.text)
        elif not _FULL_SCREEN.match(step.typed):
            time.sleep(pause)
            until = time.monotonic() + LOOK_SECONDS
            while True:
                printed = terminal.enter(step.prompt, step.typed)
                wrong = difference(step.shown, printed, wrapped=terminal.screen.columns < COLUMNS)
                if not (wrong and _LOOK.match(step.typed)) or time.monotonic() > until:
                    break
            yield step, wrong
