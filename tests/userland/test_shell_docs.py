"""docs/shell.md is the manual of the commands and verbs that there are, word for word."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.userland.shell.main import DO
from llmasos.userland.shell.words import COMMANDS, SHELL_ONLY

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "shell.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_has_every_command_with_its_usage_options_and_details(name: str) -> None:
    command = COMMANDS[name]
    assert f"**`{command.usage}`** {command.summary}." in MANUAL
    assert command.details in MANUAL
    for option in command.options:
        form = f"{option.flag} {option.kind.value}" if option.kind else option.flag
        assert f"- `{form}`: {option.help}" in MANUAL


def test_the_modules_of_the_commands_say_which_they_have() -> None:
    for module in {action.__module__ for action in DO.values()}:
        said = re.findall(r"[a-z]+", (sys.modules[module].__doc__ or "").partition(": ")[2].partition(". ")[0])
        theirs = {name for name, action in DO.items() if action.__module__ == module}
        if len(theirs) > 1:
            assert set(said) == theirs, module


def test_the_manual_has_every_verb() -> None:
    ask = [sys.executable, "-m", "llmasos", "--help"]
    said = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True)
    shown = said.stdout.partition("VERB\n")[2]
    verbs = [line.split()[0] for line in shown.splitlines() if line.startswith("    ") and line[4] != " "]
    assert "boot" in verbs
    for verb in verbs:
        assert f"`llmasos {verb}" in MANUAL or f"`{verb}" in MANUAL, verb


def test_the_manual_says_which_commands_are_no_verbs() -> None:
    listed = MANUAL.partition("are about a shell or a script, are not:")[2].partition("<!-- end -->")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == SHELL_ONLY - {"halt"}
