"""What Tab offers within the shell where a value is wanted."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llmasos.syscalls.errno import Errno
from llmasos.syscalls.table import BY_NAME
from llmasos.userland.programs import ps, system
from llmasos.userland.shell.completing import candidates
from llmasos.userland.shell.completion import ShellCompleter
from llmasos.userland.shell.scanner import Scanner
from llmasos.userland.shell.tree import Script
from llmasos.userland.shell.words import COMMANDS
from tests.userland.top_pictures import agent


def offered(line: str) -> set[str]:
    completer = ShellCompleter(COMMANDS, cast(Any, lambda call: []))
    return {found.text for found in completer.get_completions(Document(line), CompleteEvent())}


def test_errors_and_calls_are_topics_of_man() -> None:
    errnos = {errno.name for errno in Errno if errno is not Errno.OK}
    assert offered("man E") == {name for name in errnos if name.startswith("E")}
    assert set(BY_NAME) <= offered("man ")
    assert "EBUSY" in offered("help EB")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("ps -o ", set(ps.LISTING.words)),
        ("ps -o TO", {"TOKENS"}),
        ("ps -o PID,TO", {"PID,TOKENS"}),
        ("ps -o +TO", {"+TOKENS"}),
        ("ps --sort -TO", {"-TOKENS"}),
        ("ps --sort TO", {"TOKENS"}),
        ("models -o ", set(system.MODELS.words)),
        ("devices --sort TOK", {"TOKENS", "TOK/S"}),
        ("jobs -o ", {"JOB", "STATE", "PID", "DECODED", "COMMAND"}),
    ],
)
def test_columns_are_offered(line: str, wanted: set[str]) -> None:
    assert offered(line) == wanted


def test_the_words_of_the_language_are_offered() -> None:
    assert {"case", "cat", "cd"} <= offered("c")
    assert "eval" in offered("ev")
    assert offered("trap 'x' ") == {"EXIT", "INT"}


def test_files_of_policies_come_first_with_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("class One:\n    class Inner: pass\n\nclass Two: pass\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "shortest.py").write_text("raise SystemExit\nclass Shortest: pass\n")
    (tmp_path / "broken.py").write_text("class (")
    (tmp_path / "script.py").write_text("print('nothing')")
    os.mkfifo(tmp_path / "pipe.py")  # reading it would wait for ever
    boot = SimpleNamespace(policies=["fair", "bad.py:One@0123456789abcdef"])
    completer = ShellCompleter(COMMANDS, cast(Any, lambda call: boot))

    def offered(line: str) -> list[str]:
        return [one.text for one in completer.get_completions(Document(line), CompleteEvent())]

    assert offered("policy b") == ["bad.py:One", "bad.py:Two", "bad.py:One@0123456789abcdef"]
    assert offered("policy fa") == ["fair"]
    assert offered("policy ./") == ["./bad.py:One", "./bad.py:Two", "./more/"]
    assert offered("policy more/s") == ["more/shortest.py:Shortest"]
    assert offered(f"policy {tmp_path}/bad.py:One") == [f"{tmp_path}/bad.py:One"]
    in_another_shell = [word for word, _ in candidates(tmp_path / "no kernel", ["policy", "ba"])]
    assert in_another_shell == ["bad.py:One", "bad.py:Two"]


NAMES = ("Big Bob", "o'brien", "plain", "a$b", "%1", "-x", "new\nline")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("say B", ["say Big\\ Bob"]),
        ("say Big\\ B", ["say Big\\ Bob"]),
        ("say 'Big ", ["say 'Big Bob'"]),
        ('say "Big ', ['say "Big Bob"']),
        ("say o", ["say o\\'brien"]),
        ("say 'o", ["say o\\'brien"]),
        ("say a", ["say a\\$b"]),
        ("say pl", ["say plain"]),
        ("watch kill Big\\ ", ["watch kill Big\\ Bob"]),
        ("say Big B", []),  # its text has begun
        ("say new", []),
        ("say %", []),
    ],
)
def test_names_with_blanks_and_signs_are_completed_as_words_that_mean_them(line: str, wanted: list[str]) -> None:
    rows = [agent(20 + number, name) for number, name in enumerate(NAMES)]
    completer = ShellCompleter(COMMANDS, cast(Any, lambda call: rows))
    offered = completer.get_completions(Document(line), CompleteEvent())
    made = [line[: len(line) + one.start_position] + one.text for one in offered if one.display_text in NAMES]
    assert made == wanted
    for one in wanted:
        (simple,) = (symbol.value for symbol in Scanner(one, COMMANDS, {}, lambda _: Script()).read())
        assert "".join(part.text for part in simple.words[-1].parts) in NAMES
