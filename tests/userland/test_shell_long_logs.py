"""What the shell prints of a log that does not fit into one answer of the kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmasos.syscalls.limits import MAX_READ
from llmasos.syscalls.records import Finish, ReadResult, State
from llmasos.syscalls.table import Read
from llmasos.userland.shell import do_cat


def test_cat_follows_a_process_that_has_ended_to_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log, written = list(range(2 * MAX_READ + 1)), list[str]()

    def kernel(call: Read) -> ReadResult:
        tokens = log[call.position : call.position + min(call.limit, MAX_READ)]
        return ReadResult(call.position, tokens, False, Finish.STOP, State.ZOMBIE, len(log))

    monkeypatch.setattr(do_cat, "read_back", lambda agent, tokens, *, raw: tokens)
    monkeypatch.setattr(do_cat, "render", lambda tokens: "." * len(tokens))
    screen = SimpleNamespace(write=written.append, line=lambda: None)
    shell: Any = SimpleNamespace(kernel=kernel, screen=screen, info=lambda pid: SimpleNamespace(state=State.ZOMBIE))
    agent: Any = SimpleNamespace(pid=1)
    do_cat._follow(shell, agent, raw=False)
    assert len("".join(written)) == len(log)
