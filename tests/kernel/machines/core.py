"""The whole core as a hypothesis state machine: programs do what they like in any order, drivers die and hang.

After every event all invariants of the kernel are recounted and the device verifies its frames (simulator/).
After every rule the log of every process is compared with what it must be by the definition of the simulated model
alone: that is noninterference, whatever was preempted, chunked, shared, forked or lost meanwhile. In the end every call
has its one answer and no frame is lost.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Future, Prog, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import (
    DecodeResult,
    Finish,
    Kind,
    Limits,
    Sampler,
    SchedClass,
    Signal,
    State,
)
from llmasos.syscalls.table import (
    Decode,
    Detach,
    Estimate,
    Evict,
    Exec,
    Exit,
    Feed,
    Fork,
    Getinfo,
    Kill,
    Pagein,
    Ps,
    Read,
    Rename,
    Sched,
    Setlimits,
    Setsched,
    Spawn,
    StatsCall,
    Truncate,
    Wait,
)

MODELS = ["sim", "sim:2m,eos_every=6", "sim:1m,vocab=500", "sim:3m,fail_probe=1", "nowhere"]
VOCAB = 500
STOPS = list(range(0, VOCAB, 9))

prompts = st.lists(st.integers(0, 3), max_size=60) | st.builds(
    lambda n, tail: [7] * n + tail,
    st.sampled_from([15, 16, 31, 32, 33, 48]),
    st.lists(st.integers(0, VOCAB - 1), max_size=9),
)
blobs = st.lists(st.binary(max_size=4), max_size=2)
which = st.integers(0, 1 << 16)
samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.4]),
    seed=st.integers(0, 99),
)
process_limits = st.builds(
    Limits,
    context=st.sampled_from([0, 0, 40, 80]),
    tokens=st.sampled_from([0, 0, 12]),
    pages=st.sampled_from([0, 0, 3, 6]),
)


@dataclass
class Proc:
    """What must be true of one LLM process."""

    pid: int
    model: str
    log: list[int]
    sampler: Sampler
    owner: Prog
    detached: bool
    decode: Decode | None = None
    future: Future[DecodeResult] | None = None
    started: float = 0.0  # when the decode was asked for
    ended: bool = False  # told to exit, or may have
    interrupted: bool = False
    wanted: Sampler | None = None  # the sampler of a decode that may still wait for its token boundary
    once: bool = False
    records: list[tuple[int, bytes]] = field(default_factory=list)

    def note(self, blobs: list[bytes]) -> None:
        """Records come in at the end of the log."""
        self.records += [(len(self.log), blob) for blob in blobs]


@dataclass
class Spawning:
    future: Future[int]
    call: Spawn


@dataclass
class Reading:
    future: Future[Any]
    proc: Proc = field(repr=False)


class Core(RuleBasedStateMachine):
    options = {"context": "128"}
    config: dict[str, Any] = {}
    quantum = 8

    def __init__(self) -> None:
        super().__init__()
        self.sim = simulate(
            frames=12,
            options=self.options,
            max_runs=3,
            step_tokens=24,
            hang_seconds=5.0,
            start_seconds=5.0,
            quantum=self.quantum,
            aging_seconds=0.05,
            max_crashes=1_000_000,
            pagein_seconds=1e9,
            **self.config,
        )
        self.programs = [self.sim.program("first")]
        self.procs: dict[int, Proc] = {}
        self.spawning: list[Spawning] = []
        self.futures: list[Future[Any]] = []

    # --- choosing ---

    def prog(self, index: int) -> Prog:
        return self.programs[index % len(self.programs)]

    def proc(self, index: int) -> Proc:
        live = [p for p in self.procs.values() if not p.ended] or list(self.procs.values())
        return live[index % len(live)]

    def changing(self, proc: Proc) -> bool:
        """Whether an exec or a move is under way, beside which it cannot become REALTIME, or cease to be."""
        row = self.sim.kernel.table.find(proc.pid)
        return isinstance(row, LLMProcess) and row.transition is not None

    def try_call(self, program: Prog, call: Any) -> Any:
        """The result, or the errno."""
        try:
            return program.call(call)
        except SyscallError as error:
            return error.errno

    def busy(self, proc: Proc) -> bool:
        """Whether a decode may be under way, or asked for and waiting for its token boundary."""
        row = self.sim.kernel.table.find(proc.pid)
        decoding = isinstance(row, LLMProcess) and (row.decoding is not None or bool(row.pausing))
        return decoding or (proc.future is not None and not proc.future.done)

    # --- birth ---

    @initialize(prompts=st.lists(prompts, min_size=1, max_size=4))
    def begin(self, prompts: list[list[int]]) -> None:
        for tokens in prompts:
            call = Spawn("sim", tokens=[1, *tokens])
            self.spawning.append(Spawning(self.programs[0].start(call), call))
        self.sim.run_for(0.01)

    @precondition(lambda self: sum(not p.ended for p in self.procs.values()) + len(self.spawning) < 8)
    @rule(
        i=which,
        model=st.sampled_from([*MODELS[:1] * 6, *MODELS]),
        tokens=prompts,
        sampler=samplers | st.none(),
        sched=st.sampled_from(SchedClass),
        nice=st.integers(-5, 5),
        limits=process_limits,
        once=st.booleans(),
        detached=st.booleans(),
        records=blobs,
    )
    def spawn(
        self,
        i: int,
        model: str,
        tokens: list[int],
        sampler: Sampler | None,
        sched: SchedClass,
        nice: int,
        limits: Limits,
        once: bool,
        detached: bool,
        records: list[bytes],
    ) -> None:
        call = Spawn(
            model=model,
            tokens=tokens,
            sampler=sampler,
            sched_class=sched,
            nice=nice,
            limits=limits,
            once=once,
            detached=detached,
            records=records,
        )
        self.spawning.append(Spawning(self.prog(i).start(call), call))

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, name=st.sampled_from(["", "", "bob"]))
    def detach_or_rename(self, i: int, who: int, name: str) -> None:
        proc, program = self.proc(who), self.prog(i)
        done = self.try_call(program, Rename(proc.pid, name) if name else Detach(proc.pid))
        if isinstance(done, Errno):
            assert done is Errno.ESRCH
            assert self.gone(proc)
        elif name:
            assert self.sim.kernel.table.llm(proc.pid).traits.name == name
        else:
            proc.detached = True

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, count=st.integers(1, 3), same=st.booleans(), detached=st.booleans())
    def fork(self, i: int, who: int, count: int, same: bool, detached: bool) -> None:
        parent, program = self.proc(who), self.prog(i)
        if parent.future is not None and not parent.future.done and not self.decoding(parent):
            return  # its decode waits for the boundary too: whether the children have it is a matter of order
        pids = self.try_call(program, Fork(parent.pid, count, same, detached))
        if isinstance(pids, Errno):
            assert pids is not Errno.ESRCH or self.gone(parent)
            return
        self.sync(parent)
        for pid in pids:
            row = self.sim.kernel.table.llm(pid)
            assert list(row.log) == parent.log, "a child begins with its parent's log"
            old = parent.sampler
            seed = self.try_call(program, Getinfo(pid)).seed
            assert (seed == old.seed) == same
            sampler = Sampler(old.temperature, old.top_k, old.top_p, old.min_p, old.repetition_penalty, seed)
            child = Proc(pid, parent.model, list(parent.log), sampler, program, detached, once=parent.once)
            child.records = list(parent.records)
            if row.decoding is not None:
                child.decode, child.started = parent.decode, self.sim.now
            self.procs[pid] = child

    def decoding(self, proc: Proc) -> bool:
        row = self.sim.kernel.table.find(proc.pid)
        return isinstance(row, LLMProcess) and row.decoding is not None

    def decode_waits(self, proc: Proc) -> bool:
        """Whether a decode was asked for that begins at the next token boundary, before whatever is asked for now."""
        row = self.sim.kernel.table.find(proc.pid)
        return isinstance(row, LLMProcess) and any(isinstance(r.call, Decode) for r in row.pausing or ())

    # --- context ---

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, tokens=prompts, records=blobs)
    def feed(self, i: int, who: int, tokens: list[int], records: list[bytes]) -> None:
        proc = self.proc(who)
        was_decoding, will_decode = self.decoding(proc), self.decode_waits(proc)
        length = self.try_call(self.prog(i), Feed(proc.pid, tokens, records))
        if isinstance(length, Errno):
            busy = was_decoding or will_decode
            assert length in (Errno.E2BIG, Errno.EBUSY if busy else Errno.E2BIG, Errno.ESRCH), self.sim.describe()
            assert length is not Errno.ESRCH or self.gone(proc)
        else:
            late = proc.decode is not None and proc.decode.deadline is not None
            assert not was_decoding or late, "only a deadline that has just come makes room for a feed"
            proc.note(records)
            proc.log.extend(tokens)
            assert length == len(proc.log)

    @precondition(lambda self: self.procs)
    @rule(
        i=which,
        who=which,
        count=st.sampled_from([0, 1, 3, 20, 200]),
        sampler=samplers | st.none(),
        stops=st.sampled_from([[], [999], STOPS]),
        logprobs=st.sampled_from([0, 3]),
        deadline=st.sampled_from([None, None, 0.0, 0.004, 0.03]),
        wait=st.booleans(),
    )
    def decode(
        self,
        i: int,
        who: int,
        count: int,
        sampler: Sampler | None,
        stops: list[int],
        logprobs: int,
        deadline: float | None,
        wait: bool,
    ) -> None:
        proc = self.proc(who)
        if self.busy(proc):
            return
        call = Decode(proc.pid, count, stops, sampler, logprobs, deadline, wait)
        future = self.prog(i).start(call)
        self.futures.append(future)
        if future.done and future.errno is not Errno.OK:
            assert future.errno in (Errno.ESRCH, Errno.E2BIG, Errno.EINVAL, Errno.EDQUOT, Errno.EBUSY)
            return
        proc.decode, proc.future, proc.started = call, future, self.sim.now
        proc.interrupted = False
        proc.wanted = sampler

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, sampler=samplers)
    def decode_much(self, i: int, who: int, sampler: Sampler) -> None:
        self.decode(i, who, 100, sampler, [999], 0, None, True)

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, length=st.integers(0, 70))
    def truncate(self, i: int, who: int, length: int) -> None:
        proc = self.proc(who)
        if self.busy(proc):
            return
        result = self.try_call(self.prog(i), Truncate(proc.pid, length))
        if isinstance(result, Errno):
            assert result is not Errno.EINVAL or length > len(proc.log)
            assert result is Errno.EINVAL or (result is Errno.ESRCH and self.gone(proc))
        else:
            del proc.log[length:]
            proc.records = [record for record in proc.records if record[0] < length]
            assert result == len(proc.log) == length

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, model=st.sampled_from(MODELS), tokens=prompts | st.none(), records=blobs)
    def exec(self, i: int, who: int, model: str, tokens: list[int] | None, records: list[bytes]) -> None:
        proc = self.proc(who)
        if self.busy(proc):
            return
        result = self.try_call(self.prog(i), Exec(proc.pid, model, tokens, records=records if tokens is not None else []))
        if result is None:
            proc.model = model
            if tokens is not None:
                proc.log = list(tokens)
                proc.records = [(0, record) for record in records]
        else:
            assert result is not Errno.ESRCH or self.gone(proc)

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, position=st.integers(-1, 70), limit=st.integers(1, 40), follow=st.booleans())
    def read(self, i: int, who: int, position: int, limit: int, follow: bool) -> None:
        proc = self.proc(who)
        result = self.try_call(self.prog(i), Read(proc.pid, position, limit, 0.02, follow))
        self.sync(proc)
        if isinstance(result, Errno):
            assert result is (Errno.ESRCH if self.gone(proc) and result is Errno.ESRCH else Errno.ETIME)
        else:
            assert position < 0 or result.position == position
            assert result.tokens == proc.log[result.position : result.position + len(result.tokens)]
            assert len(result.tokens) <= limit

    # --- signals and the end ---

    @precondition(lambda self: self.procs)
    @rule(
        i=which,
        who=which,
        signal=st.sampled_from([Signal.INT, Signal.STOP, Signal.STOP, Signal.CONT, Signal.CONT, Signal.KILL]),
        status=st.sampled_from([None, None, None, 3]),
    )
    def signal(self, i: int, who: int, signal: Signal, status: int | None) -> None:
        proc = self.proc(who)
        call: Any = Kill(proc.pid, signal) if status is None else Exit(proc.pid, status)
        assert self.try_call(self.prog(i), call) is None or self.gone(proc)
        if signal is Signal.KILL or status is not None:
            proc.ended = True
        if signal is Signal.INT:
            proc.interrupted = True

    @rule(i=which, who=which | st.none(), timeout=st.sampled_from([None, 0.0, 0.01, 1.0]))
    def wait(self, i: int, who: int | None, timeout: float | None) -> None:
        pid = self.proc(who).pid if who is not None and self.procs else 0
        self.futures.append(self.prog(i).start(Wait(pid, timeout)))

    @precondition(lambda self: any(not f.done for f in self.futures))
    @rule(which=which)
    def cancel(self, which: int) -> None:
        waiting = [f for f in self.futures if not f.done and f.program.connected]
        if not waiting:
            return
        future = waiting[which % len(waiting)]
        for proc in self.procs.values():
            if proc.future is future:
                proc.interrupted = True
        future.cancel()
        assert future.done, "a cancelled call is answered at once"

    # --- looking and setting ---

    @precondition(lambda self: self.procs)
    @rule(
        i=which,
        who=which,
        nice=st.integers(-20, 19),
        sched=st.sampled_from(SchedClass) | st.none(),
        limits=process_limits | st.none(),
    )
    def set(self, i: int, who: int, nice: int, sched: SchedClass | None, limits: Limits | None) -> None:
        proc, program = self.proc(who), self.prog(i)
        if limits is None:
            done = self.try_call(program, Setsched(proc.pid, nice, sched))
            assert done is None or self.gone(proc) or (done is Errno.EBUSY and self.changing(proc))
        else:
            old = self.try_call(program, Setlimits(proc.pid, limits))
            assert isinstance(old, Limits) or self.gone(proc)

    @rule(
        i=which,
        what=st.sampled_from(["look", "attach", "policy", "pagein", "evict", "estimate"]),
        model=st.sampled_from(MODELS),
        policy=st.sampled_from(["fair", "fcfs", "round_robin", "mlfq", "lottery"]),
        runs=st.integers(1, 4),
    )
    def manage(self, i: int, what: str, model: str, policy: str, runs: int) -> None:
        program = self.prog(i)
        match what:
            case "look":
                rows = program.call(Ps())
                assert [r.pid for r in rows] == sorted(r.pid for r in rows)
                stats = program.call(StatsCall())
                assert stats.processes == len(rows) == sum(stats.by_state.values())
            case "attach":
                if len(self.programs) < 3:
                    self.programs.append(self.sim.program(f"program {len(self.sim.programs)}"))
            case "policy":
                info = program.call(Sched("", policy, runs, 8 * runs))
                assert (info.policy, info.max_runs, info.step_tokens) == (policy, runs, 8 * runs)
            case _:
                call: Any = {"evict": Evict, "pagein": Pagein, "estimate": Estimate}[what](model)
                self.futures.append(program.start(call))

    # --- programs, drivers, time ---

    @precondition(lambda self: len(self.programs) > 1)
    @rule(i=which)
    def disconnect(self, i: int) -> None:
        program = self.prog(i)
        self.programs.remove(program)
        program.disconnect()
        for proc in self.procs.values():
            if proc.owner is program and not proc.detached:
                proc.ended = True
            if proc.future is not None and proc.future.program is program:
                proc.interrupted = True

    @rule(i=which, how=st.sampled_from(["dies", "dies", "is killed", "hangs", "is silent"]))
    def driver(self, i: int, how: str) -> None:
        match how:
            case "dies":
                self.sim.crash()
            case "is killed":
                program = self.prog(i)
                driver = next(r for r in program.call(Ps()) if r.kind is Kind.DRIVER)
                assert self.try_call(program, Kill(driver.pid, Signal.KILL)) is None
            case _:
                self.sim.hang(mute=how == "is silent")

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.002, 0.1]))
    def kernel_dies(self, seconds: float) -> None:
        """The kernel is killed, the next one boots from the journal, and programs come back."""
        self.sim.kill()
        self.sim.boot_again()
        self.sim.run_for(seconds)
        self.come_back()

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, tokens=prompts, records=blobs, actions=st.integers(0, 3))
    def kernel_dies_in_a_feed(self, i: int, who: int, tokens: list[int], records: list[bytes], actions: int) -> None:
        """What was written is not done twice, what was not is done when the call is made again."""
        proc, program = self.proc(who), self.prog(i)
        if self.busy(proc):
            return
        future = program.prepare(Feed(proc.pid, tokens, records))
        self.sim.die_in(program.event(future), actions)
        self.sim.boot_again()
        self.come_back()
        self.sim.run_until(lambda: future.done, what="the feed")
        if future.errno is Errno.OK:
            proc.note(records)
            proc.log.extend(tokens)
            assert future.value == len(proc.log)
        else:
            assert future.errno is Errno.E2BIG or self.gone(proc)

    def come_back(self) -> None:
        for program in self.programs:
            program.come_back()

    @rule(seconds=st.sampled_from([0.0005, 0.0015, 0.004, 0.02]))
    def pass_a_moment(self, seconds: float) -> None:
        self.sim.run_for(seconds)

    @rule(seconds=st.sampled_from([0.1, 0.3, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.sim.run_for(seconds)

    # --- what must hold ---

    def gone(self, proc: Proc) -> bool:
        """Whether the process has ended, or been told to."""
        self.sync(proc)
        return proc.ended

    def sync(self, proc: Proc) -> None:
        """Take over what a process has decoded since, after checking it token by token."""
        row = self.sim.kernel.table.find(proc.pid)
        if row is None:
            assert proc.ended or proc.once or self.sim.halted, f"process {proc.pid} has vanished"
            proc.ended = True
            return
        assert isinstance(row, LLMProcess)
        if row.state is State.ZOMBIE:
            assert proc.ended or proc.once, f"process {proc.pid} has exited: {row.exit_reason}"
            proc.ended = True
        assert list(row.log[: len(proc.log)]) == proc.log, f"the log of process {proc.pid} has changed"
        records = [(record.position, record.data) for record in row.records.rows]
        assert records == proc.records, f"process {proc.pid} has records {records}, not {proc.records}"
        if proc.wanted is not None and row.traits.sampler == proc.wanted:
            proc.sampler, proc.wanted = proc.wanted, None
        grown = row.log[len(proc.log) :].tolist()
        if grown:
            assert proc.decode is not None
            stops = tuple(proc.decode.stop_ids)
            wanted = self.sim.continuation(proc.log, len(grown), proc.sampler, stops, proc.model)
            assert grown == wanted, f"process {proc.pid} decoded {grown}, the model says {wanted}"
            proc.log.extend(grown)

    @invariant()
    def logs_are_what_the_model_says(self) -> None:
        for spawn in list(self.spawning):
            if spawn.future.done or not spawn.future.program.connected:
                self.spawning.remove(spawn)
            if spawn.future.errno is Errno.OK:
                self.born(spawn)
        for proc in self.procs.values():
            self.sync(proc)
        for future in self.futures:
            if future.done and isinstance(future.call, Decode):
                self.decoded(future)
        self.futures = [f for f in self.futures if not f.done and f.program.connected]

    def born(self, spawn: Spawning) -> None:
        pid, call = spawn.future.value, spawn.call
        row = self.sim.kernel.table.find(pid)
        if row is None:
            return
        assert isinstance(row, LLMProcess)
        proc = Proc(
            pid,
            call.model,
            list(call.tokens),
            call.sampler or row.traits.sampler,
            spawn.future.program,
            call.detached,
            once=call.once,
        )
        proc.ended = not proc.owner.connected
        proc.records = [(0, record) for record in call.records]
        self.procs[pid] = proc

    def decoded(self, future: Future[DecodeResult]) -> None:
        proc = next((p for p in self.procs.values() if p.future is future), None)
        if future.errno is not Errno.OK:
            assert future.errno in (Errno.EINTR, Errno.ESRCH, Errno.E2BIG, Errno.EDQUOT, Errno.EINVAL)
            return
        call, result = future.call, future.value
        assert isinstance(call, Decode)
        assert proc is not None
        tokens = result.tokens
        assert len(tokens) <= call.max_tokens
        row = self.sim.kernel.table.find(proc.pid)
        if row is None:
            proc.sampler = proc.wanted or proc.sampler
        assert row is None or proc.wanted is None
        if row is None:  # reaped before its log could be compared
            before, stops = proc.log[: result.position], tuple(call.stop_ids)
            proc.log[result.position :] = self.sim.continuation(before, len(tokens), proc.sampler, stops, proc.model)
        assert tokens == proc.log[result.position : result.position + len(tokens)]
        match result.finish:
            case Finish.NONE:
                assert not call.wait
            case Finish.STOP:
                assert tokens[-1] in call.stop_ids
            case Finish.LENGTH:
                assert len(tokens) == call.max_tokens
            case Finish.DEADLINE:
                assert call.deadline is not None
                assert nanoseconds(future.at) >= nanoseconds(proc.started) + nanoseconds(call.deadline)
            case Finish.INTERRUPT:
                assert proc.interrupted
            case Finish.KILLED:
                assert proc.ended
            case Finish.CONTEXT:
                assert result.position + len(tokens) >= 40  # the least of the limits
            case Finish.BUDGET:
                assert not isinstance(row, LLMProcess) or self.may_be_spent(row)
            case _:
                raise AssertionError(f"a decode ended with {result.finish}")
        assert not set(tokens[:-1]) & set(call.stop_ids)
        if call.logprobs and call.wait and result.finish in (Finish.STOP, Finish.LENGTH) and tokens:
            assert [entry.token for entry in result.logprobs] == tokens
        if not call.max_tokens and result.finish is Finish.LENGTH and call.wait:
            greedy = self.sim.continuation(proc.log[: result.position], 1, Sampler(), (), proc.model)
            assert [entry.token for entry in result.logprobs] == greedy

    def may_be_spent(self, row: LLMProcess) -> bool:
        """Whether a process may have used up what tokens it may decode: the only such limit there is."""
        return row.account.decoded + row.traits.spent >= 12

    def teardown(self) -> None:
        if self.sim.failed or sys.exc_info()[0] is not None:
            return  # a rule has failed: what it left behind says nothing
        sim, program = self.sim, self.sim.program("last")
        for proc in self.procs.values():
            self.try_call(program, Kill(proc.pid, Signal.CONT))
            proc.interrupted = True
        sim.run_for(60.0)  # the longest delay of a restart, the time a hang takes to be seen, and the work
        sim.run_idle(limit=20.0)
        self.logs_are_what_the_model_says()
        for future in self.futures:
            assert isinstance(future.call, Wait), f"{future.call} was never answered"
            assert future.call.timeout is None
        assert not self.spawning, f"never answered: {self.spawning}"
        for proc in self.procs.values():
            self.try_call(program, Kill(proc.pid, Signal.KILL))
        sim.run_idle(limit=20.0)
        for row in [row for row in sim.kernel.table if isinstance(row, LLMProcess) and row.traits.detached]:
            self.try_call(program, Wait(row.pid, 0.0))  # init would keep their statuses for an hour
        for leaving in [*self.programs, program]:
            leaving.disconnect()
        sim.run_idle(limit=20.0)
        kernel = sim.kernel
        assert {p.kind for p in kernel.table} == {Kind.INIT, Kind.DRIVER}, sim.describe()
        for device in kernel.devices.values():
            for image in device.images.values():
                assert image.pool.available == image.pool.count, "frames were lost"
                assert not image.users
                assert not image.holders
                assert not image.starved
            assert not len(device.queue)


def examples(usually: int = 16) -> settings:
    """How thoroughly a machine is tried, by other lives in each run: LLMASOS_TEST_EXAMPLES says otherwise for all."""
    return settings(
        max_examples=int(os.environ.get("LLMASOS_TEST_EXAMPLES", usually)),
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


Core.TestCase.settings = examples()
