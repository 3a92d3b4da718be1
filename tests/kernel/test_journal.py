"""The journal in virtual time: the kernel killed at every record, and what programs find when they come back.

That the records add up to the live state is checked after every event of every simulation (simulator/), and the
machines of tests/kernel/machines kill the kernel at random.
"""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import msgspec
import pytest

from llmasos.kernel.journal import records
from llmasos.kernel.journal.records import Answer, Doing, Frame, Grown, decode, encode
from llmasos.kernel.journal.state import MOST_ANSWER_BYTES, Answers, State
from llmasos.kernel.journal.tickets import ticket
from llmasos.simulator import Future, KernelKilled, Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_PARKED_CALLS
from llmasos.syscalls.records import (
    Finish,
    GroupSettings,
    Limits,
    Right,
    Sampler,
    SchedClass,
    Signal,
)
from llmasos.syscalls.table import (
    Attach,
    BootInfoCall,
    Call,
    Decode,
    Exec,
    Exit,
    Feed,
    Fork,
    Getinfo,
    GroupCreate,
    GroupMove,
    GroupSet,
    GroupStat,
    Kill,
    Null,
    Ps,
    Read,
    Records,
    Sched,
    Setlimits,
    Setsched,
    Shutdown,
    Spawn,
    StatsCall,
    Truncate,
    Wait,
)
from tests.kernel.journaled import WARM, fails, reboot


class Client:
    """A program that has a script: it knows each of its calls by a name, and makes none of them twice."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.program: Prog | None = None
        self.made: dict[str, Future[Any]] = {}

    def attach(self) -> None:
        if self.program is None or not self.program.ticket:
            self.program = self.sim.program("script")

    def start(self, name: str, call: Any) -> None:
        assert self.program is not None
        if name not in self.made:
            self.made[name] = self.program.prepare(call)
            self.sim.event(self.program.event(self.made[name]))

    def wait(self, name: str) -> Any:
        future = self.made[name]
        self.sim.run_until(lambda: future.done, what=name)
        return future.value

    def do(self, name: str, call: Any) -> Any:
        self.start(name, call)
        return self.wait(name)


def script(client: Client) -> dict[str, Any]:
    """A bit of everything that a journal must keep. What it returns must not depend on how often the kernel died."""
    do = client.do
    client.attach()
    a = do("a", Spawn("sim", list(range(20)), WARM, "a", records=[b"system"]))
    client.start("b", Spawn("sim", [5, 6], Sampler(seed=3), "b", detached=True, limits=Limits(tokens=30)))
    do("feed a", Feed(a, [1, 2, 3], [b"user"]))
    client.start("long", Decode(a, 12))
    b = client.wait("b")
    do("decode b", Decode(b, 9, wait=False))
    client.wait("long")
    first, second = do("fork", Fork(a, 2))
    do("feed first", Feed(first, [7], [b"again"]))
    client.start("logprobs", Decode(first, 5, logprobs=2))
    do("stop", Kill(second, Signal.STOP))
    do("decode second", Decode(second, 5, wait=False))
    do("sched", Setsched(b, 3, SchedClass.BATCH))
    do("limits", Setlimits(first, Limits(context=90)))
    client.wait("logprobs")
    do("group", GroupCreate("x", GroupSettings(cpu_weight=50, tokens_total=10_000)))
    do("move", GroupMove(first, "x"))
    do("exec", Exec(first, "sim:2m,eos_every=6"))
    do("decode first", Decode(first, 6))
    do("truncate", Truncate(a, 10))
    do("look", Decode(a, 0, logprobs=3))
    do("decode a", Decode(a, 4, sampler=Sampler(temperature=0.5, seed=9)))
    logs = {name: do(f"read {name}", Read(pid)).tokens for name, pid in (("a", a), ("first", first))}
    records = [do(f"records {pid}", Records(pid)) for pid in (a, first)]
    waited = do("read b", Read(b, 2 + 8))  # its last token
    do("exit b", Exit(b, 3))
    do("kill second", Kill(second, Signal.KILL))
    ends = {pid: do(f"wait {pid}", Wait(pid)) for pid in (b, second)}
    rows = {row.pid: row for row in do("ps", Ps())}
    return {
        "results": [
            client.made[name].value
            for name in ("feed a", "long", "logprobs", "decode first", "truncate", "look", "decode a")
        ],
        "logs": logs,
        "records": records,
        "b": waited.tokens,
        "ends": [(info.status, info.reason) for info in (ends[b], ends[second])],
        "group": [
            rows[first].group,
            rows[first].limits,
            rows[a].nice,
            rows[a].usage.decoded,
            rows[a].usage.fed,
        ],
    }


def compacted(state: State | None) -> State:
    assert state is not None
    again = State(b"")
    for frame in state.snapshot():
        again.apply(decode(encode(frame)))
    assert not again.difference(state)
    return again


def uninterrupted() -> tuple[dict[str, Any], int]:
    sim = simulate()
    return script(Client(sim)), sim.frames


@pytest.mark.long
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_the_kernel_is_killed_at_every_record_and_nothing_acknowledged_is_lost(before: bool) -> None:
    wanted, frames = uninterrupted()
    assert frames > 50
    for number in range(3, frames + 1):  # before are those of the boot, and of an attach that nobody heard of
        sim = Simulation(simulate().file)
        sim.die_at, sim.die_before = number, before
        client = Client(sim)
        try:
            sim.run_until(lambda sim=sim: sim.kernel.devices["sim0"].state == "up")  # type: ignore[misc]
            script(client)
        except KernelKilled:
            pass
        else:
            raise AssertionError(f"frame {number} was not written")
        answered = {name: future.reply for name, future in client.made.items() if future.done}
        sim.kill()
        sim.boot_again(compacted(sim.saved) if number % 2 else None)
        if client.program is not None and client.program.ticket:
            client.program.come_back()
            assert any("journal: " in line.text for line in sim.log), "it says what has come back"
        found = script(client)
        assert found == wanted, f"killed at frame {number}"
        assert all(client.made[name].reply is reply for name, reply in answered.items())


def test_a_kernel_that_dies_while_it_boots_leaves_the_journal_good() -> None:
    wanted, _ = uninterrupted()
    sim = simulate()
    client = Client(sim)
    sim.die_at = 30
    with pytest.raises(KernelKilled):
        script(client)
    for _ in range(3):
        sim.kill()
        sim.die_at = sim.frames + 1
        with pytest.raises(KernelKilled):
            sim.boot_again()
    sim.kill()
    sim.boot_again()
    assert client.program is not None
    client.program.come_back()
    assert script(client) == wanted


# --- programs -------------------------------------------------------------------------------------------------------


def test_a_program_is_taken_up_with_its_pid_its_rights_and_its_children() -> None:
    sim = simulate()
    program = sim.program("agent", Right.ALL & ~Right.ADMIN)
    pid = program.call(Spawn("sim", [1, 2, 3]))
    before = program.call(Getinfo())
    reboot(sim, program)
    after = program.call(Getinfo())
    assert (after.pid, after.name, after.group) == (before.pid, "agent", before.group)
    assert fails(lambda: program.call(Shutdown())).errno is Errno.EPERM
    assert program.call(Getinfo(pid)).ppid == program.pid
    program.call(Kill(pid, Signal.KILL))
    assert program.call(Wait()).pid == pid
    assert program.call(BootInfoCall()).ticket == program.ticket


def test_a_program_that_does_not_come_back_ends_and_its_children_with_it_but_the_detached() -> None:
    sim = simulate(grace=5.0)
    program = sim.program()
    child = program.call(Spawn("sim", [1]))
    detached = program.call(Spawn("sim", [1], detached=True))
    reboot(sim)
    other = sim.program("other")
    assert other.call(Getinfo(child)).pid == child
    sim.run_for(5.1)
    assert {row.pid for row in other.call(Ps())} & {child, detached, program.pid} == {detached}
    assert other.call(Getinfo(detached)).ppid == 1
    sim.connect(program)
    assert fails(lambda: program.call(Attach(ticket=program.ticket))).errno is Errno.ESRCH
    assert "has not come back" in sim.log[-1].text


def test_a_ticket_that_nobody_gave_is_of_nobody() -> None:
    sim = simulate()
    program = sim.program()
    forged = [
        b"1",
        program.ticket[:8],
        program.ticket[:-1],
        program.ticket[:-1] + bytes([program.ticket[-1] ^ 1]),
        ticket(b"another kernel's key", program.pid),
        ticket(b"", program.pid),
        (10**9).to_bytes(8, "big") + program.ticket[8:],
    ]
    reboot(sim)
    for shown in forged:
        stranger = sim.connection()
        assert fails(partial(stranger.call, Attach(ticket=shown))).errno is Errno.ESRCH
        assert fails(partial(stranger.call, Null())).errno is Errno.EPERM
    program.come_back()


def test_a_program_is_at_one_place_at_a_time() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    second = sim.connection()
    assert fails(lambda: second.call(Attach(ticket=program.ticket))).errno is Errno.EAGAIN
    assert program.call(Attach(ticket=program.ticket)).pid == program.pid
    assert fails(lambda: other.call(Attach(ticket=program.ticket))).errno is Errno.EINVAL


def test_without_a_journal_there_is_no_ticket_and_none_is_taken() -> None:
    sim = simulate(journal=False)
    program = sim.program()
    assert program.ticket == b""
    assert program.call(StatsCall()).journal == ""
    stranger = sim.connection()
    assert fails(lambda: stranger.call(Attach(ticket=ticket(b"", program.pid)))).errno is Errno.ESRCH
    program.disconnect()
    assert sim.kernel.table.gone == [], "nothing is kept for a frame that nobody makes"


# --- settings -------------------------------------------------------------------------------------------------------


def test_groups_what_they_have_used_and_how_devices_are_scheduled_come_back() -> None:
    sim = simulate(groups={"/batch": GroupSettings(tokens_total=30)})
    program = sim.program()
    program.call(GroupCreate("mine", GroupSettings(cpu_weight=7)))
    program.call(GroupCreate("/batch/inner"))
    program.call(GroupSet("/users", GroupSettings(pids_max=77)))
    program.call(Sched(policy="lottery", max_runs=3))
    pid = program.call(Spawn("sim", [1, 2, 3], group="/batch/inner"))
    first = program.call(Decode(pid, 20)).tokens
    used = program.call(GroupStat("/batch"))[0].tokens
    other = sim.program("passing")
    other.call(GroupCreate("theirs"))
    theirs = other.call(Getinfo()).group
    other.disconnect()
    reboot(sim, program)
    assert program.call(GroupStat("mine"))[0].settings.cpu_weight == 7
    assert program.call(GroupStat("/users"))[0].settings.pids_max == 77
    assert (program.call(Sched()).policy, program.call(Sched()).max_runs) == ("lottery", 3)
    assert program.call(GroupStat("/batch"))[0].tokens == used == 22
    assert fails(lambda: program.call(GroupStat(theirs))).errno is Errno.ENOENT
    rest = program.call(Decode(pid, 20))
    assert rest.finish is Finish.BUDGET
    assert first + rest.tokens == sim.continuation([1, 2, 3], 20 + len(rest.tokens))
    assert len(rest.tokens) == 8
    program.disconnect()
    sim.run_for(1.0)
    assert sim.saved is not None
    assert sim.saved.groups.keys() == {"/users", "/batch/inner"}


def test_pids_are_not_given_out_again() -> None:
    sim = simulate()
    program = sim.program()
    dead = program.call(Spawn("sim", [1]))
    program.call(Kill(dead, Signal.KILL))
    program.call(Wait())
    reboot(sim, program)
    reboot(sim, program)
    assert program.call(Spawn("sim", [1])) > dead
    assert fails(lambda: program.call(Feed(dead, [1]))).errno is Errno.ESRCH


# --- cost -----------------------------------------------------------------------------------------------------------


def test_what_changes_nothing_is_not_written_and_a_step_is_one_frame() -> None:
    sim = simulate(max_runs=8)
    program = sim.program()
    pids = [program.call(Spawn("sim", [i])) for i in range(8)]
    for pid in pids:
        program.call(Decode(pid, 50, wait=False))
    written: list[Frame] = []
    assert sim.saved is not None
    apply = sim.saved.apply
    sim._append = lambda append: (written.append(append.frame), apply(append.frame))[1]  # type: ignore[method-assign]
    calls: list[Call[Any]] = [Null(), Ps(), StatsCall(), Read(pids[0]), Getinfo()]
    for call in calls:
        program.call(call)
    assert not written
    steps = len(sim.steps)
    sim.run_until(lambda: len(sim.steps) == steps + 10)
    assert 9 <= len(written) <= 11
    assert all(len(encode(frame)) < 8 * 16 + 16 for frame in written)
    assert program.call(StatsCall()).journal == "kept"


def test_a_fork_does_not_write_the_log_again() -> None:
    sim = simulate()
    program = sim.program()
    parent = program.call(Spawn("sim", list(range(400))))
    program.call(Decode(parent, 3))
    assert sim.saved is not None
    apply, sizes = sim.saved.apply, []
    sim._append = lambda append: (sizes.append(len(encode(append.frame))), apply(append.frame))[1]  # type: ignore[method-assign]
    children = program.call(Fork(parent, 20))
    assert sum(sizes) < 20 * 400
    logs = {tuple(sim.saved.processes[pid].log) for pid in [parent, *children]}
    assert len(logs) == 1
    assert len(logs.pop()) == 403


def test_a_halt_leaves_the_journal_as_it_was() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    program.start(Decode(pid, 100))
    sim.run_for(0.02)
    frames = sim.frames
    program.start(Shutdown())
    assert sim.halted
    assert sim.frames == frames
    assert sim.saved is not None
    assert sim.saved.processes[pid].head.doing is not None


def test_a_process_goes_on_only_on_a_device_of_the_kind_that_it_ran_on() -> None:
    for there, device in (("sim", "sim0"), ("gone", "sim0"), ("sim", "gone")):
        sim = simulate()
        program = sim.program()
        pid = program.call(Spawn("sim", [1, 2, 3], WARM))
        assert sim.saved is not None
        saved = sim.saved.processes[pid]
        saved.head = msgspec.structs.replace(saved.head, kind=there, device=device)
        reboot(sim, program)
        assert program.call(Read(pid)).tokens == [1, 2, 3]
        if there == "sim":
            assert len(program.call(Decode(pid, 2)).tokens) == 2
            assert program.call(Getinfo(pid)).device == "sim0"
        else:
            error = fails(lambda program=program, pid=pid: program.call(Decode(pid, 2)))  # type: ignore[misc]
            assert (error.errno, "gone" in error.reason) == (Errno.EBUSY, True)


def test_what_a_group_has_used_outlives_a_change_of_its_total_and_ends_with_the_total() -> None:
    sim = simulate()
    program = sim.program()
    program.call(GroupCreate("/a", GroupSettings(tokens_total=100)))
    program.call(Decode(program.call(Spawn("sim", [1], WARM, group="/a")), 10))
    (before,) = program.call(GroupStat("/a"))
    assert before.tokens == 10
    program.call(GroupSet("/a", GroupSettings(tokens_total=200)))
    reboot(sim, program)
    (after,) = program.call(GroupStat("/a"))
    assert (after.tokens, after.settings.tokens_total) == (10, 200)
    assert sim.saved is not None
    assert sim.saved.spent == {"/a": 10}
    program.call(GroupSet("/a", GroupSettings()))
    assert sim.saved.spent == {}


def test_a_failed_call_that_is_sent_again_fails_again_and_counts_again() -> None:
    sim = simulate()
    program = sim.program()
    future = program.start(Exit(4711))
    assert future.errno is Errno.ESRCH
    future.reply = None  # it was lost with the kernel
    reboot(sim, program)
    assert future.errno is Errno.ESRCH
    assert program.call(StatsCall()).errors == 1


def test_without_a_journal_nothing_is_kept_for_it() -> None:
    sim = simulate(journal=False)
    program = sim.program()
    for _ in range(3):
        program.call(Exit(program.call(Spawn("sim", [1]))))
    kernel = sim.kernel
    kept = (kernel.table.changed, kernel.table.gone, kernel.owners.changed, kernel.grants.changed)
    assert [len(one) for one in kept] == [0] * 4


def test_two_states_differ_where_one_of_their_facts_programs_or_processes_does() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], WARM))
    assert sim.saved is not None
    for change in ("position", "processes", "programs"):
        other = sim.saved.copy()
        assert sim.saved.difference(other) == ""
        if change == "position":
            other.position += 1
        else:
            getattr(other, change).pop(pid if change == "processes" else program.pid)
        assert change.removesuffix("es").removesuffix("s") in sim.saved.difference(other)


def test_a_decode_that_nobody_waits_for_names_no_call() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], WARM))
    program.call(Decode(pid, 50, wait=False))
    assert sim.saved is not None
    doing = sim.saved.processes[pid].head.doing
    assert doing is not None
    assert (doing.program, doing.seq, doing.start, doing.until) == (0, 0, 3, 53)
    program.call(Kill(pid, Signal.INT))
    sim.run_idle()
    waiting = program.start(Decode(pid, 50))
    doing = sim.saved.processes[pid].head.doing
    assert doing is not None
    assert (doing.program, doing.seq) == (program.pid, waiting.seq)


def test_a_snapshot_adds_up_to_the_state_in_frames_of_bounded_size() -> None:
    sim = simulate()
    program = sim.program()
    pids = [program.call(Spawn("sim", tokens, WARM)) for tokens in ([], [1], [1, 2])]
    assert sim.saved is not None
    state = sim.saved.copy()
    state.processes[pids[2]].log.extend([5] * 150_000)
    frames = list(state.snapshot())
    again = State(state.secret)
    for frame in frames:
        again.apply(decode(encode(frame)))
    assert again.difference(state) == ""
    assert max(len(encode(frame)) for frame in frames) < 4 * 70_000
    assert [len(entry.tokens) for frame in frames for entry in frame.entries if isinstance(entry, Grown)] == [
        0, 1, 65_536, 65_536, 150_002 - 2 * 65_536,
    ]  # fmt: skip


@pytest.mark.parametrize(("machine", "ends"), [("a1b2", []), ("", [7]), ("a1b2", [7, 9])])
def test_a_snapshot_has_the_machine_and_where_earlier_kernels_ended_or_either(machine: str, ends: list[int]) -> None:
    state, again = State(b""), State(b"")
    state.machine, state.ends = machine, ends
    for frame in state.snapshot():
        again.apply(decode(encode(frame)))
    assert (again.machine, again.ends) == (machine, ends)


def test_the_latest_answers_are_kept_and_the_oldest_lose_their_text_when_they_are_too_long() -> None:
    answers, size = Answers(), MOST_ANSWER_BYTES // 4
    for seq in range(4):
        answers.add(Answer(7, seq, 40, Errno.OK, bytes(size), "", about=9))
    assert [len(one.value) for one in answers] == [size] * 4, "as many as there may be"
    answers.add(Answer(7, 4, 40, Errno.OK, bytes(257), "", about=8))
    assert [(one.errno, len(one.value) == size) for one in answers][:2] == [(Errno.EIO, False), (Errno.OK, True)]
    answers.add(Answer(7, 5, 40, Errno.OK, bytes(MOST_ANSWER_BYTES + 1), "", about=9))
    assert [one.errno for one in answers] == [Errno.EIO] * 5 + [Errno.OK], "the newest is always kept"
    short = Answers()
    for seq in range(MAX_PARKED_CALLS + 3):
        short.add(Answer(7, seq, 40, Errno.OK, bytes(256), "", about=seq % 2))
    assert [one.seq for one in short] == list(range(3, MAX_PARKED_CALLS + 3))
    assert {one.errno for one in short} == {Errno.OK}
    other = short.copy()
    short.forget(1)
    assert {(one.errno, one.about) for one in short} == {(Errno.OK, 0), (Errno.EIO, 0)}
    assert other != short
    assert other == other.copy()
    assert other != list(other)
    assert short._bytes == sum(len(one.value) for one in short)


TAGS = {
    "Secret": 1, "Pids": 2, "ProgramHead": 3, "Doing": 4, "Exited": 5, "ProcessHead": 6, "Grown": 7, "Gone": 8,
    "Answer": 9, "GroupHead": 10, "GroupGone": 11, "GroupSpent": 12, "DeviceHead": 13, "Copied": 14, "Noted": 15,
    "OwnerHead": 16, "Began": 20, "Sealed": 21, "Shredded": 22, "Granted": 23, "Revoked": 24,
    "Clock": 25, "SandboxHead": 26,
}  # fmt: skip


def test_the_records_of_the_journal_keep_their_tags() -> None:
    """What a kernel has written the next version reads."""
    assert {name: getattr(records, name).__struct_config__.tag for name in TAGS} == TAGS
    assert {one.__name__ for one in get_args(records.AnyEntry)} <= TAGS.keys()
    assert encode(Doing(True, 3, 53, [7], 2, Finish.NONE, 99, 5, 6))[1] == TAGS["Doing"]


def test_a_frame_of_nonsense_is_refused() -> None:
    from llmasos.kernel.journal.records import BadFrame

    for body in (b"", b"\xc1", encode([1, 2]), encode((0.0, [[99, 1]])), encode((-1.0, []))):
        with pytest.raises(BadFrame):
            decode(body)
