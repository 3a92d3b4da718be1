"""What Tab offers within the shell where a value is wanted."""

from __future__ import annotations

from typing import Any, cast

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llmasos.syscalls.errno import Errno
from llmasos.syscalls.table import BY_NAME
from llmasos.userland.programs import ps, system
from llmasos.userland.shell.completion import ShellCompleter
from llmasos.userland.shell.words import COMMANDS


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
