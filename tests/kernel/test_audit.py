"""What is audited, in which words, and what happens where a line cannot be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest
from msgspec import structs

from llmasos.drivers.protocol import Load, Measured, RunResult, Step, StepDone
from llmasos.drivers.sim.device import SimDevice
from llmasos.kernel import audit
from llmasos.kernel.events import (
    Append,
    Audit,
    AuditLine,
    FromDevice,
    Halt,
    HaltRequest,
    Log,
    Rejected,
    Reply,
    Syscall,
    WakeAt,
)
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupSettings, Limits, Right, Sampler, Signal
from llmasos.syscalls.table import (
    TABLE,
    Attach,
    Call,
    Checkpoint,
    Decode,
    Evict,
    Feed,
    Getinfo,
    GroupSet,
    Inventory,
    Kill,
    Null,
    Read,
    Rename,
    Setlimits,
    Spawn,
)

PROMPT = [701, 702, 703, 704]


def audited(required: Sequence[str] = (), **config: Any) -> Simulation:
    return simulate(audit="/var/lib/audit", audit_required=list(required), **config)


def refused(program: Prog, call: Call[Any]) -> None:
    with pytest.raises(SyscallError):
        program.call(call)


def told(sim: Simulation, since: int = 0) -> list[tuple[str, str]]:
    return [(line.what, line.result) for line in sim.audited[since:]]


def test_pids_are_told_as_the_operator_writes_them_whoever_names_them() -> None:
    sim = audited()
    ann, since = sim.program(uid=1001), len(sim.audited)
    for pid in (7, pids.MOST, pids.pid_of(1002, 3), 1):
        refused(ann, Kill(pid))
    assert [line.on for line in sim.audited[since:]] == [
        {"pid": shown} for shown in ("1001:7", f"1001:{pids.MOST}", "1002:3", 1)
    ]


def test_changes_are_told_and_reads_feeds_and_decodes_are_not() -> None:
    sim = audited()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT, name="alice"))
    since = len(sim.audited)
    for call in (Feed(pid, [1]), Decode(pid, 2), Read(pid), Getinfo(pid), Null()):
        program.call(cast(Call[Any], call))
    assert told(sim, since) == []
    program.call(Setlimits(pid, Limits(tokens=100)))
    program.call(Kill(pid, Signal.TERM))
    assert told(sim, since) == [("setlimits", "OK"), ("kill", "OK"), ("ended", "")]
    limits, kill, ended = sim.audited[since:]
    assert limits.on == kill.on == ended.on == {"pid": pid}
    assert limits.details == {"limits": {"tokens": 100}}
    assert (kill.of, kill.pid, kill.os_pid) == ("processes", program.pid, 1000 + program.peer)
    assert ended.details == {"status": 143}


def test_a_call_that_waits_has_a_line_when_it_begins_and_one_when_it_ends() -> None:
    sim = audited()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    since = len(sim.audited)
    program.call(Checkpoint(pid, "/tmp/alice.image", key=b"open sesame"))
    assert told(sim, since) == [("checkpoint", "begun"), ("checkpoint", "OK")]
    assert sim.audited[since].on == {"pid": pid, "path": "/tmp/alice.image"}


def test_a_line_comes_before_all_that_the_kernel_does_outside() -> None:
    sim = audited()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    kill = program.prepare(Kill(pid))
    actions = sim.kernel.handle(program.event(kill), sim.clock)
    kinds = [type(action) for action in actions]
    lines = kinds.count(Audit)
    assert lines
    assert set(kinds[:lines]) == {Audit}
    assert {Append, Reply} <= set(kinds[lines:])


def test_lines_have_no_contents() -> None:
    sim = audited()
    program = sim.program(name="canary-name")
    secrets = Spawn("sim", PROMPT, name="canary-name", sampler=Sampler(seed=987654321), records=[b"canary-record"])
    pid = program.call(secrets)
    program.call(Rename(pid, "canary-name"))
    program.call(Checkpoint(pid, "/tmp/x", key=b"canary-key"))
    with pytest.raises(SyscallError):
        program.call(Attach(ticket=b"canary-ticket"))
    text = msgspec.json.encode([msgspec.structs.asdict(line) for line in sim.audited]).decode()
    for secret in ("canary", "701", "987654321"):
        assert secret not in text


def test_a_refusal_is_told_with_its_reason_whatever_the_call() -> None:
    sim = audited()
    program = sim.program(rights=Right.QUERY)
    since = len(sim.audited)
    for call in (Spawn("sim", PROMPT), Feed(1, [1])):
        with pytest.raises(SyscallError) as refused:
            program.call(call)
        line = sim.audited[-1]
        assert (line.result, line.reason) == ("EPERM", refused.value.reason)
    assert [line.of for line in sim.audited[since:]] == ["processes", "refusals"]


def test_a_call_that_changed_nothing_because_it_failed_has_no_line() -> None:
    sim = audited()
    program = sim.program()
    since = len(sim.audited)
    with pytest.raises(SyscallError, match="no process"):
        program.call(Kill(99))
    assert told(sim, since) == []


def test_what_another_owner_does_not_see_is_a_refusal_whether_it_is_there_or_not() -> None:
    sim = audited()
    theirs = sim.program(uid=1001)
    pid = sim.program().call(Spawn("sim", PROMPT))
    since = len(sim.audited)
    for one in (pid, 4_000):
        with pytest.raises(SyscallError, match="no process"):
            theirs.call(Kill(one))
    assert told(sim, since) == [("kill", "ESRCH")] * 2
    assert {line.who for line in sim.audited[since:]} == {"1001"}


def test_whoever_is_no_program_here_is_told_of_too() -> None:
    sim = audited()
    since = len(sim.audited)
    sim.kernel.secret = b"secret"
    for call in (Null(), Attach(ticket=bytes(40))):
        actions = sim.kernel.handle(Syscall(77, 1, call, os_pid=4321, uid=1002), sim.clock)
        lines = [action.line for action in actions if isinstance(action, Audit)]
        assert [(line.who, line.pid, line.os_pid, line.of) for line in lines] == [("1002", 0, 4321, "refusals")]
    assert told(sim, since) == []  # those were not the simulation's


@pytest.mark.parametrize(("uid", "errno"), [(pids.MOST_UID + 1, Errno.EPERM), (1001, Errno.EAGAIN)])
def test_who_may_not_attach_is_told_of_and_who_finds_no_place_is_not(uid: int, errno: Errno) -> None:
    sim = simulate(audit="/var/lib/audit", max_processes=4)
    while len(sim.kernel.table) < 4:
        sim.program()
    actions = sim.kernel.handle(Syscall(77, 1, Attach(), os_pid=4321, uid=uid), sim.clock)
    assert [action.errno for action in actions if isinstance(action, Reply)] == [errno]
    assert any(isinstance(action, Audit) for action in actions) == (errno is Errno.EPERM)


def test_whom_the_edge_refuses_is_told_and_what_has_no_form_is_not() -> None:
    sim = audited()
    since = len(sim.audited)
    sim.event(Rejected(0, Errno.EPERM, "an unmapped user id"))
    sim.event(Rejected(0, Errno.EPROTO))
    assert [(line.what, line.reason) for line in sim.audited[since:]] == [("connect", "an unmapped user id")]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Few lines that an owner may have at once in a class."""
    monkeypatch.setattr(audit, "MOST_LINES", 6)
    return 6


def by(sim: Simulation, who: str, since: int = 0) -> list[str]:
    """What an owner has lines for; that a call has begun to wait is not another."""
    return [line.what for line in sim.audited[since:] if line.who == who and line.result != "begun"]


def test_very_many_calls_of_one_user_are_counted_and_hide_nothing_that_others_do_or_he_does_otherwise(few: int) -> None:
    sim = audited()
    ann, bob = sim.program(uid=1001), sim.program(uid=1002)
    since = len(sim.audited)
    for _ in range(10):
        ann.call(Kill(ann.call(Spawn("sim", PROMPT)), Signal.TERM))
    assert len(by(sim, "1001", since)) == few
    bob.call(Spawn("sim", PROMPT))
    sim.program(uid=1001)
    refused(ann, Kill(9999))
    assert by(sim, "1002", since) == ["spawn"]
    assert by(sim, "1001", since)[few:] == ["attach", "kill"]
    listed = Counter(by(sim, "1001", since)[:few])
    sim.run_for(audit.COUNT_TIME / 10**9)
    (counted,) = (line for line in sim.audited[since:] if line.what == "counted")
    assert (counted.who, counted.of) == ("1001", "counted")
    assert {what: listed[what] + counted.details.get(what, 0) for what in ("spawn", "kill", "ended")} == {
        "spawn": 10, "kill": 10, "ended": 10,
    }  # fmt: skip


def test_who_was_counted_has_lines_again_as_time_goes_on(few: int) -> None:
    sim = audited()
    ann = sim.program(uid=1001)
    for _ in range(few + 3):
        ann.call(Spawn("sim", PROMPT))
    sim.run_for(4 * few * audit.LINE_TIME / 10**9)
    since = len(sim.audited)
    for _ in range(few + 3):
        ann.call(Spawn("sim", PROMPT))
    assert len(by(sim, "1001", since)) == few


def test_the_tenants_of_a_user_have_his_lines_together_and_an_operator_has_all(few: int) -> None:
    sim = audited(operators=[1005])
    since = len(sim.audited)
    for number in range(4):
        tenant = sim.connection(uid=1001)
        tenant.call(Attach(f"t{number}", tenant=f"t{number}"))
        for _ in range(few):
            tenant.call(Spawn("sim", PROMPT))
    users = [line for line in sim.audited[since:] if line.who.startswith("1001") and line.result != "begun"]
    assert Counter(line.of for line in users) == {"sessions": 4, "processes": few}
    for operator in (sim.program(), sim.program(uid=1005)):
        since = len(sim.audited)
        for _ in range(3 * few):
            operator.call(Spawn("sim", PROMPT))
        assert len(by(sim, sim.audited[since].who, since)) == 3 * few


def test_a_class_that_is_required_has_each_of_its_lines(few: int) -> None:
    sim = audited(["processes"])
    ann = sim.program(uid=1001)
    since = len(sim.audited)
    for _ in range(3 * few):
        ann.call(Spawn("sim", PROMPT))
    assert len([line for line in sim.audited[since:] if line.result == "OK"]) == 3 * few


def test_what_was_counted_is_told_when_the_kernel_halts(few: int) -> None:
    sim = audited()
    ann = sim.program(uid=1001)
    for _ in range(few + 2):
        ann.call(Spawn("sim", PROMPT))
    for _ in range(12):
        refused(ann, Kill(9999))
    sim.event(HaltRequest("enough", keep=True))
    assert [(line.what, line.details) for line in sim.audited[-3:]] == [
        ("counted", {"spawn": 2}), ("refusals", {"count": 2}), ("halt", {"keep": True}),
    ]  # fmt: skip


def test_refusals_beyond_ten_in_a_second_are_counted() -> None:
    sim = audited()
    bold, other = sim.program(rights=Right.QUERY), sim.program(uid=1001, rights=Right.QUERY)
    since = len(sim.audited)
    for _ in range(25):
        bold.start(Spawn("sim", PROMPT))
    other.start(Spawn("sim", PROMPT))
    assert [line.who for line in sim.audited[since:]] == [sim.kernel.owners.operator.name] * 10 + ["1001"]
    sim.run_for(1.5)
    assert [(line.what, line.details) for line in sim.audited[since + 11 :]] == [("refusals", {"count": 15})]
    bold.start(Spawn("sim", PROMPT))
    assert sim.audited[-1].result == "EPERM"


# --- classes that are required ------------------------------------------------------------------------------------------


def test_a_required_call_waits_for_its_line_and_only_then_does_anything() -> None:
    sim = audited(["processes"])
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    kill = program.prepare(Kill(pid))
    actions = sim.kernel.handle(program.event(kill), sim.clock)
    assert [type(action) for action in actions] == [Audit]
    assert actions[0].line.result == "asked"  # type: ignore[attr-defined]
    assert not sim.kernel.table.llm(pid).is_zombie()
    sim._act(actions)
    sim.run_until(lambda: kill.done)
    assert kill.errno is Errno.OK
    sim.run_idle()
    assert {("kill", "asked"), ("kill", "OK"), ("ended", "")} <= set(told(sim)[-3:])


def test_a_required_call_fails_closed_and_others_go_on() -> None:
    sim = audited(["processes"])
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    sim.audit_trouble = "the disk is full"
    with pytest.raises(SyscallError, match="kill has to be audited and was not made: the disk is full") as failed:
        program.call(Kill(pid))
    assert failed.value.errno is Errno.EIO
    assert not sim.kernel.table.llm(pid).is_zombie()
    program.call(Setlimits(pid, Limits(tokens=9)))  # its class is not required
    program.call(Decode(pid, 1))
    sim.audit_trouble = ""
    program.call(Kill(pid))
    sim.run_idle()
    left = sim.kernel.table.find(pid)
    assert left is None or left.is_zombie()


def test_nobody_attaches_unseen_where_sessions_are_required() -> None:
    sim = audited(["sessions"])
    sim.program()
    sim.audit_trouble = "the disk is full"
    before = len(sim.kernel.programs)
    with pytest.raises(SyscallError, match="audited"):
        sim.program()
    assert len(sim.kernel.programs) == before


def test_a_program_whose_attach_is_not_written_yet_can_do_nothing() -> None:
    sim = audited(["sessions"])
    actions = sim.kernel.handle(Syscall(50, 1, Attach(name="early")), sim.clock)
    assert [type(action) for action in actions] == [Audit, Append]
    (reply,) = [a for a in sim.kernel.handle(Syscall(50, 2, Null()), sim.clock) if isinstance(a, Reply)]
    assert reply.errno is Errno.EAGAIN


def test_a_required_call_that_is_taken_back_is_told_to_its_end() -> None:
    sim = audited(["processes"])
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    since = len(sim.audited)
    kill = program.start(Kill(pid))  # its line is on its way
    kill.cancel()
    sim.run_idle()
    assert kill.errno is Errno.EINTR
    assert told(sim, since) == [("kill", "asked"), ("kill", "EINTR")]
    assert not sim.kernel.table.llm(pid).is_zombie()


# --- the whole --------------------------------------------------------------------------------------------------------


def test_every_call_that_changes_something_lasting_is_audited_but_those_of_contexts() -> None:
    silent = {e.name for e in TABLE.values() if e.changes and not e.audit}
    assert silent == {"feed", "decode", "truncate", "wait"}
    known = {"sessions", "processes", "rights", "limits", "models", "files", "system"}
    assert {e.audit for e in TABLE.values()} - {""} <= known


def test_without_an_audit_log_there_are_no_lines() -> None:
    sim = simulate()
    program = sim.program()
    program.call(Kill(program.call(Spawn("sim", PROMPT))))
    with pytest.raises(SyscallError):
        sim.program(rights=Right.QUERY).call(GroupSet("/x", GroupSettings()))
    assert sim.audited == []


def test_boot_models_and_halt_are_told() -> None:
    sim = audited()
    program = sim.program()
    program.call(Spawn("sim", PROMPT))
    sim.run_idle()
    actions = sim.kernel.handle(Syscall(program.peer, 999, TABLE[7].record()), sim.clock)
    assert any(isinstance(action, Halt) for action in actions)
    lines: list[AuditLine] = [*sim.audited, *(a.line for a in actions if isinstance(a, Audit))]
    assert {"boot", "attach", "spawn", "shutdown", "halt"} <= {line.what for line in lines}
    assert not [a for a in actions if isinstance(a, WakeAt | Log) and "audit" in str(a)]


def test_files_of_a_model_that_change_under_the_kernel_are_told_with_what_was_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sim = audited()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    sim.run_idle()
    fetch, step = SimDevice.fetch, SimDevice.step

    def told() -> list[dict[str, Any]]:
        return [{**line.on, **line.details} for line in sim.audited if (line.what, line.of) == ("changed", "models")]

    def tampered(device: SimDevice, request: Step) -> StepDone:
        results = [RunResult(run.ctx, error="its tables are not what was loaded") for run in request.runs]
        return structs.replace(step(device, request), results=results, changed=[run.image for run in request.runs])

    def anew(device: SimDevice, request: Load, report: Any) -> Any:
        bring_in = fetch(device, request, report)
        return lambda: structs.replace(bring_in(), changed=request.again)

    program.call(Decode(pid, 1))
    assert told() == []
    (device,) = sim.kernel.devices.values()
    (image,) = device.images.values()
    sim.event(FromDevice(device.name, device.incarnation, Measured(image.id, digest := "ab" * 32)))
    want = {"model": "sim", "device": device.name, "dtype": image.dtype, "digest": digest, "processes": 1}
    with monkeypatch.context() as patch:
        patch.setattr(SimDevice, "step", tampered)  # a page of them is not what it was
        for _ in range(2):
            refused(program, Decode(pid, 1))
        assert told() == [want]
    with monkeypatch.context() as patch:
        patch.setattr(SimDevice, "fetch", anew)  # they were written while the weights were out of memory
        program.call(Evict("sim", force=True))
        program.call(Decode(pid, 1))
    assert told() == [want] * 2


def test_the_inventory_waits_for_the_package_and_shows_others_no_paths() -> None:
    from llmasos.kernel.events import Measured

    sim = audited()
    operator, guest = sim.program(), sim.program(uid=1001)
    asked = operator.start(Inventory())
    assert not asked.done
    sim.event(Measured("ab" * 32, 400, "/opt/llmasos"))
    assert [(one.kind, one.digest, one.place) for one in asked.value] == [("package", "ab" * 32, "/opt/llmasos")]
    assert [one.place for one in guest.call(Inventory())] == [""]
    assert sim.audited[-1].what == "package"
