"""A journal of more processes than calls may wait: all get their models back, some at a time."""

from __future__ import annotations

from msgspec.structs import replace

from llmasos.kernel.journal.state import SavedProcess
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.pieces import AT_ONCE
from llmasos.kernel.tokens import log_of
from llmasos.simulator import Simulation, simulate
from llmasos.syscalls.limits import MAX_PARKED_CALLS
from llmasos.syscalls.table import Decode, Dmesg, Kill, Spawn, StatsCall

MANY = MAX_PARKED_CALLS + 300
FIRST = 1000  # pid


def killed_with_many() -> Simulation:
    """A kernel that has died with very many detached processes, each with a context of its own."""
    sim = simulate()
    one = sim.program()
    pid = one.call(Spawn("sim", [1, 2, 3], detached=True))
    saved = sim.kernel.snapshot()
    head = saved.processes[pid].head
    for number in range(FIRST, FIRST + MANY):
        saved.processes[number] = SavedProcess(
            replace(head, pid=number, group="/users/user"), log_of([number % 90, 7]), 2
        )
    saved.next_pid = FIRST + MANY
    sim.kill()
    sim.checked = False  # it looks at all of them after every event
    sim.boot_again(saved)
    return sim


def with_models(sim: Simulation) -> int:
    return sum(isinstance(one, LLMProcess) and one.image is not None for one in sim.kernel.table)


def test_all_processes_of_a_long_journal_get_their_models_back_some_in_each_event() -> None:
    sim = killed_with_many()
    other, ended = sim.program(), FIRST + MANY - 1
    parked = next(one for one in other.call(StatsCall()).budgets if one.name == "parked calls")
    assert (parked.used, parked.refused) == (0, 0)  # what waits for its model takes nobody's room
    other.call(Kill(ended))  # before its turn has come
    longest = before = with_models(sim)
    while (now := with_models(sim)) < MANY:
        longest, before = max(longest, now - before), now
        sim.step()
    assert 0 < longest <= AT_ONCE
    assert ended not in {one.pid for one in sim.kernel.table if isinstance(one, LLMProcess) and not one.is_zombie()}
    assert not [line for line in other.call(Dmesg()) if line.level == "error"]
    assert len(other.call(Decode(ended - 1, 3)).tokens) == 3
