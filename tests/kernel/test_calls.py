"""The system calls as programs see them: life and death of processes, programs, rights, signals, reading, cancelling."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel import dispatch
from llmasos.kernel.calls.info import row
from llmasos.kernel.events import HaltRequest, Rejected
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.simulator import Future, simulate
from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import (
    ExitInfo,
    Finish,
    Kind,
    Limits,
    Right,
    Sampler,
    SchedClass,
    Signal,
    State,
    Usage,
    WaitFor,
)
from llmasos.syscalls.table import (
    Attach,
    BootInfoCall,
    Decode,
    Dmesg,
    Evict,
    Exec,
    Exit,
    Feed,
    Fork,
    Getinfo,
    Kill,
    Models,
    Null,
    Pagein,
    Ps,
    Read,
    Setsched,
    Shutdown,
    Spawn,
    StatsCall,
    Trace,
    Truncate,
    Wait,
)
from tests.kernel.neighbours import refused

PROMPT = list(range(40))


# --- programs and rights --------------------------------------------------------------------------------------------


def test_the_first_call_must_be_attach() -> None:
    sim = simulate()
    stranger = sim.connection()
    assert refused(stranger, Null())[0] is Errno.EPERM
    assert stranger.call(Attach("late")).pid > 0
    assert stranger.call(Null()) is None


def test_a_right_given_up_is_gone_for_good() -> None:
    sim = simulate()
    program = sim.program(rights=Right.QUERY | Right.SPAWN)
    pid = program.call(Spawn("sim", tokens=[1]))
    errno, reason = refused(program, Kill(pid))
    assert errno is Errno.EPERM
    assert "CONTROL" in reason
    assert refused(program, Shutdown())[0] is Errno.EPERM
    again = program.call(Attach("x", int(Right.ALL)))
    assert again.pid == program.pid
    assert refused(program, Kill(pid))[0] is Errno.EPERM


def test_children_end_with_their_program_unless_detached() -> None:
    sim = simulate()
    parent, other = sim.program(), sim.program()
    child = parent.call(Spawn("sim", tokens=PROMPT))
    free = parent.call(Spawn("sim", tokens=PROMPT, detached=True))
    for pid in (child, free):
        parent.start(Decode(pid, 30))
    sim.run_for(0.003)
    parent.disconnect()
    sim.run_idle()
    assert refused(other, Getinfo(child))[0] is Errno.ESRCH
    info = other.call(Getinfo(free))
    assert (info.ppid, info.finish) == (1, Finish.INTERRUPT)
    assert other.call(Decode(free, 3)).finish is Finish.LENGTH
    other.call(Kill(free))
    assert other.call(Getinfo(free)).state is State.ZOMBIE
    assert other.call(Wait(free)).pid == free
    assert refused(other, Getinfo(free))[0] is Errno.ESRCH


def test_tokens_that_are_cut_before_anything_was_decoded_from_them_do_not_count_as_fed() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, limits=Limits(tokens=6)))
    program.call(Decode(pid, 5))

    def fed() -> tuple[int, int]:
        sim.run_idle()
        return program.call(Getinfo(pid)).usage.fed, program.call(StatsCall()).tokens_fed

    before = fed()
    for lengths in ([7], [3, 4]):
        start = program.call(Getinfo(pid)).length
        for count in lengths:
            program.call(Feed(pid, [1] * count))
        assert fed() != before
        program.call(Truncate(pid, start))
        assert fed() == before
    program.call(Feed(pid, [1, 2, 3]))
    program.call(Decode(pid, 1))
    program.call(Truncate(pid, 4))
    assert fed() == (before[0] + 3, before[1] + 3), "these were used"


def test_a_program_may_exit_by_itself() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    program.call(Spawn("sim", tokens=[1]))
    assert program.call(Exit(0, 3)) is None
    assert {r.kind for r in other.call(Ps())} == {Kind.INIT, Kind.DRIVER, Kind.PROGRAM}
    assert refused(program, Null())[0] is Errno.EPERM


def test_too_many_waiting_calls_and_a_sequence_number_in_use_are_refused() -> None:
    sim = simulate(checked=False)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    waiting = [program.start(Read(pid, 1, follow=True)) for _ in range(limits.MAX_PARKED_CALLS)]
    assert refused(program, Read(pid, 1, follow=True))[0] is Errno.EAGAIN
    program.disconnect()
    assert not any(f.done for f in waiting)


# --- spawn, wait, exit ----------------------------------------------------------------------------------------------


def test_wait_collects_the_status_once() -> None:
    sim = simulate()
    program = sim.program()
    a, b = (program.call(Spawn("sim", tokens=[i])) for i in (1, 2))
    waiting = program.start(Wait(b))
    assert refused(program, Wait(a, timeout=0.1))[0] is Errno.ETIME
    program.call(Exit(b, 42))
    assert (waiting.value.pid, waiting.value.status) == (b, 42)
    program.call(Kill(a, Signal.TERM))
    assert program.call(Getinfo(a)).state is State.ZOMBIE
    assert program.call(Wait()).status == 128 + Signal.TERM
    assert refused(program, Wait())[0] is Errno.ECHILD
    assert refused(program, Wait(a))[0] is Errno.ECHILD


def test_of_two_who_wait_for_one_child_the_second_is_told_there_is_none() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    waits = [program.start(Wait(pid)), program.start(Wait(pid)), program.start(Wait())]
    assert program.call(Getinfo(program.pid)).wait is WaitFor.CHILD
    program.call(Kill(pid))
    assert [wait.errno for wait in waits] == [Errno.OK, Errno.ECHILD, Errno.ECHILD]
    assert program.call(Getinfo(program.pid)).wait is WaitFor.INPUT


def test_the_end_of_a_child_disturbs_only_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    handlers: dict[Any, Any] = dispatch._HANDLERS
    wait = handlers[Wait]

    def counted(system: System, request: Request, call: Wait, process: object) -> object:
        tried.append(call.pid)
        return wait(system, request, call, process)

    monkeypatch.setitem(handlers, Wait, counted)
    sim = simulate()
    program, other = sim.program(), sim.program()
    first = program.call(Spawn("sim", tokens=[1]))
    second, third = program.call(Fork(first, 2))
    waits = {pid: program.start(Wait(pid)) for pid in (first, second, third, 0)}
    tried.clear()
    other.call(Kill(second, Signal.KILL))
    assert tried == [second, 0]
    assert [pid for pid, future in waits.items() if future.done] == [second]
    other.call(Kill(first, Signal.KILL))
    other.call(Kill(third, Signal.KILL))
    assert {future.errno for future in waits.values()} == {Errno.OK, Errno.ECHILD}


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_spawn_that_fails_answers_whoever_waits_on_its_process(cancelled: bool) -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    spawn = program.start(Spawn("sim", tokens=[limits.MAX_TOKEN]))
    pid = max(row.pid for row in other.call(Ps()))
    reader, waiter = other.start(Read(pid, 1, follow=True)), program.start(Wait())
    if cancelled:
        spawn.cancel()
    sim.run_until(lambda: spawn.done)
    assert spawn.errno is (Errno.EINTR if cancelled else Errno.EINVAL)
    assert reader.errno is Errno.ESRCH
    assert waiter.errno is Errno.ECHILD


def test_a_full_process_table_refuses_programs_and_forks_whole() -> None:
    sim = simulate(max_processes=6)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    assert refused(program, Fork(pid, 3))[0] is Errno.EAGAIN
    assert len(program.call(Ps())) == 4
    assert len(program.call(Fork(pid, 2))) == 2
    stranger = sim.connection().start(Attach("late"))  # the kernel goes on
    assert stranger.errno is Errno.EAGAIN
    program.call(Kill(pid))
    program.call(Wait(pid))
    assert sim.program().pid > pid


def test_a_process_spawned_once_ends_with_its_first_decode() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, once=True))
    tokens = program.call(Decode(pid, 5)).tokens
    assert program.call(Read(pid, 40)).tokens == tokens
    assert program.call(Wait(pid)).status == 0


def test_a_pid_that_never_was_and_one_that_is_something_else_are_told_apart() -> None:
    sim = simulate()
    program = sim.program()
    errno, reason = refused(program, Feed(999, [1]))
    assert errno is Errno.ESRCH
    assert "has exited, or never was" in reason
    errno, reason = refused(program, Feed(program.pid, [1]))
    assert errno is Errno.EINVAL
    assert "program" in reason
    assert refused(program, Kill(1))[0] is Errno.EPERM


def test_arguments_are_checked_against_the_model() -> None:
    sim = simulate()
    program = sim.program()
    assert refused(program, Spawn("sim", tokens=[1000]))[0] is Errno.EINVAL
    pid = program.call(Spawn("sim", tokens=[1]))
    assert refused(program, Feed(pid, [2, 1000]))[0] is Errno.EINVAL
    assert refused(program, Truncate(pid, 2))[0] is Errno.EINVAL
    assert refused(program, Decode(program.call(Spawn("sim")), 1))[0] is Errno.EINVAL
    assert refused(program, Spawn("sim", dtype="fp8"))[0] is Errno.ENOTSUP
    assert refused(program, Spawn("sim", device="tpu"))[0] is Errno.ENODEV


def test_killing_a_process_that_waits_for_its_model_answers_its_spawn() -> None:
    sim = simulate(options={"link": "100000"})
    program, other = sim.program(), sim.program()
    future = program.start(Spawn("sim", tokens=[1]))
    sim.run_for(1.0)
    pid = next(r.pid for r in other.call(Ps()) if r.kind is Kind.LLM)
    assert other.call(Getinfo(pid)).wait is WaitFor.WEIGHTS
    for call in (Feed(pid, [1]), Decode(pid, 1), Fork(pid), Truncate(pid, 0), Exec(pid, "sim")):
        assert refused(other, call)[0] is Errno.EBUSY
    other.call(Kill(pid))
    sim.run_until(lambda: future.done)
    assert future.errno is Errno.EINTR


# --- decode, signals, cancelling ------------------------------------------------------------------------------------


def test_interrupts_keep_what_was_decoded_and_the_process() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 400))
    sim.run_for(0.02)
    program.call(Kill(pid, Signal.INT))
    sim.run_until(lambda: future.done)
    assert future.value.finish is Finish.INTERRUPT
    got = future.value.tokens
    assert 10 < len(got) < 30
    more = program.call(Decode(pid, 10)).tokens
    assert got + more == sim.continuation(PROMPT, len(got) + 10, sim.kernel.table.llm(pid).traits.sampler)


def test_a_cancelled_decode_is_answered_at_once_and_ends() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 400))
    sim.run_for(0.0105)
    future.cancel()
    assert future.errno is Errno.EINTR
    sim.run_idle()
    info = program.call(Getinfo(pid))
    assert (info.decoding, info.finish) == (False, Finish.INTERRUPT)
    assert info.length < 60


def test_a_deadline_ends_a_decode_with_what_it_has() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    result = program.call(Decode(pid, 400, deadline=0.05))
    assert result.finish is Finish.DEADLINE
    assert 40 <= len(result.tokens) <= 51


def test_a_stop_token_ends_a_decode_and_stays_in_the_log() -> None:
    sim = simulate(options={"eos_every": "10"})
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    eos = program.call(Models())[0].eos_ids
    result = program.call(Decode(pid, 400, stop_ids=eos))
    assert result.finish is Finish.STOP
    assert result.tokens[-1:] == eos
    assert result.tokens.count(eos[0]) == 1
    assert program.call(Read(pid, -1)).length == 40 + len(result.tokens)


def test_no_tokens_asked_for_reports_the_next_ones_probabilities_and_appends_nothing() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=Sampler(temperature=2.0)))
    result = program.call(Decode(pid, 0, logprobs=5))
    assert (result.tokens, len(result.logprobs)) == ([], 1)
    assert result.logprobs[0].token == sim.continuation(PROMPT, 1)[0]
    assert len(result.logprobs[0].top_ids) == 5
    assert program.call(Getinfo(pid)).length == 40
    again = program.call(Decode(pid, 4, logprobs=2))
    assert [entry.token for entry in again.logprobs] == again.tokens


def test_a_stopped_process_holds_still_and_continues_where_it_was() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    future = program.start(Decode(pid, 50))
    sim.run_for(0.01)
    program.call(Kill(pid, Signal.STOP))
    sim.run_idle()
    length = program.call(Getinfo(pid)).length
    sim.run_for(10.0)
    info = program.call(Getinfo(pid))
    assert (info.state, info.length) == (State.STOPPED, length)
    program.call(Kill(pid, Signal.CONT))
    sim.run_until(lambda: future.done)
    assert future.value.tokens == sim.continuation(PROMPT, 50, sim.kernel.table.llm(pid).traits.sampler)


def test_a_killed_process_answers_everybody_who_waits_on_it() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    futures: list[Any] = [program.start(Decode(pid, 400))]
    sim.run_for(0.0105)
    futures += [program.start(call) for call in (Read(pid, 300), Fork(pid), Wait(pid))]
    program.call(Kill(pid, Signal.KILL))
    sim.run_idle()
    assert futures[0].value.finish is Finish.KILLED
    assert futures[1].done
    assert futures[2].errno in (Errno.ESRCH, Errno.OK)
    assert futures[3].value.status == 128 + Signal.KILL


def test_a_feed_does_not_overtake_a_truncate() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    assert sim.kernel.table.llm(pid).running
    cut, fed = program.start(Truncate(pid, 10)), program.start(Feed(pid, [7, 8]))
    sim.run_idle()
    assert (cut.value, fed.value) == (10, 12)
    assert program.call(Read(pid, 0)).tokens == [*PROMPT[:10], 7, 8]


def test_what_a_decoding_process_refuses() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    program.call(Decode(pid, 400, wait=False))
    for call in (Feed(pid, [1]), Truncate(pid, 3), Decode(pid, 1), Exec(pid, "sim")):
        assert refused(program, call)[0] is Errno.EBUSY


# --- read -----------------------------------------------------------------------------------------------------------


def test_a_reader_streams_every_token_in_order_and_can_begin_again() -> None:
    sim = simulate()
    program, reader = sim.program(), sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    program.call(Decode(pid, 30, wait=False))
    got: list[int] = []
    while True:
        part = reader.call(Read(pid, 40 + len(got), limit=4))
        got += part.tokens
        if not part.decoding and not part.tokens:
            break
    assert got == sim.continuation(PROMPT, 30, sim.kernel.table.llm(pid).traits.sampler)
    assert part.finish is Finish.LENGTH
    assert reader.call(Read(pid, 0)).tokens == PROMPT + got


def test_a_reader_waits_up_to_its_timeout_and_follows_only_if_asked() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    assert program.call(Read(pid, 40)).tokens == []
    begun = sim.now
    assert refused(program, Read(pid, 40, timeout=2.0, follow=True))[0] is Errno.ETIME
    assert sim.now - begun == pytest.approx(2.0)
    following = program.start(Read(pid, 40, follow=True))
    program.call(Feed(pid, [7, 8]))
    assert following.value.tokens == [7, 8]


# --- fork and exec --------------------------------------------------------------------------------------------------


def test_a_fork_shares_pages_until_somebody_writes() -> None:
    sim = simulate()
    program = sim.program()
    hot = Sampler(temperature=1.0, seed=5)
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=hot))
    sim.run_idle()
    free = program.call(Models())[0].frames_free
    twin, other = program.call(Fork(pid, same_seed=True))[0], program.call(Fork(pid))[0]
    assert program.call(Models())[0].frames_free == free
    assert program.call(Getinfo(twin)).shared_pages == 3
    tokens = [program.call(Decode(p, 8)).tokens for p in (pid, twin, other)]
    assert tokens[0] == tokens[1] == sim.continuation(PROMPT, 8, hot)
    assert tokens[2] != tokens[0]
    assert program.call(Getinfo(twin)).shared_pages == 2
    assert program.call(Models())[0].frames_free == free - 2


def test_a_child_of_a_decoding_parent_goes_on_decoding() -> None:
    sim = simulate()
    program = sim.program()
    hot = Sampler(temperature=1.0, seed=5)
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=hot))
    future = program.start(Decode(pid, 40))
    sim.run_for(0.0105)
    child = program.call(Fork(pid, same_seed=True))[0]
    assert program.call(Getinfo(child)).decoding
    sim.run_idle()
    assert program.call(Read(child, 40)).tokens == future.value.tokens == sim.continuation(PROMPT, 40, hot)


def test_exec_keeps_pid_and_tokens_where_the_vocabulary_is_the_same() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, nice=3))
    program.call(Exec(pid, "sim:2m"))
    info = program.call(Getinfo(pid))
    assert (info.model, info.length, info.nice) == ("sim:2m", 40, 3)
    got = program.call(Decode(pid, 5)).tokens
    assert got == sim.continuation(PROMPT, 5, sim.kernel.table.llm(pid).traits.sampler, name="sim:2m")
    assert refused(program, Exec(pid, "sim:vocab=77"))[0] is Errno.EINVAL
    program.call(Exec(pid, "sim:vocab=77", tokens=[1, 2]))
    assert program.call(Getinfo(pid)).length == 2
    program.call(Evict("sim"))
    assert refused(program, Evict("sim:vocab=77"))[0] is Errno.EBUSY
    assert refused(program, Evict("sim"))[0] is Errno.ENOENT


# --- the system -----------------------------------------------------------------------------------------------------


def test_models_are_paged_in_named_and_evicted_when_others_need_the_room() -> None:
    sim = simulate(options={"memory": "5m"})
    program = sim.program()
    assert [m.state for m in program.call(Models())] == ["absent"]
    assert program.call(Pagein("tiny")).state == "resident"  # 2 MB of weights
    program.call(Pagein("sim:1.1m"))
    pid = program.call(Spawn("sim:1.2m", tokens=[1]))  # the third does not fit beside them: the oldest goes
    assert {m.name for m in program.call(Models()) if m.state == "resident"} == {"sim:1.1m", "sim:1.2m"}
    assert len(program.call(Decode(pid, 3)).tokens) == 3
    assert refused(program, Pagein("sim:3m"))[0] is Errno.ENOMEM
    left = {m.name for m in program.call(Models()) if m.state == "resident"}
    assert left == {"sim:1.1m", "sim:1.2m"}  # what would not have made room enough stays


def test_asking_for_a_model_twice_loads_it_once() -> None:
    sim = simulate()
    program = sim.program()
    futures = [program.start(Spawn("sim", tokens=[i])) for i in range(3)]
    futures.append(program.start(Spawn("sim", tokens=[1], dtype="bf16")))
    sim.run_until(lambda: all(f.done for f in futures))
    assert len(program.call(Models())) == 1
    assert program.call(Models())[0].processes == 4


def test_the_trace_tells_who_what_when_and_how_much() -> None:
    sim = simulate()
    program, watcher = sim.program(), sim.program()
    watching = watcher.start(Trace(-1, timeout=5.0))
    pid = program.call(Spawn("sim", tokens=PROMPT))
    program.call(Decode(pid, 3))
    program.call(Setsched(pid, 1, SchedClass.BATCH))
    program.call(Kill(pid))
    events = [*watching.value.events]
    position = watching.value.next
    while (part := watcher.call(Trace(position))).events:
        if all(e.what == "call.trace" for e in part.events):
            break
        events += part.events
        position = part.next
    kinds = {e.what for e in events}
    wanted = {"call.spawn", "proc.spawn", "sched.step", "sched.done", "proc.decoded", "sig.term", "proc.exit"}
    assert wanted <= kinds
    assert [e.seq for e in events] == sorted(e.seq for e in events)
    assert refused(watcher, Wait(timeout=0.0))[0] is Errno.ECHILD
    quiet = watcher.call(Trace(-1, timeout=0.5))
    assert quiet.lost == 0


def test_stats_boot_info_and_dmesg_agree_with_what_was_done() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    program.call(Decode(pid, 7))
    sim.event(Rejected(program.peer, Errno.EINVAL))
    stats = program.call(StatsCall())
    assert (stats.tokens_fed, stats.tokens_decoded, stats.spawned) == (40, 7, 1)
    assert stats.tokens_computed == 46
    assert stats.rejected_frames == 1
    info = program.call(BootInfoCall())
    assert info.default_device == "sim0"
    assert info.devices[0].tokens_decoded == 7
    first = program.call(Dmesg())
    assert first[0].text.endswith("boots")
    assert program.call(Dmesg(after=first[-1].seq)) == []


def test_halting_answers_whoever_waits() -> None:
    for how in ("call", "signal"):
        sim = simulate()
        program, other = sim.program(), sim.program()
        pid = program.call(Spawn("sim", tokens=PROMPT))
        futures: list[Future[Any]] = [
            program.start(Decode(pid, 400)),
            program.start(Read(pid, 300)),
            program.start(Wait(pid)),
        ]
        sim.run_for(0.0105)
        if how == "call":
            assert other.start(Shutdown()).errno is Errno.OK
        else:
            sim.event(HaltRequest("SIGTERM"))
        assert sim.halted
        assert all(f.done for f in futures)


def test_the_trace_tells_calls_and_their_outcomes() -> None:
    sim = simulate()
    program = sim.program()
    start = program.call(Trace()).next
    pid = program.call(Spawn("sim", tokens=[1]))
    with pytest.raises(SyscallError):
        program.call(Getinfo(pid + 1))
    told = {event.what: event.detail for event in program.call(Trace(start=start)).events}
    assert told["call.spawn"] == "spawn(model='sim', tokens=[1])"
    assert told["ret.spawn"] == str(pid)
    assert told["ret.getinfo"].startswith("-ESRCH (no process")


def test_a_row_has_what_is_told_then_what_its_first_source_with_such_a_name_has() -> None:
    class Ended:
        pid, status = 7, 1

    class Told:
        pid, reason = 8, "its decode ended"

    assert row(ExitInfo, Ended(), Told(), usage=Usage()) == ExitInfo(7, 1, "its decode ended", Usage())
    assert row(ExitInfo, Ended(), Told(), status=2, usage=Usage(fed=3)).status == 2
    with pytest.raises(TypeError, match="reason"):
        row(ExitInfo, Ended(), usage=Usage())
