"""Owners: who a program belongs to, what it makes inherits that, and no KV passes from one to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.events import Reply, Syscall
from llmasos.kernel.objects.owner import Owners
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_TENANTS
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import Right
from llmasos.syscalls.table import Attach, Call, Checkpoint, Decode, Fork, Grant, Kill, Models, Restore, Spawn, Wait

MODEL = "sim"
ANN, BEN = 1001, 1002


@pytest.fixture
def sim() -> Simulation:
    return simulate(256)


def llm(sim: Simulation, program: Prog, pid: int) -> LLMProcess:
    """The process that a program calls `pid`."""
    return sim.kernel.table.llm(pid_of(sim.kernel.programs[program.peer].owner.space, pid))


def test_the_kernels_own_user_and_root_are_one_owner_and_others_are_themselves(sim: Simulation) -> None:
    programs = [sim.program(uid=uid) for uid in (None, sim.kernel.config.uid, 0, ANN, ANN, BEN)]
    owners = [sim.kernel.programs[program.peer].owner for program in programs]
    assert owners[0] is owners[1] is owners[2] is sim.kernel.owners.operator
    assert owners[3] is owners[4]
    assert [owner.name for owner in owners[3:]] == ["1001", "1001", "1002"]
    assert len({owner.salt for owner in sim.kernel.owners}) == len(sim.kernel.owners) == 3


def test_what_a_program_makes_belongs_to_its_owner_in_groups_of_his(sim: Simulation) -> None:
    ann, acme = sim.program(uid=ANN), sim.program(uid=ANN, tenant="acme")
    for program, name, home in ((ann, "1001", "/users/1001"), (acme, "1001/acme", "/users/1001/acme")):
        pid = program.call(Spawn(MODEL, [1, 2, 3]))
        (child,) = program.call(Fork(pid))
        for process in (llm(sim, program, pid), llm(sim, program, child)):
            assert process.owner.name == process.group.owner.name == name
            assert process.group.parent is not None
            assert process.group.parent.path == home
            assert process.table.salt == process.owner.salt


def test_a_models_row_names_the_processes_that_the_caller_sees(sim: Simulation) -> None:
    operator, ann, ben = sim.program(), sim.program(uid=ANN), sim.program(uid=BEN)
    own = [program.call(Spawn(MODEL, [1])) for program in (operator, ann, ben)]
    for program, wanted in (
        (operator, [own[0], pid_of(ANN, own[1]), pid_of(BEN, own[2])]),
        (ann, [own[1]]),
        (ben, [own[2]]),
    ):
        (row,) = [row for row in program.call(Models()) if row.processes]
        assert row.mapped_by == sorted(wanted)


def test_contexts_of_two_owners_share_no_frame_and_those_of_one_do(sim: Simulation) -> None:
    prompt = list(range(1, 65))
    for program, reused in (
        (sim.program(uid=ANN), 0),
        (sim.program(uid=BEN), 0),
        (sim.program(), 0),
        (sim.program(uid=ANN, tenant="acme"), 0),
        (sim.program(uid=ANN), 48),
        (sim.program(), 48),
    ):
        pid = program.call(Spawn(MODEL, prompt))
        program.call(Decode(pid, 1))
        assert llm(sim, program, pid).account.reused == reused


def test_a_restored_process_is_its_restorers_and_has_his_salt(sim: Simulation, tmp_path: Path) -> None:
    ann, ben = sim.program(uid=ANN), sim.program(uid=BEN)
    pid = ann.call(Spawn(MODEL, list(range(1, 40))))
    ann.call(Checkpoint(pid, f"{tmp_path}/image"))
    there = llm(sim, ben, ben.call(Restore(f"{tmp_path}/image")))
    assert there.owner.name == "1002"
    assert there.table.salt == there.owner.salt != llm(sim, ann, pid).table.salt


def test_owners_and_what_is_theirs_come_back_with_the_journal(sim: Simulation) -> None:
    programs = [sim.program(), sim.program(uid=ANN), sim.program(uid=ANN, tenant="acme")]
    pids = [program.call(Spawn(MODEL, [1, 2, 3], detached=True)) for program in programs]
    before = {owner.name: owner.salt for owner in sim.kernel.owners}
    sim.kill()
    sim.boot_again()
    assert {owner.name: owner.salt for owner in sim.kernel.owners} == before
    for program in programs:
        program.come_back()
    sim.run_idle()
    for pid, program in zip(pids, programs, strict=True):
        process = llm(sim, program, pid)
        assert process.owner is sim.kernel.programs[program.peer].owner is process.group.owner
        assert process.table.salt == process.owner.salt == before[process.owner.name]


@pytest.mark.parametrize("uid", [None, ANN], ids=["operator", "ann"])
def test_an_answer_that_is_told_again_by_the_next_kernel_has_the_same_numbers(sim: Simulation, uid: int | None) -> None:
    sim.program(uid=BEN)
    program = sim.program(uid=uid)
    pid = program.call(Spawn("sim", [1, 2, 3], detached=True))
    ended = program.call(Spawn("sim", [1], detached=True))
    program.call(Kill(ended))
    calls: list[Call[Any]] = [
        Spawn("sim", [1], detached=True),
        Fork(pid, 2),
        Grant(pid, str(BEN), 1),
        Wait(ended),
    ]
    futures = [program.start(call) for call in calls]
    sim.run_for(1.0)
    told = [future.value for future in futures]
    for _ in range(2):
        for future in futures:
            future.reply = None  # it was lost on its way
        sim.kill()
        sim.boot_again()
        program.come_back()
        sim.run_for(1.0)
        assert [future.value for future in futures] == told


def test_a_ticket_is_good_for_its_owner_only(sim: Simulation) -> None:
    ann = sim.program(uid=ANN)
    sim.kill()
    sim.boot_again()
    for thief in (sim.connection(BEN), sim.connection()):
        with pytest.raises(SyscallError) as caught:
            thief.call(Attach(ticket=ann.ticket))
        assert caught.value.errno is Errno.ESRCH
    ann.come_back()


def test_speaking_for_a_tenant_needs_the_right_and_gives_none_over_the_uid(sim: Simulation) -> None:
    acme = sim.program(uid=ANN, tenant="acme")
    rights = sim.kernel.programs[acme.peer].rights
    assert not rights & (Right.SPEAK | Right.ADMIN)
    for tenant in ("other", "acme"):
        if tenant == "acme":
            acme.call(Attach(tenant=tenant))
            continue
        with pytest.raises(SyscallError, match="belongs to 1001/acme already"):
            acme.call(Attach(tenant=tenant))
    own = sim.kernel.owners
    assert own["1001"].over(own["1001/acme"])
    assert not own["1001/acme"].over(own["1001"])
    assert not own["1001"].over(own.operator)
    assert own.operator.over(own["1001/acme"])


def test_a_uid_has_no_more_tenants_than_it_may() -> None:
    owners = Owners(0, 1)
    for number in range(MAX_TENANTS):
        owners.of(ANN, f"t{number}", number)
    with pytest.raises(SyscallError) as caught:
        owners.of(ANN, "one-more", 5)
    assert caught.value.errno is Errno.EAGAIN
    assert owners.of(ANN, "t7", 5).tenant == "t7"
    assert owners.of(BEN, "one-more", 5).base is owners["1002"]


@pytest.mark.parametrize(
    ("word", "pid"),
    [
        ("7", 7),
        ("1001:7", pid_of(1001, 7)),
        ("0:7", pids.MARK | 7),
        (str(pid_of(1001, 7)), pid_of(1001, 7)),
        ("", None),
        ("x", None),
        ("1:2:3", None),
        ("-7", None),
        ("9999999999:1", None),
        (f"5:{1 << 31}", None),
    ],
)
def test_a_pid_is_written_with_the_uid_that_it_is_of(word: str, pid: int | None) -> None:
    assert pids.parse(word) == pid
    if pid is not None:
        assert pids.parse(pids.shown(pid)) == pid


@given(st.integers(1, pids.MOST_UID), st.integers(0, pids.MOST), st.integers(0, pids.MOST_UID))
def test_pids_are_taken_apart_as_they_were_made_and_told_by_who_reads(uid: int, number: int, reader: int) -> None:
    pid = pid_of(uid, number)
    assert (pids.uid_of(pid), pids.number_of(pid)) == (uid, number)
    assert pids.told(f"process {pid}, of 12 tokens, {pid}", uid) == f"process {number}, of 12 tokens, {number}"
    if reader != uid:
        assert pids.told(f"({pid})", reader) == f"({uid}:{number})"
    assert pids.told(f"5{pid} {uid} {number}", uid) == f"5{pid} {uid} {number}"


def ask(sim: Simulation, peer: int, call: Attach, tenant: str) -> Reply:
    """What a program hears that has shown the key of a tenant, as the edge says."""
    actions = sim.kernel.handle(Syscall(peer, 1, call, tenant=tenant, drawn=peer), sim.clock)
    return next(action for action in actions if isinstance(action, Reply))


def test_who_comes_by_a_key_is_its_tenant_whatever_it_says(sim: Simulation) -> None:
    assert ask(sim, 901, Attach("ada"), "key-ada").errno is Errno.OK
    assert sim.kernel.programs[901].owner.name.endswith("/key-ada")
    assert not sim.kernel.programs[901].rights & (Right.SPEAK | Right.ADMIN)
    assert ask(sim, 902, Attach("ada", tenant="acme"), "key-ada").errno is Errno.EPERM


def test_who_comes_by_a_key_takes_up_no_other_owners_program(sim: Simulation) -> None:
    acme = sim.program(tenant="acme")
    sim.kill()
    sim.boot_again()
    assert ask(sim, 903, Attach(ticket=acme.ticket), "key-ada").errno is Errno.ESRCH
    assert ask(sim, 904, Attach(ticket=acme.ticket), "acme").errno is Errno.OK
