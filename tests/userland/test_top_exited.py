"""`top` and agents that have exited, whose status the kernel keeps for who asks: as in `ps`, they are left out."""

from __future__ import annotations

from llmasos.syscalls.records import State
from llmasos.userland.top import panel
from llmasos.userland.top.model import History
from llmasos.userland.top.tree import Arrangement
from tests.userland.top_pictures import agent, sample


def test_exited_agents_are_shown_to_who_filters_for_them_only() -> None:
    rows = [agent(4, "bob"), agent(5, "gone", state=State.ZOMBIE, ppid=1), agent(6, "own", state=State.ZOMBIE, ppid=3)]
    picture = History().add(sample(1.0, rows))

    def shown(arrangement: Arrangement) -> set[str]:
        return {line.name for line in arrangement.lines(picture)}

    for flat in (False, True):
        names = shown(Arrangement(flat=flat))
        assert {"bob", "own"} <= names, "a child that its program has not waited for is the program's matter"
        assert "gone" not in names
        assert "gone" in shown(Arrangement(needle="gone", flat=flat))
    assert " 2 agents  1 ended " in panel.lines(picture, 80, 1, panel.Palette())[0].plain
