"""What `ps` says of processes that it does not see, and how it writes pids of other users."""

from __future__ import annotations

from typing import Any

from llmasos.simulator import Prog, simulate
from llmasos.syscalls.table import Call, Spawn
from llmasos.userland.programs import ps


def test_others_are_counted_by_user_and_the_operator_reads_whose_a_pid_is() -> None:
    sim = simulate(256)
    ann, ben, operator = sim.program("ann", uid=1001), sim.program("ben", uid=1002), sim.program("root")
    for _ in range(2):
        ben.call(Spawn("sim", [1]))

    def shown(program: Prog) -> tuple[list[str], str]:
        def kernel(call: Call[Any]) -> Any:
            return program.call(call)

        rows = ps.processes(kernel)
        cells = [dict(ps.details(row))["pid"] for row in rows]
        return cells, ps.unseen(kernel, rows)

    pids, others = shown(ann)
    assert pids == ["1", "2", "100"]
    assert others == "processes of others: 1 in /users/user, 3 in /users/1002"
    pids, others = shown(operator)
    assert pids == ["1", "2", "3", "1001:100", "1002:100", "1002:101", "1002:102"]
    assert others == ""
