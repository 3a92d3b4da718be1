"""A kernel that serves all users of a machine: it opens no file of one of them by its own right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice
from llmasos.syscalls.table import TABLE, Call, Checkpoint, Entry, Names, Restore, Spawn

ANN = 1001
NAMING = [
    pytest.param(entry, touches, id=f"{entry.name}-{touches.field}")
    for entry in TABLE.values()
    for touches in entry.touches
    if touches.what in (Names.MODEL, Names.FILE, Names.TARGET)
]


@pytest.fixture
def sim() -> Simulation:
    return simulate(256, shared=True)


def naming(entry: Entry, field: str, name: str, pid: int) -> Call[Any]:
    """The call with `name` in a field; `pid` is a process of the caller's."""
    values = {"path": "/etc/shadow", field: name, "pid": pid, "advice": Advice.WILLNEED}
    wanted = {one.name for one in msgspec.structs.fields(entry.record) if one.required} | {field}
    return entry.record(**{name: value for name, value in values.items() if name in wanted})


def refused(program: Prog, call: Call[Any]) -> tuple[Errno, str]:
    with pytest.raises(SyscallError) as caught:
        program.call(call)
    return caught.value.errno, caught.value.reason


@pytest.mark.parametrize("name", ["/etc/shadow", "owner/model", "sim:7b,script=/etc/shadow"])
@pytest.mark.parametrize(("entry", "touches"), NAMING)
def test_a_name_that_is_looked_for_among_files_is_refused_to_users(
    sim: Simulation, entry: Entry, touches: Any, name: str
) -> None:
    for program in (sim.program(uid=ANN), sim.program(uid=ANN, tenant="acme"), sim.program(tenant="acme")):
        pid = program.call(Spawn("sim", [1, 2, 3]))
        errno, reason = refused(program, naming(entry, touches.field, name, pid))
        assert errno is Errno.EPERM
        assert "with the rights of the machine's kernel" in reason


def test_models_that_the_kernel_knows_by_name_are_everybodys(sim: Simulation) -> None:
    for program in (sim.program(uid=ANN), sim.program(uid=1002)):
        assert program.call(Spawn("sim", [1, 2, 3]))
        assert program.call(Spawn("sim:0.1b", [1, 2, 3]))


def test_the_operator_of_the_machine_names_files_as_before(sim: Simulation, tmp_path: Path) -> None:
    program = sim.program()
    program.call(Checkpoint(program.call(Spawn("sim", [1, 2, 3])), f"{tmp_path}/image"))
    assert program.call(Restore(f"{tmp_path}/image"))


def test_a_kernel_of_ones_own_opens_files_for_whom_it_lets_in(tmp_path: Path) -> None:
    ann = simulate(256).program(uid=ANN)
    ann.call(Checkpoint(ann.call(Spawn("sim", [1, 2, 3])), f"{tmp_path}/image"))
    assert ann.call(Restore(f"{tmp_path}/image"))
