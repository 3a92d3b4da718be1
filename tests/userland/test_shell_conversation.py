"""Conversations as the shell prints them."""

from __future__ import annotations

from llmasos.userland.sdk.dialogue import Dialogue, Said
from llmasos.userland.shell.conversation import Turn, known_turns, render


def test_a_thought_is_read_back_in_lines_of_its_own_before_the_answer() -> None:
    known = Dialogue(
        said=[
            Said({"role": "system", "content": "be brief"}),
            Said({"role": "user", "content": "hello"}),
            Said({"role": "assistant", "content": "hi", "reasoning_content": "\nso\n"}),
            Said({"role": "user", "content": "and?"}),
        ]
    )
    unfinished = {"role": "assistant", "content": "", "reasoning_content": "let me see"}
    said = known_turns(known, unfinished, "alice")
    assert said[2:] == [Turn("alice", "hi", "so"), Turn("you", "and?"), Turn("alice", "", "let me see")]
    assert render(said) == "system: be brief\nyou: hello\nalice: so\nhi\nyou: and?\nalice: let me see\n"
