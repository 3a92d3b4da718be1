"""From the live kernel to records: what an event has changed becomes one frame.

Code that changes what a process's head (records.py) tells marks the process as `changed` (marks.py). Tokens that join a
log are noted apart, because that happens most. At the end of the event the recorder writes down what was marked; so the
cost is that of the changes, and a process that sleeps costs nothing. After every event the simulator checks that no mark
is missing: the records so far must add up to the live state (`snapshot`). The record of a process for a file
(process_image.py) is made here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import astuple, replace

from llmasos.kernel.groups.group import Group, GroupTree
from llmasos.kernel.journal import positions
from llmasos.kernel.journal.process_image import Continuing, ProcessImage, version_with, write_image
from llmasos.kernel.journal.records import (
    Answer,
    AnyEntry,
    Began,
    Clock,
    Copied,
    DeviceHead,
    Doing,
    Exited,
    Frame,
    Gone,
    Granted,
    GroupGone,
    GroupHead,
    GroupSpent,
    Grown,
    Noted,
    OwnerHead,
    Pids,
    ProcessHead,
    ProgramHead,
    Revoked,
    SandboxHead,
    Shredded,
)
from llmasos.kernel.journal.state import SavedProcess, SavedProgram, State, destroyed
from llmasos.kernel.objects.grant import Grant, Grants
from llmasos.kernel.objects.owner import Owner, Owners
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.objects.process_table import ProcessTable
from llmasos.kernel.objects.sandbox import Sandboxes
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.table import TABLE, Names

if TYPE_CHECKING:
    from llmasos.kernel.objects.device import Device
    from llmasos.kernel.objects.request import Request

_encode = msgspec.msgpack.Encoder().encode
_LOGS = (Names.LLM, Names.LOG, Names.RUNNER)
# The field by which a call names the LLM process that its answer tells of.
_ABOUT = {row.number: one.field for row in TABLE.values() for one in row.touches if one.what in _LOGS}


class Recorder:
    """Notes what an event changes, and makes its frame. It notes nothing while `on` is false: there is no journal, or the
    kernel halts."""

    def __init__(self) -> None:
        self.on = False
        self.frames = 0  # made so far
        self.position = 0  # of the latest frame
        self.ends: list[int] = []  # positions at which the journals of earlier kernels end
        # By user, the first pid that no earlier kernel can have given out, should the journal lack its last records.
        self.pids_from: dict[int, int] = {}
        self._machine = ""
        self.wall = 0  # the latest time of the wall clock that the journal is to have, and
        self._wall = 0  # that which it has
        self._begin: tuple[int, str] | None = None  # this kernel's number and machine, until its first frame
        self._known: set[int] = set()  # pids that the journal has
        self._next: dict[int, int] = {}  # pids, as the journal has them
        self._groups: dict[str, Group] = {}  # those that the journal has, by path
        # Of this event.
        self._first: list[AnyEntry] = []  # come before all others in the frame
        self._grown: dict[int, LLMProcess] = {}
        self._noted: dict[int, LLMProcess] = {}
        self._answers: list[tuple[Program, Answer]] = []
        self._set: dict[str, Group] = {}
        self._left: list[Group] = []  # groups that a process has left
        self._removed: list[str] = []
        self._spent: dict[str, Group] = {}
        self._devices: dict[str, Device] = {}

    def begin(self, groups: GroupTree, state: State) -> None:
        """Record from here on. The journal has `state`, from which the kernel was made."""
        self.on = True
        self._known = set(state.programs) | set(state.processes)
        self._next = {0: state.next_pid, **state.numbers}
        self._groups = {path: groups.find(path, groups.root) for path in state.groups}
        self.position, self.ends, self._machine = state.position, state.ends, state.machine
        self.wall = self._wall = state.wall
        self.pids_from = {space: positions.beyond(number) for space, number in self._next.items()}
        self._begin = (state.boot, state.here) if state.boot else None

    def end(self) -> None:
        """Record nothing more. For the journal, changes that are in no frame yet have not happened."""
        self.on = False

    # --- what happens -----------------------------------------------------------------------------------------------

    def grew(self, process: LLMProcess) -> None:
        """The log of a process has other tokens at its end."""
        if self.on:
            self._grown[process.pid] = process

    def noted(self, process: LLMProcess) -> None:
        """The opaque records of a process have changed at their end."""
        if self.on:
            self._noted[process.pid] = process

    def forked(self, child: LLMProcess, parent: LLMProcess) -> None:
        """A child has the log that its parent has now, so the log need not be written again."""
        if not self.on or parent.pid not in self._known:
            return
        if parent.pid in self._grown:
            self._first.append(_grown(self._grown.pop(parent.pid)))
        if parent.pid in self._noted:
            self._first.append(_noted(self._noted.pop(parent.pid)))
        self._first += [process_head(child), Copied(child.pid, parent.pid)]
        self._known.add(child.pid)
        child.recorded = len(child.log)
        child.records.journal_has(len(child.records.rows))

    def answered(self, request: Request, errno: Errno, value: object, reason: str) -> None:
        """A call is answered. The answer is noted, unless the call failed without having waited: then it changed
        nothing."""
        if self.on and request.entry.changes and (errno is Errno.OK or request.waited):
            number, owner = request.entry.number, request.program.owner
            about = getattr(request.call, _ABOUT.get(number, ""), 0)  # as its caller calls it
            about = pids.plain(about) if about > pids.MOST or not about else pids.pid_of(owner.space, about)
            answer = Answer(request.program.pid, request.seq, number, errno, _encode(value), reason, about)
            self._answers.append((request.program, answer))

    def shredded(self, process: LLMProcess) -> None:
        """What a process has said is gone, and with it what answers have told of it."""
        self._noted.pop(process.pid, None)
        self._grown[process.pid] = process  # for what it has been charged for
        process.recorded = 0
        process.records.journal_has(0)
        self.untold(process.pid, known=process.pid in self._known)

    def untold(self, pid: int, *, known: bool = True) -> None:
        """What answers have told of a process is gone."""
        if self.on and known:
            self._first.append(Shredded(pid))
        self._answers = [(one, destroyed(told) if told.about == pid else told) for one, told in self._answers]

    def group_set(self, group: Group) -> None:
        if self.on:
            self._set[group.path] = group
            if group.settings.tokens_total and group.tokens:
                self._spent[group.path] = group

    def group_removed(self, group: Group) -> None:
        if self.on:
            self._removed.append(group.path)

    def left(self, group: Group) -> None:
        """A process has left a group."""
        if self.on and self._groups:
            self._left.append(group)

    def charged(self, group: Group) -> None:
        """A group has been charged for tokens."""
        if self.on:
            for one in group.chain:
                if one.settings.tokens_total:
                    self._spent[one.path] = one

    def device_set(self, device: Device) -> None:
        if self.on:
            self._devices[device.name] = device

    # --- the frame --------------------------------------------------------------------------------------------------

    def frame(self, table: ProcessTable, owners: Owners, grants: Grants, sandboxes: Sandboxes, now: int) -> Frame | None:
        """The frame of the event that ends now; None if it changed nothing."""
        if not self.on:
            table.changed.clear()
            table.gone.clear()
            owners.changed.clear()
            grants.changed.clear()
            sandboxes.changed.clear()
            return None
        entries, self._first = self._first, []
        if table.next != self._next:
            new = [(space, number) for space, number in table.next.items() if self._next.get(space) != number]
            entries += [Pids(number, space) for space, number in new]
            self._next = table.next.copy()
        if owners.changed:
            entries += map(owner_head, owners.changed.values())
            owners.changed.clear()
        if self._set or self._spent or self._devices:
            self._settings(entries)
        if table.changed:
            self._heads(table.changed.values(), entries)
            table.changed.clear()
        if self._grown:
            entries += [_grown(process) for pid, process in self._grown.items() if pid in self._known]
            self._grown.clear()
        if self._noted:
            entries += [_noted(process) for pid, process in self._noted.items() if pid in self._known]
            self._noted.clear()
        if grants.changed or sandboxes.changed or self.wall != self._wall:
            self._grants(grants, sandboxes, entries)
        for process in table.gone:
            self.left(process.group)
            if process.pid in self._known:
                self._known.discard(process.pid)
                entries.append(Gone(process.pid))
        table.gone.clear()
        if self._left or self._removed:
            self._groups_gone(entries)
        for program, answer in self._answers:
            if program.pid in self._known:
                program.answers.add(answer)
                entries.append(answer)
        self._answers.clear()
        if not entries:
            return None
        self.frames += 1
        if self._begin is not None:
            entries.insert(0, self._begun(*self._begin))
        self.position += self.position > 0
        return Frame(now, entries, self.position)

    def _begun(self, boot: int, machine: str) -> Began:
        """This kernel writes its first frame: its positions begin."""
        self._begin = None
        self.ends = [*self.ends, *([self.position] if self.position else [])][-positions.KEPT :]
        self.position, self._machine = positions.first(boot), machine
        return Began(self.ends, self._machine)

    def _heads(self, changed: Iterable[Process], entries: list[AnyEntry]) -> None:
        for process in changed:
            if isinstance(process, Program):
                self._known.add(process.pid)
                entries.append(program_head(process))
            elif isinstance(process, LLMProcess) and process.birth is None:
                known = process.pid in self._known
                self._known.add(process.pid)
                entries.append(process_head(process))
                wanted = process.decoding is not None and process.decoding.logprobs
                if wanted or not known or process.pid in self._grown:
                    self._grown.pop(process.pid, None)
                    entries.append(_grown(process))
                if not known and process.records.rows:
                    self._noted[process.pid] = process

    def _grants(self, grants: Grants, sandboxes: Sandboxes, entries: list[AnyEntry]) -> None:
        entries += [grant_head(grant) for grant in grants.changed.values() if grant is not None]
        if gone := [number for number, grant in grants.changed.items() if grant is None]:
            entries.append(Revoked(gone))
        for number, sandbox in sandboxes.changed.items():
            entries.append(SandboxHead(number, sandbox.starter.pid if sandbox is not None else 0))
        if self.wall != self._wall:
            self._wall = self.wall
            entries.append(Clock(self.wall))
        grants.changed.clear()
        sandboxes.changed.clear()

    def _settings(self, entries: list[AnyEntry]) -> None:
        for path, group in self._set.items():
            self._groups[path] = group
            entries.append(GroupHead(path, group.settings))
        entries += [GroupSpent(path, group.tokens) for path, group in self._spent.items()]
        entries += [device_head(device) for device in self._devices.values()]
        self._set.clear()
        self._spent.clear()
        self._devices.clear()

    def _groups_gone(self, entries: list[AnyEntry]) -> None:
        """Enter the groups that were removed, and those that ended with their session."""
        left = [one for group in self._left for one in group.lineage()]
        ended = {one.path + "/" for one in left if one.session and not one.pids}
        gone = set(self._removed)
        if ended:
            gone |= {path for path in self._groups if any(f"{path}/".startswith(one) for one in ended)}
        for path in sorted(gone):
            self._groups.pop(path, None)
            entries.append(GroupGone(path))
        self._left.clear()
        self._removed.clear()

    # --- the whole --------------------------------------------------------------------------------------------------

    def snapshot(
        self,
        table: ProcessTable,
        groups: GroupTree,
        devices: Iterable[Device],
        owners: Owners,
        grants: Grants,
        sandboxes: Sandboxes,
        now: int,
        secret: bytes,
    ) -> State:
        """The state that the journal must add up to, from the live kernel. Logs are not copied."""
        numbers = table.next.copy()
        state = State(secret, now, numbers.pop(0), numbers=numbers)
        state.position, state.ends, state.machine = self.position, self.ends, self._machine
        state.owners = {head.name: head for head in map(owner_head, owners)}
        state.grants = {grant.number: grant_head(grant) for grant in grants}
        state.sandboxes, state.wall = {one.number: one.starter.pid for one in sandboxes}, self._wall
        for process in table:
            if isinstance(process, Program):
                state.programs[process.pid] = SavedProgram(program_head(process), process.answers)
            elif isinstance(process, LLMProcess) and process.birth is None:
                account, decoding = process.account, process.decoding
                state.processes[process.pid] = SavedProcess(
                    process_head(process),
                    process.log,
                    account.fed,
                    account.decoded,
                    decoding.collected if decoding is not None and decoding.logprobs else [],
                    process.records.rows,
                )
        for path in self._groups:
            state.groups[path] = groups.find(path, groups.root).settings
        for group in groups:
            if group.settings.tokens_total and group.tokens:
                state.spent[group.path] = group.tokens
        for device in devices:
            if device.rescheduled:
                state.devices[device.name] = device_head(device)
        return state


def program_head(program: Program) -> ProgramHead:
    told = program.name, program.rights, program.group.path, program.owner.key, program.confined, program.sandbox
    return ProgramHead(program.pid, *told, program.key)


def grant_head(grant: Grant) -> Granted:
    parent = grant.parent.number if grant.parent is not None else 0
    holder = grant.holder.pid if grant.holder is not None else 0
    thing = grant.thing
    pid, path = (0, thing.path) if isinstance(thing, Group) else (thing.pid, "")
    hands = grant.rights, grant.maker, grant.to, parent, grant.secret, holder
    return Granted(grant.number, pid, *hands, path, grant.until, grant.sandbox)


def owner_head(owner: Owner) -> OwnerHead:
    return OwnerHead(owner.key, owner.salt)


def device_head(device: Device) -> DeviceHead:
    config = device.config
    policies = config.victims, device.evictions.name
    return DeviceHead(device.name, device.queue.policy.name, config.max_runs, config.step_tokens, *policies)


def process_head(process: LLMProcess) -> ProcessHead:
    image, saved, device = process.image, process.saved, process.device
    if image is not None:
        path, dtype, name, kind = image.path, image.dtype, device.name, device.config.kind
    elif saved is not None:  # it has not got its model back yet
        path, dtype, name, kind = saved.path, saved.dtype, saved.device, saved.kind
    else:
        raise AssertionError(f"process {process.pid} has neither a model nor the promise of one")
    exited = None
    if process.is_zombie():
        exited = Exited(process.exit_status, process.exit_reason, process.usage(process.since))
    return ProcessHead(
        *astuple(process.traits),
        pid=process.pid,
        parent=process.parent,
        group=process.group.path,
        path=path,
        dtype=dtype,
        device=name,
        kind=kind,
        forks=process.account.forks,
        stopped=process.stopped,
        finish=process.finish,
        dying=process.dying,
        doing=_doing(process),
        exited=exited,
        stop_reason=process.stop_reason,
        owner=process.owner.key,
        reserve=(process.reserve.budget, process.reserve.period) if process.reserve is not None else (0, 0),
    )


def image_of(process: LLMProcess) -> bytes:
    """The image of a process that has its model and is not in a step, encoded. Raises E2BIG."""
    image, decoding = process.mapped, process.decoding
    going_on = decoding is not None and decoding.append  # a mere look at log-probabilities is its caller's affair
    traits = replace(process.traits, spent=process.spent, detached=False)
    record = ProcessImage(
        *astuple(traits),
        version=version_with(process.records.rows),
        path=image.path,
        dtype=image.dtype,
        device=process.device.name,
        log=process.log.tolist(),
        forks=process.account.forks,
        stopped=process.stopped,
        ahead=process.ahead,
        finish=process.finish,
        decoding=Continuing(decoding.left, decoding.start, sorted(decoding.stop_ids)) if decoding and going_on else None,
        records=list(process.records.rows),
    )
    return write_image(record, process.pid)


def _doing(process: LLMProcess) -> Doing | None:
    decoding = process.decoding
    if decoding is None:
        return None
    request = decoding.request
    return Doing(
        decoding.append,
        decoding.start,
        len(process.log) + decoding.left,
        sorted(decoding.stop_ids),
        decoding.logprobs,
        decoding.interrupted,
        decoding.timer.at if decoding.timer is not None else None,
        request.program.pid if request is not None else 0,
        request.seq if request is not None else 0,
    )


def _grown(process: LLMProcess) -> Grown:
    """The end of a log, which the journal does not have yet. From here on it counts as recorded."""
    account, decoding = process.account, process.decoding
    keep, process.recorded = process.recorded, len(process.log)
    known, logprobs = 0, []
    if decoding is not None and decoding.logprobs:
        known, decoding.recorded = decoding.recorded, len(decoding.collected)
        logprobs = decoding.collected[known:]
    return Grown(process.pid, keep, process.log[keep:].tolist(), account.fed, account.decoded, known, logprobs)


def _noted(process: LLMProcess) -> Noted:
    """The opaque records that the journal does not have yet. From here on they count as recorded."""
    records = process.records
    keep = records.journaled
    records.journal_has(len(records.rows))
    return Noted(process.pid, keep, list(records.rows[keep:]))
