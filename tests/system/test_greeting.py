"""What somebody is told who comes back to a kernel that had to be booted anew: who is there, and what was lost."""

from __future__ import annotations

import signal

import pytest

from llmasos.syscalls.table import Feed
from tests.system.home import Home, born

pytestmark = pytest.mark.processes


def test_who_comes_back_is_told_who_is_there_and_what_could_not_be_read(home: Home) -> None:
    first = home.type("shell", stdin="")
    assert "booted a kernel" in first.stderr
    assert "back:" not in first.stderr
    with home.connect() as kernel:
        for name in ("ann", "ben"):
            kernel(Feed(born(kernel, name), list(range(10, 60))))
    home.kill(signal.SIGTERM)
    again = home.type("shell", stdin="")
    assert "2 agents are back: ann, ben\n" in again.stderr
    assert "journal:" not in again.stderr
    with home.connect() as kernel:
        born(kernel, "cleo")
    home.kill(signal.SIGTERM)
    journal = home.state / "llmasos" / "kernel.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    damaged = home.type("shell", stdin="")
    assert "are back: ann, ben" in damaged.stderr
    assert "journal: " in damaged.stderr
    assert home.type("shell", stdin="").stderr == "", "who joins is told nothing"
