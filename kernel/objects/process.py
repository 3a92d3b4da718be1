"""Processes: what the kernel knows of each, their states, and the transitions that are legal.

One table holds everything with a pid, as in Unix: LLM processes, userland programs, drivers, and init (pid 1), which is
the kernel itself. Pids only grow, so a stale pid never names a new process. An LLM process *is* its token log, its
sampler, its limits; the page table is a cache of it that can be thrown away at any token boundary.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmasos.kernel.clock import seconds
from llmasos.kernel.groups.group import DEFAULT_CPU_WEIGHT, NICE_0_WEIGHT, Group
from llmasos.kernel.groups.pressure import Activity
from llmasos.kernel.journal.records import ProcessHead, Traits
from llmasos.kernel.journal.state import Answers
from llmasos.kernel.memory.page_table import PageTable, table_of
from llmasos.kernel.objects.log_records import NO_RECORDS, LogRecords
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.request import Channel
from llmasos.kernel.objects.reserve import Reserve
from llmasos.kernel.tokens import Log, log_of
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import NICE_MIN
from llmasos.syscalls.records import Finish, Kind, Limits, SchedClass, State, TokenLogprobs, Usage, WaitFor

if TYPE_CHECKING:
    from llmasos.kernel.objects.device import Device
    from llmasos.kernel.objects.image import Image
    from llmasos.kernel.objects.request import Request
    from llmasos.kernel.sched.policy import Policy
    from llmasos.kernel.timers import Timer

INIT_PID = 1
NOWHERE = 1 << 62  # a position behind every log
ROW_BYTES = 1024  # that a row of the process table is charged
_TOKEN_BYTES = 4
_STEP = 1024  # bytes by which a log grows between two charges

_ACTIVITY = {
    State.READY: Activity.CPU,
    State.RUNNING: Activity.RUNS,
    WaitFor.PAGEIN: Activity.MEMORY,
    WaitFor.WEIGHTS: Activity.WEIGHTS,
    WaitFor.QUOTA: Activity.QUOTA,
}


def activity_of(state: State, wait: WaitFor) -> Activity:
    """What a process in this state, which waits for that, is to the pressure of its groups."""
    return _ACTIVITY.get(wait if state is State.BLOCKED else state, Activity.NOTHING)


# By nice from -20 to 19, each about 1.25 times the next: Linux's sched_prio_to_weight.
_WEIGHTS = (
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916,
    9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277,
    NICE_0_WEIGHT, 820, 655, 526, 423, 335, 272, 215, 172, 137,
    110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
)  # fmt: skip

_LEGAL: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.READY, State.BLOCKED, State.STOPPED, State.ZOMBIE}),
    State.READY: frozenset({State.RUNNING, State.BLOCKED, State.STOPPED, State.ZOMBIE}),
    State.RUNNING: frozenset({State.READY, State.BLOCKED, State.STOPPED, State.ZOMBIE}),
    State.BLOCKED: frozenset({State.READY, State.BLOCKED, State.STOPPED, State.ZOMBIE}),
    State.STOPPED: frozenset({State.READY, State.BLOCKED, State.ZOMBIE}),
    State.ZOMBIE: frozenset(),
}


# What a process can wait for, the usual first: a dictionary in each process would take hundreds of bytes.
_USUAL = (State.READY.value, WaitFor.INPUT.value, WaitFor.WEIGHTS.value)
WAITS = tuple(dict.fromkeys([*_USUAL, *(one.value for one in WaitFor if one), *(one.value for one in State)]))
_PLACE = {reason: place for place, reason in enumerate(WAITS)}


def _none_yet() -> array[int]:
    return array("q")


@dataclass(slots=True)
class Account:
    """The running totals behind records.Usage."""

    fed: int = 0
    decoded: int = 0
    computed: int = 0
    reused: int = 0
    steps: int = 0
    preemptions: int = 0
    forks: int = 0
    device_time: int = 0  # nanoseconds, its share (by tokens) of the steps that it was in
    waits: array[int] = field(default_factory=_none_yet)  # nanoseconds by the reasons of WAITS, as many as there were
    refaults: int = 0

    def waited(self, reason: str, duration: int) -> None:
        at, waits = _PLACE[reason], self.waits
        if at >= len(waits):
            waits.extend([0] * (at + 1 - len(waits)))
        waits[at] += duration


@dataclass(slots=True, eq=False)
class Process:
    """What every row of the table has. `parent` is a pid; orphans are init's. `owner` is to whom it belongs."""

    pid: int
    parent: int
    kind: Kind
    name: str
    group: Group
    started: int  # nanoseconds of the kernel's clock (clock.py), as all moments here
    state: State = State.NEW
    wait: WaitFor = WaitFor.NONE
    since: int = 0  # when `state` was entered
    exit_status: int = 0
    exit_reason: str = ""
    account: Account = field(default_factory=Account)
    kept: int = ROW_BYTES  # bytes of its log and row that its group has been charged
    owner: Owner = None  # type: ignore[assignment]  # its group's, unless another is told

    def __post_init__(self) -> None:
        self.owner = self.owner or self.group.owner

    def is_zombie(self) -> bool:
        return self.state is State.ZOMBIE

    def enter(self, state: State, wait: WaitFor, now: int) -> None:
        """Change state; raises AssertionError on an illegal transition. Time spent waiting is charged."""
        if state is self.state and wait is self.wait:
            return
        if state is not self.state and state not in _LEGAL[self.state]:
            raise AssertionError(f"pid {self.pid}: {self.state} -> {state} is not a legal transition")
        if self.state in (State.READY, State.BLOCKED, State.STOPPED):
            self.account.waited(self.wait.value or self.state.value, now - self.since)
        self.state, self.wait, self.since = state, wait, now

    def usage(self, now: int) -> Usage:
        """The account of the process as a record, waiting up to now included."""
        waits = {reason: passed for reason, passed in zip(WAITS, self.account.waits, strict=False) if passed}
        if self.state in (State.READY, State.BLOCKED, State.STOPPED):
            reason = self.wait.value or self.state.value
            waits[reason] = waits.get(reason, 0) + (now - self.since)
        account, waited = self.account, {reason: seconds(duration) for reason, duration in waits.items()}
        return Usage(
            account.fed,
            account.decoded,
            account.computed,
            account.reused,
            account.steps,
            account.preemptions,
            account.forks,
            seconds(account.device_time),
            waited,
            account.refaults,
        )


@dataclass(slots=True, eq=False)
class Program(Process):
    """A userland program: one connection."""

    peer: int = 0
    os_pid: int = 0
    rights: int = 0
    told: bool = False  # its answers tell the journal's position
    confined: bool = False  # to what it was granted
    # the rights that it has by grants (objects/grant.py), by pid, and on what is in a group
    granted: dict[int, int] = field(default_factory=dict)
    granted_groups: dict[Group, int] = field(default_factory=dict)
    sandbox: int = 0  # the one whose endpoint it has come by; 0: the usual one
    key: bytes = b""  # the public key by which it has come from another machine
    parked: dict[int, Request] = field(default_factory=dict)  # its calls that wait, by seq
    ended: Channel = field(default_factory=Channel)  # woken when a child has ended
    answers: Answers = field(default_factory=Answers)  # the latest that the journal has
    to_replay: set[int] = field(default_factory=set)  # of those, the ones given to an earlier connection
    grace: Timer | None = None  # it is away, since the kernel was booted or its connection cut, and ends with this
    leaving: bool = False  # it has ended but for its row, which is there as long as it has children (life.py)

    def __post_init__(self) -> None:
        Process.__post_init__(self)

    def check(self) -> None:
        """Every call that waits is unanswered, and in the line of its channel."""
        for seq, request in self.parked.items():
            assert request.seq == seq, f"call {request.seq} is parked as {seq}"
            assert not request.answered, f"call {seq} is parked after its answer"
            assert request in (request.channel or ()), f"call {seq} waits in no line"


@dataclass(slots=True, eq=False)
class DriverProcess(Process):
    """The row of a device's driver; it outlives the driver's OS processes."""

    device: str = ""


@dataclass(slots=True, eq=False)
class Decoding:
    """A decode under way. `left` tokens may still be appended; `append=False` only reports log-probabilities."""

    left: int
    append: bool
    start: int  # log position of its first token
    stop_ids: frozenset[int]
    logprobs: int
    request: Request | None = None  # the call that waits for its result
    collected: list[TokenLogprobs] = field(default_factory=list)
    recorded: int = 0  # of those, what the journal has
    interrupted: Finish = Finish.NONE  # asked to end at the next token boundary
    timer: Timer | None = None  # its deadline
    line: Channel = field(default_factory=Channel)  # where that call waits; it is answered, not woken


@dataclass(slots=True, eq=False)
class LLMProcess(Process):
    """An LLM process. Fields in groups: identity, context, pages, what it waits for, scheduling."""

    device: Device = None  # type: ignore[assignment]  # set by spawn, never None afterwards
    image: Image | None = None  # None: its model is being loaded for the first time
    traits: Traits = None  # type: ignore[assignment]  # likewise
    birth: Request | None = None  # the spawn or restore that waits for its model
    saved: ProcessHead | None = None  # from the journal, until it has its model again
    stranded: str = ""  # why it cannot have it
    # context
    log: Log = field(default_factory=log_of)
    records: LogRecords = NO_RECORDS
    table: PageTable = None  # type: ignore[assignment]  # set by __post_init__ if it was not given
    driver_log: int = 0  # leading tokens of the log the driver holds
    recorded: int = 0  # and the journal
    decoding: Decoding | None = None
    finish: Finish = Finish.NONE  # how the last decode ended
    failure: tuple[Errno, str] = (Errno.OK, "")  # and if that was with an error, why
    fed_from: int = NOWHERE  # where the tokens begin that were fed since the last decode
    ahead: bool = True  # compute fed tokens before a decode asks for it
    # what waits for it
    reading: Channel | None = None  # the line `output`, and
    pausing: Channel | None = None  # `boundary`; None: nobody has waited there yet
    # what it is told to do
    stopped: bool = False
    stop_reason: str = ""  # if it was the kernel that stopped it
    dying: tuple[int, str] | None = None  # exit status and reason, due at the token boundary
    transition: Request | None = None  # the exec, or the move to another device, that is under way
    # scheduling
    reserve: Reserve | None = None  # of a REALTIME process
    running: int = 0  # tokens of the step in flight; 0: not in it
    swapped_in: int = 0  # tokens whose KV that step moves in before; cached already
    guessing: int = 0  # tokens beyond those that the step has frames for, to be guessed
    ticket: int = 0  # its live entry in the run queue; below 0: none now, and that was its last; 0: none yet
    key: int = 0  # its place in the queue, as the policy gave it
    ranked: bool = True  # by the policy; not while it is REALTIME
    policy: Policy | None = None  # the policy it was last queued under ...
    policy_state: Any = None  # ... and that policy's own record of it
    high_water: int = 0  # tokens of the log that have been computed at least once
    quantum_used: int = 0  # of those, since it last got pages after having none
    turn: int = 0  # when its pages were last taken
    taken: bool = False  # its pages were, since it last had all; not lost with a driver or kernel
    preempted: bool = False  # they were, while it wanted to run, and it has had none since
    crashes: int = 0  # driver deaths with this process in the step since it last got further than ever
    activity: Activity = Activity.NOTHING  # what its state and wait are to the pressure of its groups
    load: int = 0  # weight with which its group counts it among those that want the device
    throttled_by: Group | None = None  # the group whose limit keeps it from running now
    pause: int = 0  # until then it is, for growing above `kv_high`
    over_limit: Group | None = None  # if it is starved: the group whose limit that is; None: all frames are taken

    def __post_init__(self) -> None:
        Process.__post_init__(self)
        self.table = self.table or table_of(self.group, self.owner)
        self.kept = self.size

    def enter(self, state: State, wait: WaitFor, now: int) -> None:
        """As for any process; also tells its group and its image what it does now."""
        Process.enter(self, state, wait, now)
        old, new = self.activity, activity_of(state, wait)
        if new is not old:
            self.activity = new
            for group in self.group.chain:
                group.pressure.change(old, new, now)
        self.count_load()
        if self.image is not None:
            self.image.note_activity(self)

    @property
    def output(self) -> Channel:
        """Where to wait; woken when its log has grown, or its decode has ended."""
        if self.reading is None:
            self.reading = Channel()
        return self.reading

    @property
    def boundary(self) -> Channel:
        """Where to wait; woken at a token boundary, and when it has its model back."""
        if self.pausing is None:
            self.pausing = Channel()
        return self.pausing

    def outran(self, quantum: int) -> bool:
        """Whether it has used up its quantum of tokens, which is longer where pages are brought back too often."""
        return self.quantum_used >= quantum * (self.image.thrash.stretch if self.image is not None else 1)

    @property
    def sched_class(self) -> SchedClass:
        """The class that it has now: a REALTIME process whose budget is used up is FAIR until its next period."""
        own = self.traits.sched_class
        if own is SchedClass.REALTIME and (self.reserve is None or not self.reserve.open):
            return SchedClass.FAIR
        return own

    @property
    def sleeps(self) -> bool:
        """Whether it can do nothing with its pages for now, so that it misses them least: it wants nothing, or waits for
        its group to be allowed more tokens. A process that waits for memory, or pauses for having grown, does not
        sleep: it would lose what it has rebuilt before it gets further."""
        if self.state is State.BLOCKED and self.wait is WaitFor.QUOTA:
            return self.throttled_by is not None and self.pid in self.throttled_by.line
        return self.state is State.STOPPED or (self.state is State.BLOCKED and self.wait is not WaitFor.PAGEIN)

    def count_load(self) -> None:
        """Update its weight in its group's load: 0 unless it wants the device."""
        wanted = self.weight if self.state in (State.READY, State.RUNNING) else 0
        if wanted != self.load:
            self.group.add_load(self.device.name, wanted - self.load)
            self.load = wanted

    def move_to(self, group: Group, now: int) -> None:
        """Become a member of another group; not while it is in a step."""
        old = self.group
        for one in old.chain:
            one.pressure.change(self.activity, Activity.NOTHING, now)
        for one in group.chain:
            one.pressure.change(Activity.NOTHING, self.activity, now)
        if self.load:
            old.add_load(self.device.name, -self.load)
            group.add_load(self.device.name, self.load)
        if self.image is not None:
            self.table.move_to(group, self.image.pool, self.image.swap)
            group.map_image(self.image.id, self.image.weight_bytes)
            old.unmap_image(self.image.id, self.image.weight_bytes)
        else:
            self.table.group = group
        self.group = group

    def check(self) -> None:
        """Its state is the one its facts ask for, and what it has is its own."""
        if self.state is State.ZOMBIE:
            left = self.table.frames or self.reading or self.pausing or self.decoding is not None
            assert not left, "a zombie holds on to something"
        in_step, image, cached = self.running, self.image, self.table.cached
        assert cached + in_step <= len(self.log), f"{cached} tokens cached, {in_step} in a step, of {len(self.log)}"
        assert in_step or not (self.guessing or self.swapped_in), "it guesses, or tokens are moved in, in no step"
        assert self.swapped_in <= cached, f"{self.swapped_in} tokens are moved in"
        self.table.check(len(self.log), in_step + self.guessing)
        self.records.check(len(self.log))
        assert self.table.group is self.group, "another group pays for its pages"
        mapped = image is not None and self.pid in image.users
        assert mapped or not self.table.frames, "it has pages of no model"
        if self.state is State.ZOMBIE:
            assert self.pid not in self.device.reserves, "a zombie has a part of the device's time reserved"
            return
        if self.traits.sched_class is SchedClass.REALTIME:
            assert self.device.reserves.get(self.pid) is self.reserve is not None, "REALTIME without a reserve"
            assert self.reserve.open or self.reserve.timer is not None, "its budget is never refilled"
        assert (self.state is State.RUNNING) == (in_step > 0), f"{self.state} with {in_step} tokens in a step"
        assert (self.state is State.READY) == (self.ticket > 0), f"{self.state}, queued: {self.ticket > 0}"
        if in_step:
            return
        assert (self.state is State.STOPPED) == self.stopped, f"{self.state}, stopped: {self.stopped}"
        assert self.dying is None, "it is dying, but in no step"
        assert not self.pausing or self.saved is not None, "calls wait for a token boundary that has been"
        idle = self.state is State.BLOCKED and self.wait is WaitFor.INPUT
        assert not idle or not self.todo, f"it waits for input, with {self.todo} tokens to compute"
        starved = image is not None and self.pid in image.starved
        limited = starved and self.over_limit is not None
        assert (self.wait is WaitFor.PAGEIN) == (starved and not limited), f"{self.state} {self.wait}, starved: {starved}"
        held = limited or self.throttled_by is not None
        assert (self.wait is WaitFor.QUOTA) == held, f"{self.state} {self.wait}, {limited=}, {self.throttled_by=}"

    def change_device(self, device: Device) -> None:
        """Want another device from here on; not while it is in a step, or queued."""
        if self.load:
            self.group.add_load(self.device.name, -self.load)
            self.group.add_load(device.name, self.load)
        self.device = device

    @property
    def weight(self) -> int:
        """Among the processes and groups that are directly in its group."""
        return _WEIGHTS[self.traits.nice - NICE_MIN] * DEFAULT_CPU_WEIGHT

    def virtual(self, amount: int) -> int:
        """An amount divided by its share of the device now, by its weight and its groups'; rounded down."""
        part, whole = self.group.share(self.device.name, self.load or self.weight)
        return amount * whole // part

    @property
    def mapped(self) -> Image:
        """The image of a process that is known to have its model."""
        if self.image is None:
            raise AssertionError(f"process {self.pid} has no model")
        return self.image

    @property
    def context(self) -> int:
        """Tokens the log may hold: the model's window, what its frames can ever hold, and the limits."""
        return 0 if self.image is None else self.context_with(self.image, self.traits.limits)

    def context_with(self, image: Image, limits: Limits) -> int:
        """The same if it had another model, or other limits."""
        own, most = self._own_context(image, limits), self.group.kv_max
        return min(own, image.tokens_in(most)) if most else own

    @staticmethod
    def _own_context(image: Image, limits: Limits) -> int:
        """The same if its group had no limit."""
        bound = image.context
        if limits.context:
            bound = min(bound, limits.context)
        return min(bound, limits.pages * image.block_tokens) if limits.pages else bound

    @property
    def oversize(self) -> Group | None:
        """The group whose `kv_max` cannot hold its context, whatever others give up; or None."""
        most = self.group.kv_max
        if not most or self.image is None or len(self.log) <= self.image.tokens_in(most):
            return None
        return self.group.with_kv_max(most)

    def check_model(self, image: Image, log: Sequence[int], limits: Limits | None = None) -> None:
        """EINVAL, E2BIG or EDQUOT if it may not have this model with this log. `limits` replace its own."""
        image.check_tokens(log)
        self.check_room(len(log), image, limits=limits)
        self.check_weights(image)

    def check_room(
        self, length: int, image: Image | None = None, device: Device | None = None, limits: Limits | None = None
    ) -> None:
        """E2BIG if a log of `length` tokens is more than it may have, or could have with another image."""
        image, device, limits = image or self.mapped, device or self.device, limits or self.traits.limits
        context = self.context_with(image, limits)
        if length > context:
            why = self.bound_by(image, device, limits)
            raise Errno.E2BIG(f"a context of {length} tokens is too long: {context} is {why}")

    @property
    def held_up(self) -> str:
        """What it waits for that its state does not tell: the model that it has not got back, or whose limit it is."""
        if self.stranded:
            return f"it has not got its model back: {self.stranded}"
        group = self.throttled_by or self.over_limit if self.wait is WaitFor.QUOTA else None
        return f"it waits for a limit of group {group.path}" if group is not None else ""

    def bound_by(self, image: Image, device: Device, limits: Limits) -> str:
        """What bounds its context."""
        context, window = self.context_with(image, limits), image.probed.context if image.probed else 0
        if limits.context and limits.context == context:
            return "its own limit (Limits.context)"
        if limits.pages and limits.pages * image.block_tokens == context:
            return f"its limit of {limits.pages} pages (Limits.pages)"
        if (most := self.group.kv_max) and image.tokens_in(most) == context:
            return f"what kv_max of group {self.group.with_kv_max(most).path} allows ({most:,} bytes)"
        if window == context:
            return f"the window of {image.name}"
        return f"the KV memory of {image.name} on {device.name} (raise it with --kv-bytes)"

    def check_weights(self, image: Image) -> None:
        """EDQUOT if its group may not have the weights of the image, instead of those that the process maps now."""
        old, group = self.image, self.group
        if old is not None:
            group.unmap_image(old.id, old.weight_bytes)  # it pays for one of them at a time
        try:
            group.check_weights(image.id, image.weight_bytes, image.name)
        finally:
            if old is not None:
                group.map_image(old.id, old.weight_bytes)

    @property
    def spent(self) -> int:
        """Tokens that count against its budget."""
        return self.traits.spent + self.account.decoded

    @property
    def budget_used(self) -> bool:
        """Whether its token budget is used up; a child has used what its parent had when it was forked."""
        return 0 < self.traits.limits.tokens <= self.spent

    @property
    def size(self) -> int:
        """Bytes of its log, records and row."""
        return ROW_BYTES + _TOKEN_BYTES * len(self.log) + self.records.bytes

    def charge_log(self) -> None:
        """Charge its group what its log has grown by, or shrunk."""
        size = self.size
        if size - self.kept >= _STEP or size < self.kept:
            self.group.charge_logs(size - self.kept)
            self.kept = size

    def check_log(self, tokens: int, records: Sequence[bytes] = ()) -> None:
        """EDQUOT if a log that is longer by so much is more than its group may have."""
        self.group.check_logs(_TOKEN_BYTES * tokens + sum(map(len, records)))

    @property
    def used_up(self) -> Finish:
        """Why it can decode no more tokens: BUDGET or CONTEXT; NONE: it can, or waits for a group that is `oversize`."""
        if self.budget_used:
            return Finish.BUDGET
        own = 0 if self.image is None else self._own_context(self.image, self.traits.limits)
        return Finish.CONTEXT if len(self.log) >= own or len(self.log) == self.context else Finish.NONE

    @property
    def guessable(self) -> int:
        """How many tokens beyond the next one a step may guess for it; 0 where each must be looked at by itself."""
        decoding = self.decoding
        if decoding is None or not decoding.append or decoding.logprobs or self.traits.sampler.repetition_penalty != 1.0:
            return 0
        left = min(decoding.left, self.context - len(self.log))
        if self.traits.limits.tokens:
            left = min(left, self.traits.limits.tokens - self.spent)
        return max(0, left - 1)

    @property
    def todo(self) -> int:
        """Tokens to compute now. Without a decode the last token is held back: its logits are wanted by the next one."""
        left = len(self.log) - self.table.cached - self.returning
        if self.decoding is not None:
            return left
        return max(0, left - 1) if self.ahead else 0

    @property
    def returning(self) -> int:
        """Tokens whose KV will be moved in from a lower tier rather than computed again."""
        if self.image is None or not self.image.swap_cost.pays:
            return 0
        return self.table.returning(len(self.log))
