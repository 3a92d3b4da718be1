"""Rights on objects: every call on every object of somebody else's, by all the names that it could be called by.

What may not be seen fails as what never was does, in the same words and by the same lines of code; what may be seen and
not used fails with EPERM; and in both cases nothing in the core is another than before.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

from llmasos.kernel.clock import seconds
from llmasos.kernel.outward import FIELDS
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls import records
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import number_of, pid_of, shown
from llmasos.syscalls.records import (
    Advice,
    GroupSettings,
    Kind,
    Limits,
    LogRecord,
    Record,
    Right,
    Sampler,
    Signal,
    State,
)
from llmasos.syscalls.table import (
    TABLE,
    Accept,
    Advise,
    Attach,
    BootInfoCall,
    Call,
    Checkpoint,
    Decode,
    Dmesg,
    Entry,
    Evict,
    Feed,
    Fork,
    Getinfo,
    Grant,
    GroupCreate,
    GroupKill,
    GroupSet,
    GroupStat,
    Kill,
    Models,
    Names,
    Needs,
    Pagein,
    Ps,
    Read,
    Sched,
    Setsched,
    Shred,
    Shutdown,
    Spawn,
    Trace,
    Wait,
)

ANN, BEN = 1001, 1002
PRIVATE = "sim:context=128,vocab=100"  # a model that is known by no name
PROCESSES = (Names.PROCESS, Names.ROW, Names.MEMBER, Names.LLM, Names.LOG, Names.RUNNER, Names.CHILD)
GROUPS = (Names.GROUP, Names.PLACE, Names.RULED, Names.PARENT)
NEVER = 987_654  # a number that nobody has had

VALUES: dict[str, Any] = {  # arguments that would do something, were the call allowed
    "model": "sim",
    "tokens": [1, 2],
    "max_tokens": 2,
    "length": 1,
    "position": 0,
    "name": "mine",
    "advice": Advice.DONTNEED,
    "settings": GroupSettings(cpu_weight=7),
    "limits": Limits(tokens=1),
    "signal": Signal.KILL,
    "nice": 5,
    "count": 1,
    "status": 1,
    "timeout": 0.0,
    "to": "1003",
    "rights": 7,
}
FILES = {"checkpoint", "restore"}  # whose `path` is one


@dataclass
class World:
    sim: Simulation
    ann: Prog  # whose things they are
    other: Prog  # who tries
    things: dict[str, int]  # Ann's processes, as the kernel knows them
    numbers: dict[str, int]  # as Ann knows them
    dead: int  # a process of the other that has been reaped

    @property
    def own(self) -> set[int]:
        """Numbers that the other has himself."""
        tenant = self.sim.kernel.programs[self.other.peer].owner.tenant
        return set() if tenant else {self.other.pid, self.dead}

    def core(self) -> bytes:
        """All that the core has, but for the counters of calls and errors."""
        left_out = ("sources", "calls", "counters")
        return pickle.dumps({name: part for name, part in vars(self.sim.kernel).items() if name not in left_out})

    def refusal(self, call: Call[Any]) -> tuple[Errno, str]:
        """How a call fails, at once, and that it leaves everything as it was."""
        before = self.core()
        future = self.other.start(call)
        assert future.done, f"{call} waits"
        with pytest.raises(SyscallError) as caught:
            _ = future.value
        assert self.core() == before, f"{call} fails with {caught.value}, and has changed something"
        return caught.value.errno, caught.value.reason


def world(who: str, **config: Any) -> World:
    """Ann's processes in every state, and somebody else: another user, or a tenant of hers."""
    sim = simulate(256, **config)
    ann = sim.program("ann", uid=ANN)
    numbers = {"program": ann.pid}
    for name in ("idle", "stopped", "zombie"):
        numbers[name] = ann.call(Spawn(PRIVATE if name == "idle" else "sim", [1, 2, 3, 4], name=name, detached=True))
    ann.call(Kill(numbers["stopped"], Signal.STOP))
    ann.call(Kill(numbers["zombie"], Signal.KILL))
    ann.call(GroupCreate("/users/1001/team"))
    other = sim.program("other", uid=BEN if who == "ben" else ANN, tenant="" if who == "ben" else "eve")
    dead = other.call(Spawn("sim", [1], detached=True))
    other.call(Kill(dead, Signal.KILL))
    other.call(Wait(dead))
    things = {name: pid_of(ANN, number) for name, number in numbers.items()}
    states = {name: sim.kernel.table.find(pid) for name, pid in things.items()}
    assert (found := states["zombie"]) is not None
    assert found.state is State.ZOMBIE
    return World(sim, ann, other, things, numbers, dead)


def call_on(entry: Entry, field: str, value: object) -> Call[Any]:
    """The call with an object in `field`, and all else as it would be useful."""
    arguments: dict[str, Any] = {}
    for one in msgspec.structs.fields(entry.record):
        if one.name == field:
            arguments[one.name] = value
        elif one.name == "path":
            arguments[one.name] = "/tmp/theirs" if entry.name in FILES else ""
        elif one.name == "pid" and one.required:
            arguments[one.name] = 0
        elif one.name in VALUES and (one.required or one.name in ("signal", "nice", "limits", "timeout", "tokens")):
            arguments[one.name] = VALUES[one.name]
    return entry.record(**arguments)


def entries(kinds: tuple[Names, ...]) -> list[Any]:
    return [
        pytest.param(entry, touches.field, touches.needs, id=f"{entry.name}-{touches.field}")
        for entry in TABLE.values()
        for touches in entry.touches
        if touches.what in kinds
    ]


@pytest.fixture(scope="module", params=["ben", "eve"])
def hidden(request: pytest.FixtureRequest) -> World:
    return world(request.param)


@pytest.fixture(scope="module")
def rows() -> World:
    return world("ben", show_all=True)


# --- all calls, all objects -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "field", "needs"), entries(PROCESSES))
def test_a_process_of_others_is_to_every_call_as_one_that_never_was(
    hidden: World, entry: Entry, field: str, needs: Needs
) -> None:
    absolute = pid_of(ANN, NEVER)
    never = {pid: hidden.refusal(call_on(entry, field, pid)) for pid in (NEVER, absolute)}
    for name, thing in hidden.things.items():
        for pid, without in ((hidden.numbers[name], NEVER), (thing, absolute)):
            if pid in hidden.own:
                continue  # so he calls one of his own
            errno, reason = hidden.refusal(call_on(entry, field, pid))
            wanted, words = never[without]
            assert errno is wanted, f"{name}: {reason}"
            assert wanted in (Errno.ESRCH, Errno.ECHILD)
            assert reason == words.replace(str(number_of(without)), str(number_of(pid))), name


@pytest.mark.parametrize(("entry", "field", "needs"), entries(PROCESSES))
def test_a_process_of_others_that_can_be_seen_can_not_be_used(
    rows: World, entry: Entry, field: str, needs: Needs
) -> None:
    for name, pid in rows.things.items():
        if name == "zombie" and entry.name not in ("getinfo", "wait", "read", "records"):
            continue  # to all others it is gone, whosever it was
        if entry.name == "getinfo":
            row = rows.other.call(call_on(entry, field, pid))
            assert (row.name, row.seed, row.reason) in (("", 0, ""), ("ann", 0, ""))
            continue
        errno, reason = rows.refusal(call_on(entry, field, pid))
        if entry.name == "grant" and name == "program":
            assert errno is Errno.EINVAL  # of what it is, the row told
            continue
        assert errno is Errno.EPERM, f"{name}: {reason}"


@pytest.mark.parametrize(("entry", "field", "needs"), entries(GROUPS))
def test_groups_of_others_are_not_there_and_their_home_is_not_to_be_used(
    hidden: World, entry: Entry, field: str, needs: Needs
) -> None:
    inside = "/x" if entry.name == "group_create" else ""
    eve = hidden.sim.kernel.programs[hidden.other.peer].owner.tenant != ""
    where = "/users/1001"
    errno, words = hidden.refusal(call_on(entry, field, f"{where}/never{inside}"))
    assert errno is Errno.ENOENT
    for name in (f"session-{hidden.ann.pid}", "team"):
        found, reason = hidden.refusal(call_on(entry, field, f"{where}/{name}{inside}"))
        assert (found, reason) == (errno, words.replace("never", name))
    for seen in ("/", "/users", "/users/1001", "/users/user"):
        if needs is Needs.SEE:
            continue
        found, reason = hidden.refusal(call_on(entry, field, f"{seen.rstrip('/')}{inside}" if inside else seen))
        assert found is Errno.EPERM, f"{seen} ({eve=}): {reason}"
    assert hidden.refusal(call_on(entry, field, f"/users/nobody{inside}"))[0] is Errno.ENOENT


@pytest.mark.parametrize("granted", [1, 3, 5, 9, 7, 15], ids=lambda rights: Needs(rights).name)
@pytest.mark.parametrize(("entry", "field", "needs"), entries(PROCESSES))
def test_a_grant_allows_what_the_table_says_and_no_more(entry: Entry, field: str, needs: Needs, granted: int) -> None:
    sim = simulate(256)
    ann, ben = sim.program(uid=ANN), sim.program(uid=BEN)
    number = ann.call(Spawn("sim", [1, 2, 3, 4], detached=True))
    ben.call(Accept(ann.call(Grant(number, str(BEN), granted)).ticket))
    call = call_on(entry, field, pid_of(ANN, number))
    (row,) = (one for one in entry.touches if one.field == field)
    wanted = int(needs)
    for more in row.more:
        wanted |= int(more.needs) if getattr(call, more.field) else 0
    if entry.name == "grant":
        wanted = int(VALUES["rights"])  # what one passes on
    future = ben.start(call)
    sim.run_for(1.0)
    if entry.name == "group_move":
        granted = 0  # no group of his may have it, whatever he was granted
    refused = future.errno is Errno.EPERM
    assert refused == bool(wanted & ~granted), (future.errno, future.reply)
    assert future.errno is not Errno.ESRCH
    if refused:
        assert ann.call(Read(number)).tokens == [1, 2, 3, 4]


def test_every_call_is_tried_or_names_nothing_that_could_be_anothers() -> None:
    kinds = {touches.what for entry in TABLE.values() for touches in entry.touches}
    assert kinds <= {*PROCESSES, *GROUPS, Names.DEVICE, Names.MODEL, Names.FILE, Names.TARGET, Names.OWNER}
    nothing = {entry.name for entry in TABLE.values() if not entry.touches}
    assert nothing == {
        "attach",
        "leave",
        "null",
        "boot_info",
        "stats",
        "trace",
        "dmesg",
        "shutdown",
        "ps",
        "models",
        "inventory",
        "accept",
        "grants",
        "revoke",
        "sandbox_open",
        "sandbox_close",
    }
    unguarded = {
        (entry.name, touches.field) for entry in TABLE.values() for touches in entry.touches if touches.needs is Needs.SEE
    }
    assert unguarded == {
        ("getinfo", "pid"),
        ("grant", "pid"),
        ("grant", "group"),
        ("group_stat", "path"),
        ("checkpoint", "path"),
        ("restore", "path"),
    }


@pytest.mark.parametrize(("entry", "field", "needs"), entries((Names.OWNER,)))
def test_another_owner_is_to_every_call_as_one_that_never_was(
    hidden: World, entry: Entry, field: str, needs: Needs
) -> None:
    errno, words = hidden.refusal(call_on(entry, field, "7777"))
    assert errno is Errno.ESRCH
    for name in ("0", str(hidden.sim.kernel.owners.operator.uid), "1001", "1001/never", "1002/eve"):
        own = hidden.sim.kernel.programs[hidden.other.peer].owner.name
        if name != own:
            assert hidden.refusal(call_on(entry, field, name)) == (errno, words.replace("7777", name))


def test_models_of_others_are_not_there_and_those_in_common_are_not_to_be_taken_out(hidden: World) -> None:
    calls: dict[type[Call[Any]], tuple[Any, ...]] = {Evict: (), Advise: (Advice.DONTNEED,)}
    for call, more in calls.items():
        errno, words = hidden.refusal(call("sim:context=99,vocab=100", *more))
        assert errno is Errno.ENOENT
        assert hidden.refusal(call(PRIVATE, *more)) == (errno, words.replace("context=99", "context=128"))
        assert PRIVATE not in words
        assert hidden.refusal(call("sim", *more))[0] is Errno.EPERM
    assert hidden.refusal(Advise("sim", Advice.PIN))[0] is Errno.EPERM
    assert {row.path for row in hidden.other.call(Models())} == {"sim"}
    assert {row.path for row in hidden.ann.call(Models())} == {"sim", PRIVATE}


def test_the_machine_and_its_drivers_are_the_operators(hidden: World) -> None:
    drivers = [row.pid for row in hidden.other.call(Ps()) if row.kind in (Kind.DRIVER, Kind.INIT)]
    assert drivers == [row.pid for row in hidden.sim.program().call(Ps()) if row.kind in (Kind.DRIVER, Kind.INIT)]
    calls: list[Call[Any]] = [Shutdown(), Sched(max_runs=3), *(Kill(pid, Signal.KILL) for pid in drivers)]
    for call in calls:
        assert hidden.refusal(call)[0] is Errno.EPERM


# --- one path -------------------------------------------------------------------------------------------------------


def lines_of(sim: Simulation, program: Prog, call: Call[Any]) -> list[tuple[str, int]]:
    """The lines of the kernel that run for a call, in order."""
    found: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and "kernel" in frame.f_code.co_filename:
            found.append((frame.f_code.co_filename, frame.f_lineno))
        return trace

    event = program.event(program.prepare(call))
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        actions = sim.kernel.handle(event, sim.clock)
    finally:
        sys.settrace(before)
    sim._act(actions)
    return found


@pytest.mark.parametrize(("entry", "field", "needs"), entries(PROCESSES))
def test_absent_dead_and_hidden_run_through_the_same_lines(hidden: World, entry: Entry, field: str, needs: Needs) -> None:
    numbers = [NEVER, hidden.dead, *(set(hidden.numbers.values()) - hidden.own)]
    absolute = [pid_of(ANN, NEVER), *hidden.things.values()]
    for pids in (numbers, absolute):
        runs = [lines_of(hidden.sim, hidden.other, call_on(entry, field, pid)) for pid in pids]
        assert len(runs[0]) > 20
        for pid, run in zip(pids, runs, strict=True):
            assert run == runs[0], f"{pid} and {pids[0]} part here: {first_difference(run, runs[0])}"


@pytest.mark.parametrize(("entry", "field", "needs"), entries(GROUPS))
def test_groups_that_never_were_and_hidden_ones_run_through_the_same_lines(
    hidden: World, entry: Entry, field: str, needs: Needs
) -> None:
    inside = "/x" if entry.name == "group_create" else ""
    names = ("gone", "team")  # of one length: a path is read letter by letter
    runs = [lines_of(hidden.sim, hidden.other, call_on(entry, field, f"/users/1001/{name}{inside}")) for name in names]
    assert len(runs[0]) > 20
    assert runs[0] == runs[1], first_difference(*runs)


def first_difference(one: list[tuple[str, int]], other: list[tuple[str, int]]) -> object:
    return next((pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]), (len(one), len(other)))


# --- what is told of others -----------------------------------------------------------------------------------------


def test_others_are_a_count_by_group_and_no_row(hidden: World) -> None:
    rows = hidden.other.call(Ps())
    own = {Kind.INIT, Kind.DRIVER}
    assert all(row.kind in own or row.name in ("other", "sim") for row in rows)
    stats = {info.path: info for info in hidden.other.call(GroupStat("/", below=True))}
    anns = stats["/users/1001"]
    assert anns.pids >= 3
    assert (anns.kv, anns.weights, anns.tokens, anns.processes, anns.events, anns.pressure) == (0, 0, 0, [], {}, {})
    assert not any(path.startswith("/users/1001/") and "eve" not in path for path in stats)


def test_the_operator_sees_all_by_owner_and_number(hidden: World) -> None:
    operator = hidden.sim.program()
    seen = {row.pid for row in operator.call(Ps())}
    assert set(hidden.things.values()) <= seen
    assert [shown(pid) for pid in (hidden.things["idle"], 7)] == [f"1001:{hidden.numbers['idle']}", "7"]
    paged: list[int] = []
    while page := operator.call(Ps(after=paged[-1] if paged else 0, limit=2)):
        paged += [row.pid for row in page]
    assert paged == sorted(seen)
    assert operator.call(Getinfo(hidden.things["idle"])).name == "idle"
    with pytest.raises(SyscallError, match="process 1001:987654: it has exited, or never was"):
        operator.call(Getinfo(pid_of(ANN, NEVER)))


def test_a_user_has_every_right_over_his_tenants_and_they_share_numbers() -> None:
    sim = simulate(256)
    ann, eve = sim.program(uid=ANN), sim.program(uid=ANN, tenant="eve")
    pid = eve.call(Spawn("sim", [1, 2, 3], name="hers"))
    assert len({ann.pid, eve.pid, pid}) == 3
    assert ann.call(Getinfo(pid)).name == "hers"
    ann.call(Feed(pid, [4]))
    assert ann.call(Read(pid)).tokens == [1, 2, 3, 4]
    ann.call(GroupSet("/users/1001/eve", GroupSettings(kv_max=1 << 20)))
    with pytest.raises(SyscallError) as caught:
        eve.call(GroupSet("/users/1001/eve", GroupSettings()))
    assert caught.value.errno is Errno.EPERM


def test_what_is_forked_from_another_is_the_forkers_and_shares_no_frame() -> None:
    sim = simulate(256)
    ann, eve = sim.program(uid=ANN), sim.program(uid=ANN, tenant="eve")
    theirs = eve.call(Spawn("sim", list(range(1, 50)), sampler=Sampler(seed=3)))
    tokens = eve.call(Decode(theirs, 5)).tokens
    (mine,) = ann.call(Fork(theirs, same_seed=True))
    child, parent = (sim.kernel.table.llm(pid_of(ANN, pid)) for pid in (mine, theirs))
    assert child.owner.name == "1001"
    assert not set(child.table.frames) & set(parent.table.frames)
    assert ann.call(Decode(mine, 5)).tokens == eve.call(Decode(theirs, 5)).tokens
    assert child.account.reused == 0
    assert len(tokens) == 5


def test_tokens_in_the_trace_are_for_those_who_may_read_the_log() -> None:
    sim = simulate(256)
    ann, blind, ben = sim.program(uid=ANN), sim.program("blind", Right.QUERY, uid=ANN), sim.program(uid=BEN)
    operator, looker = sim.program(), sim.program("looker", Right.QUERY)
    readers = {"ann": ann, "blind": blind, "ben": ben, "operator": operator, "looker": looker}
    start = {name: program.call(Trace()).next for name, program in readers.items()}
    pid = ann.call(Spawn("sim", [61, 62, 63], records=[b"71"]))
    ann.call(Feed(pid, [64]))
    ann.call(Decode(pid, 3, stop_ids=[65], logprobs=2))
    ann.call(Read(pid))
    with pytest.raises(SyscallError):
        ann.call(Feed(pid, [1_000_066]))
    told = {name: program.call(Trace(start[name])).events for name, program in readers.items()}
    for name, words in ((name, " ".join(event.detail for event in events)) for name, events in told.items()):
        seen = [token for token in ("61", "64", "65", "1000066") if token in words]
        assert len(seen) == (4 if name in ("ann", "operator") else 0), name
    assert {event.what for event in told["blind"]} == {event.what for event in told["ann"]} > {"call.feed", "ret.read"}
    assert told["ben"] == []
    assert {event.pid for event in told["ann"]} == {ann.pid, pid}


def test_the_log_tells_each_what_is_his_under_numbers_without_gaps(tmp_path: Path) -> None:
    sim = simulate(256)
    ann, ben = sim.program(uid=ANN), sim.program(uid=BEN)
    for program, path in ((ann, "anns-secret"), (ben, "bens-secret"), (ann, "anns-other")):
        pid = program.call(Spawn("sim", list(range(1, 20)), detached=True))
        program.call(Checkpoint(pid, f"{tmp_path}/{path}"))
    lines = ann.call(Dmesg())
    text = " ".join(line.text for line in lines)
    assert "anns-secret" in text
    assert "anns-other" in text
    assert "bens" not in text
    assert [line.seq for line in lines] == list(range(len(lines)))
    assert f"process {pid}:" in text
    assert f"process 1001:{pid}:" in " ".join(line.text for line in sim.program().call(Dmesg()))
    assert ann.call(BootInfoCall()).arguments == []


def test_every_field_with_a_pid_is_translated() -> None:
    named = {"pid", "ppid", "processes", "mapped_by"}
    own = {"ModelInfo.processes", "Going.processes", "Stats.processes", "DeviceInfo.pid"}  # numbers, and drivers' pids
    kinds = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Record)]
    for kind in kinds:
        for field in msgspec.structs.fields(kind):
            if field.name in named and f"{kind.__name__}.{field.name}" not in own and field.type is not LogRecord:
                assert field.name in FIELDS[kind], f"{kind.__name__}.{field.name}"


# --- migration, seeds -----------------------------------------------------------------------------------------------


def test_a_move_and_a_fork_need_the_log_too() -> None:
    more = {touches.field: touches.more for touches in TABLE[28].touches}
    assert [(one.field, one.needs) for one in more["pid"]] == [("device", Needs.READ)]
    assert TABLE[28].record is Setsched
    assert TABLE[21].touches[0].needs is Needs.READ
    assert TABLE[63].touches[0].needs is Needs.READ


def test_seeds_do_not_tell_how_many_processes_others_have_and_outlive_the_kernel() -> None:
    seeds = []
    for crowd in (0, 5):
        sim = simulate(256)
        for _ in range(crowd):
            sim.program(uid=BEN).call(Spawn("sim", [1]))
        ann = sim.program(uid=ANN, chance=7)
        pids = [ann.call(Spawn("sim", [1], detached=True)) for _ in range(2)]
        before = [ann.call(Getinfo(pid)).seed for pid in pids]
        sim.kill()
        sim.boot_again()
        ann.come_back()
        assert [ann.call(Getinfo(pid)).seed for pid in pids] == before
        assert len(set(before)) == 2
        seeds.append((pids, before))
    assert seeds[0] == seeds[1]
    assert seconds(1) > 0


@pytest.mark.parametrize("end", ["kill", "group", "shred"])
def test_a_program_of_the_operator_in_a_reason_is_not_taken_for_one_of_the_readers(end: str) -> None:
    sim = simulate(256)
    operator, ann = sim.program("op"), sim.program(uid=ANN)
    number = ann.call(Spawn("sim", [1], detached=True))
    calls: dict[str, Call[Any]] = {
        "kill": Kill(pid_of(ANN, number)),
        "group": GroupKill("/users/1001"),
        "shred": Shred(pid_of(ANN, number)),
    }
    operator.call(Trace())
    ann.call(Trace())
    operator.call(calls[end])
    told = [event.detail for event in ann.call(Trace(start=0)).events if event.what in ("sig.term", "proc.exit")]
    assert told
    assert all(text.endswith(f" 0:{operator.pid}") for text in told), told
    told = [event.detail for event in operator.call(Trace(start=0)).events if event.what in ("sig.term", "proc.exit")]
    assert all(text.endswith(f" {operator.pid}") for text in told), told
    assert ann.call(Wait(number)).reason.endswith(f" program 0:{operator.pid}")


def test_killing_a_group_spares_what_others_have_in_it() -> None:
    sim = simulate(256)
    operator, ann = sim.program(), sim.program(uid=ANN)
    ann.call(GroupCreate("/users/1001/team"))
    theirs = operator.call(Spawn("sim", [1], group="/users/1001/team"))
    mine = ann.call(Spawn("sim", [1], group="/users/1001/team"))
    assert ann.call(GroupKill("/users/1001/team", Signal.STOP)) == 1
    assert operator.call(Getinfo(theirs)).state is not State.STOPPED
    assert ann.call(Getinfo(mine)).state is State.STOPPED
    assert ann.call(GroupStat("/users/1001/team"))[0].processes == [mine]
    assert isinstance(ann.call(Pagein("sim")).mapped_by, list)
    assert ann.call(Attach()).pid == ann.pid


def test_a_group_elsewhere_that_is_called_as_a_user_is_there_for_nobody_else() -> None:
    sim = simulate(256)
    operator, ann = sim.program(), sim.program(uid=ANN)
    operator.call(GroupCreate(f"/{ANN}"))
    with pytest.raises(SyscallError) as hidden:
        ann.call(GroupStat(f"/{ANN}"))
    with pytest.raises(SyscallError) as never:
        ann.call(GroupStat("/never"))
    assert (hidden.value.errno, hidden.value.reason) == (Errno.ENOENT, never.value.reason.replace("never", str(ANN)))
