"""An answer to `read` has a bounded number of tokens: whoever wants more reads on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmasos.simulator import simulate
from llmasos.syscalls.records import ReadResult
from llmasos.syscalls.table import Call, Getinfo, Read, Spawn
from llmasos.userland.sdk import actions
from llmasos.userland.sdk.script import Script
from llmasos.userland.shell import do_look
from llmasos.userland.shell.session import Session

LOG = list(range(1, 31))


class Few:
    """A simulated kernel that answers with 7 tokens at most, with a process that has `LOG`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llmasos.kernel.calls.context.MAX_READ", 7)
        self.program = simulate().program()
        self.pid: int = self.program.call(Spawn("sim", LOG))
        self.reads = 0

    def __call__(self, call: Call[Any]) -> Any:
        self.reads += isinstance(call, Read)
        return self.program.call(call)

    def run(self, script: Script[Any]) -> Any:
        answer = None
        try:
            while True:
                call = script.send(answer)
                assert isinstance(call, Call)
                answer = self(call)
        except StopIteration as end:
            return end.value


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Few:
    return Few(monkeypatch)


def test_one_answer_has_no_more_than_it_may_and_tells_the_length(few: Few) -> None:
    answer: ReadResult = few(Read(few.pid, 2))
    assert (answer.position, list(answer.tokens), answer.length) == (2, LOG[2:9], len(LOG))


@pytest.mark.parametrize("position", [0, 2, 29, 30, 31])
def test_a_log_that_is_longer_than_an_answer_is_read_whole(few: Few, position: int) -> None:
    assert few.run(actions.log_of(few.pid, position)) == LOG[position:]


def test_the_end_of_a_decode_that_is_longer_than_an_answer_is_had_whole(few: Few) -> None:
    found = few.run(actions.until_idle(few.pid, 3))
    assert (found.position, list(found.tokens)) == (3, LOG[3:])
    assert few.reads == 4


@pytest.mark.parametrize(("position", "limit"), [(0, 100), (4, 15), (4, 7), (25, 100), (30, 5), (99, 5)])
def test_the_command_shows_as_many_tokens_as_it_was_asked_for(few: Few, position: int, limit: int) -> None:
    shell = cast(Session, SimpleNamespace(kernel=few))
    found = do_look._read_log(shell, few.pid, position, limit)
    assert (found.position, list(found.tokens)) == (position, LOG[position : position + limit])
    assert few(Getinfo(few.pid)).length == len(LOG)
