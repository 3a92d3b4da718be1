"""The sessions in the documents are typed, line by line, into a real shell in a terminal, on the user's own kernel: no
line is refused, the terminal shows what the document says, and agents answer what it says they answer."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from docs import sessions
from docs.sessions import File, Step

ROOT = Path(__file__).resolve().parents[2]
# Of two machines, several users, and what not every machine lets one do: these are tried by tests/system/test_remote.py,
# test_system.py and test_sandbox.py.
ELSEWHERE = {"remote.md", "system.md", "sandbox.md"}
DOCUMENTS = [
    "README.md",
    "docs/shell.md",
    "docs/tutorial.md",
    *(f"docs/howto/{p.name}" for p in (ROOT / "docs/howto").glob("*.md") if p.name not in ELSEWHERE),
]
pytestmark = pytest.mark.processes


def faults(text: str, columns: int = sessions.COLUMNS, pause: float = 0.0) -> list[str]:
    """What is wrong about a document's sessions."""
    with tempfile.TemporaryDirectory(prefix="llmasos-") as base, sessions.user(Path(base)) as environment:
        work = Path(base, "work")
        work.mkdir()
        with sessions.Terminal(environment, work, columns) as terminal:
            return [f"{step.typed}\n{wrong}" for step, wrong in sessions.play(text, terminal, work, pause) if wrong]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_line_of_a_documents_session_does_what_the_document_shows(document: str) -> None:
    text = (ROOT / document).read_text()
    steps = [step for step in sessions.script(text) if isinstance(step, Step)]
    assert len(steps) >= 3
    assert sum(bool(step.shown) for step in steps) >= 2
    assert faults(text) == []


@pytest.mark.parametrize("page", ["share", "waiting"])
def test_pages_about_agents_at_work_hold_for_who_reads_before_typing(page: str) -> None:
    assert faults((ROOT / f"docs/howto/{page}.md").read_text(), pause=3.0) == []


def only_columns_are_missing(fault: str) -> bool:
    """Whether a table is the document's but for columns that there is no room for, each of them named below it."""
    document, terminal = (line.split() for line in fault.splitlines() if line.startswith("PID "))
    named = re.search(r"not shown: (.*?);", " ".join(fault.splitlines()))
    return named is not None and set(document) - set(terminal) == set(named[1].split(", ")) and "alice" in fault


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md"])
def test_a_newcomers_first_sessions_hold_on_a_terminal_of_a_persons_size(document: str, columns: int) -> None:
    found = faults((ROOT / document).read_text(), columns)
    assert [one for one in found if not (one.startswith("ps\n") and only_columns_are_missing(one))] == []


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("stop alice 7", "..."),
        ("stop # alice", "..."),
        ("say nobody hello", "..."),
        ("frok 6", "..."),
        ("say alice My name is Ada.", "alice: Noted. Your name is Bea."),
        ("say alice What is 38 + 47?", "alice: 8 + 7 = 15, 3 + 4 + 1 = 8, so 86"),
        ("limits alice", "context  the model's\n..."),
        ("limits alice", "context  the model's"),
    ],
)
def test_a_line_that_is_refused_or_shows_something_else_is_noticed(typed: str, shown: str) -> None:
    text = f"```\nllmasos> spawn alice\n...\nllmasos> {typed}\n{shown}\n```\n"
    found = faults(text)
    if shown == "context  the model's\n...":
        assert found == []
    else:
        assert [fault.splitlines()[0] for fault in found] == [typed]


def test_a_line_is_not_typed_into_another_shell() -> None:
    with pytest.raises(ValueError, match="is to be typed at"):
        faults("```\n$ true\nllmasos> kill 1\n```\n")


def test_a_document_is_read_as_its_reader_reads_it() -> None:
    text = (
        '```\n$ a\nb 1\n...\n```\nand\n```python title="x.py"\nprint(1)\n```\n```toml\nx = 1\n```\n```\nllmasos> c\n```\n'
    )
    assert sessions.script(text) == [
        Step("$ ", "a", ["b 1", "..."]),
        File("x.py", "print(1)\n"),
        Step("llmasos> ", "c", []),
    ]
    assert sessions.difference(["b 1", "..."], ["b 2"]) == ""
    assert sessions.difference(["b …"], ["b and more"]) == ""
    assert sessions.difference(["ada: 1"], ["ada: 2"]) != ""
    assert sessions.difference([], ["more"]) != ""
    assert sessions.difference(["..."], ["ESRCH: no such"]) != ""
    assert sessions.difference(["a long line", "..."], ["a", "long line", "x"], wrapped=True) == ""
    assert sessions.difference(["a long line"], ["a", "short line"], wrapped=True) != ""
