"""The state that the records of a journal add up to; pure, as the core is.

Only `apply` says what a record means. A snapshot is a short journal that adds up to the same state; compaction writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from llmasos.kernel.journal.records import (
    Answer,
    AnyEntry,
    BadFrame,
    Began,
    Clock,
    Copied,
    DeviceHead,
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
    Sealed,
    Secret,
    Shredded,
)
from llmasos.kernel.tokens import Log, log_of
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_PARKED_CALLS
from llmasos.syscalls.records import GroupSettings, LogRecord, TokenLogprobs

MOST_ANSWER_BYTES = 4 << 20  # of one program; the newest answer is always kept
_SHORT = 256  # bytes of an answer that is always kept whole
_EMPTY = msgspec.msgpack.encode(None)
_LOST = "it was done before the kernel died, but its answer was too long to be kept; read the log of the process"
_SHREDDED = "it was done before the kernel died, and what it told was destroyed with its process (shred)"
_PIECE = 1 << 16  # tokens of a log in one frame of a snapshot
_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(ProcessHead).decode


class Answers:
    """The latest answers to a program, which its connection may have lost. Older answers have arrived, since a connection
    delivers in order. If the answers are too long together, the oldest lose their text, but stay: the call was done, and
    must not be done twice."""

    def __init__(self) -> None:
        self._kept: dict[int, Answer] = {}  # by seq, oldest first
        self._bytes = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answers) and list(self) == list(other)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"Answers({list(self)})"

    def add(self, answer: Answer) -> None:
        self._drop(answer.seq)
        self._kept[answer.seq] = answer
        self._bytes += len(answer.value)
        while len(self) > MAX_PARKED_CALLS:
            self._drop(next(iter(self._kept)))
        if self._bytes > MOST_ANSWER_BYTES:
            self._shorten(answer.seq)

    def forget(self, pid: int) -> None:
        """What answers have told of this process is gone; that they were given stays known."""
        for seq, old in list(self._kept.items()):
            if old.about == pid:
                self._bytes -= len(old.value) - len(_EMPTY)
                self._kept[seq] = destroyed(old)

    def get(self, seq: int) -> Answer | None:
        return self._kept.get(seq)

    def copy(self) -> Answers:
        other = Answers()
        other._kept, other._bytes = self._kept.copy(), self._bytes
        return other

    def _shorten(self, newest: int) -> None:
        for seq, old in list(self._kept.items()):
            if seq == newest or self._bytes <= MOST_ANSWER_BYTES:
                return
            if len(old.value) > _SHORT:
                self._bytes -= len(old.value) - len(_EMPTY)
                self._kept[seq] = Answer(old.program, seq, old.call, Errno.EIO, _EMPTY, _LOST, old.about)

    def _drop(self, seq: int) -> None:
        old = self._kept.pop(seq, None)
        if old is not None:
            self._bytes -= len(old.value)


def destroyed(answer: Answer) -> Answer:
    """The same without what it told."""
    return Answer(answer.program, answer.seq, answer.call, Errno.EIO, _EMPTY, _SHREDDED)


class SavedProcess:
    """An LLM process as the journal knows it. Its head is kept encoded: a compaction holds all processes once more, and
    reads no head."""

    __slots__ = ("_head", "decoded", "fed", "log", "logprobs", "records")

    def __init__(
        self,
        head: ProcessHead,
        log: Log | None = None,
        fed: int = 0,
        decoded: int = 0,
        logprobs: Sequence[TokenLogprobs] = (),
        records: Sequence[LogRecord] = (),
    ) -> None:
        self.head = head
        self.log = log_of() if log is None else log
        self.fed, self.decoded = fed, decoded
        self.logprobs: list[TokenLogprobs] | tuple[()] = list(logprobs) or ()  # a list of none takes memory in each
        self.records = tuple(records)

    @property
    def head(self) -> ProcessHead:
        return _decode_head(self._head)

    @head.setter
    def head(self, head: ProcessHead) -> None:
        self._head = _encode(head)

    def copy(self) -> SavedProcess:
        """A copy that does not change when this does."""
        other = SavedProcess.__new__(SavedProcess)
        other._head, other.log, other.fed, other.decoded = self._head, self.log[:], self.fed, self.decoded
        other.logprobs, other.records = self.logprobs[:], self.records
        return other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SavedProcess) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __repr__(self) -> str:
        told = self.head, self.log.tolist(), self.fed, self.decoded, self.logprobs, self.records
        return f"SavedProcess{told}"


@dataclass(slots=True)
class SavedProgram:
    head: ProgramHead
    answers: Answers = field(default_factory=Answers)


@dataclass(slots=True)
class State:
    """Everything the journal remembers. `now` is the clock of the last frame, `position` its position (positions.py).

    Whoever opens the journal for the next kernel says what is not in it: `boot`, the random number of that kernel (0: it
    tells no positions), the machine that it runs in (`here`), and whether something may be `lost`.
    """

    secret: bytes
    now: int = 0
    next_pid: int = 0
    programs: dict[int, SavedProgram] = field(default_factory=dict)
    processes: dict[int, SavedProcess] = field(default_factory=dict)
    groups: dict[str, GroupSettings] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    devices: dict[str, DeviceHead] = field(default_factory=dict)
    owners: dict[str, OwnerHead] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)  # next pids of other users than the operator
    grants: dict[int, Granted] = field(default_factory=dict)
    sandboxes: dict[int, int] = field(default_factory=dict)  # by number, the pid of the starter
    wall: int = 0
    position: int = 0
    ends: list[int] = field(default_factory=list)  # last positions of the kernels before
    machine: str = ""
    boot: int = 0
    here: str = ""
    lost: bool = False

    @property
    def tokens(self) -> int:
        """The number of tokens in all logs."""
        return sum(len(process.log) for process in self.processes.values())

    def apply(self, frame: Frame) -> None:
        """Take a frame in. Raises BadFrame if its records do not fit those before them."""
        self.now = frame.now
        self.position = frame.position or self.position
        for entry in frame.entries:
            try:
                self._apply(entry)
            except KeyError as error:
                raise BadFrame(f"a {type(entry).__name__} names {error}, which no earlier record does") from None

    def _apply(self, entry: AnyEntry) -> None:
        match entry:
            case Grown():
                self._grow(entry)
            case ProcessHead():
                process = self.processes.get(entry.pid)
                if process is None:
                    self.processes[entry.pid] = SavedProcess(entry)
                else:
                    process.head = entry
                    if entry.doing is None:
                        process.logprobs = ()
            case Copied():
                child, parent = self.processes[entry.pid], self.processes[entry.parent]
                child.log, child.records = parent.log[:], parent.records
            case Noted():
                self._note(entry)
            case Answer():
                self.programs[entry.program].answers.add(entry)
            case Pids():
                if entry.space:
                    self.numbers[entry.space] = entry.next
                else:
                    self.next_pid = entry.next
            case ProgramHead():
                if entry.pid in self.programs:
                    self.programs[entry.pid].head = entry
                else:
                    self.programs[entry.pid] = SavedProgram(entry)
            case Gone():
                if self.programs.pop(entry.pid, None) is None:
                    del self.processes[entry.pid]
            case GroupHead():
                self.groups[entry.path] = entry.settings
                if not entry.settings.tokens_total:
                    self.spent.pop(entry.path, None)
            case GroupGone():
                self.groups.pop(entry.path, None)
                self.spent.pop(entry.path, None)
            case GroupSpent():
                self.spent[entry.path] = entry.tokens
            case DeviceHead():
                self.devices[entry.name] = entry
            case Granted() | Revoked() | Clock() | SandboxHead():
                self._grant(entry)
            case OwnerHead():
                self.owners[entry.name] = entry
            case Began():
                self.ends, self.machine = entry.ends, entry.machine
            case Secret():
                self.secret = entry.key
            case Shredded():
                if (process := self.processes.get(entry.pid)) is not None:  # else answers alone tell of it
                    process.log, process.records, process.logprobs = log_of(), (), ()
                for program in self.programs.values():
                    program.answers.forget(entry.pid)
            case Sealed():
                raise BadFrame(f"what process {entry.pid} said is still encrypted")

    def _grow(self, entry: Grown) -> None:
        process = self.processes[entry.pid]
        if entry.keep > len(process.log):
            raise BadFrame(f"{entry.keep} of {len(process.log)} tokens of process {entry.pid} are to be kept")
        del process.log[entry.keep :]
        process.log.extend(entry.tokens)
        process.fed, process.decoded = entry.fed, entry.decoded
        if process.logprobs or entry.logprobs:
            logprobs = process.logprobs or []
            del logprobs[entry.known :]
            logprobs += entry.logprobs
            process.logprobs = logprobs or ()

    def _grant(self, entry: Granted | Revoked | Clock | SandboxHead) -> None:
        match entry:
            case Granted():
                self.grants[entry.number] = entry
            case Revoked():
                for number in entry.numbers:
                    self.grants.pop(number, None)
            case Clock():
                self.wall = entry.at
            case SandboxHead():
                if entry.starter:
                    self.sandboxes[entry.number] = entry.starter
                else:
                    self.sandboxes.pop(entry.number, None)

    def _note(self, entry: Noted) -> None:
        process = self.processes[entry.pid]
        records = process.records
        if entry.keep > len(records):
            raise BadFrame(f"{entry.keep} of {len(records)} records of process {entry.pid} are to be kept")
        process.records = (*records[: entry.keep], *entry.records)

    def copy(self) -> State:
        """A copy that does not change when this state does."""
        return State(
            self.secret,
            self.now,
            self.next_pid,
            {pid: SavedProgram(saved.head, saved.answers.copy()) for pid, saved in self.programs.items()},
            {pid: saved.copy() for pid, saved in self.processes.items()},
            self.groups.copy(),
            self.spent.copy(),
            self.devices.copy(),
            self.owners.copy(),
            self.numbers.copy(),
            self.grants.copy(),
            self.sandboxes.copy(),
            self.wall,
            self.position,
            self.ends.copy(),
            self.machine,
        )

    def snapshot(self) -> Iterator[Frame]:
        """Frames that add up to this state, each of bounded size. The last one has the position: what is cut short claims
        none."""
        head: list[AnyEntry] = [Secret(self.secret), Pids(self.next_pid)]
        head += [GroupHead(path, settings) for path, settings in self.groups.items()]
        head += [GroupSpent(path, tokens) for path, tokens in self.spent.items()]
        head += [Pids(number, space) for space, number in self.numbers.items()]
        if self.machine or self.ends:
            head.append(Began(self.ends, self.machine))
        for entries in self._pieces([*head, *self.devices.values(), *self.owners.values()]):
            yield Frame(self.now, entries)
        last: list[AnyEntry] = [SandboxHead(number, starter) for number, starter in self.sandboxes.items()]
        if self.wall:
            last.append(Clock(self.wall))
        if last:
            yield Frame(self.now, last)
        yield Frame(self.now, [], self.position)

    def _pieces(self, head: list[AnyEntry]) -> Iterator[list[AnyEntry]]:
        yield head
        for program in self.programs.values():
            yield [program.head]
            for answer in program.answers:
                yield [answer]
        for pid, process in self.processes.items():
            entries: list[AnyEntry] = [process.head]
            for start in range(0, max(1, len(process.log)), _PIECE):
                tokens = process.log[start : start + _PIECE].tolist()
                known, logprobs = (0, list(process.logprobs)) if start == 0 else (len(process.logprobs), [])
                entries.append(Grown(pid, start, tokens, process.fed, process.decoded, known, logprobs))
                yield entries
                entries = []
            if process.records:
                yield [Noted(pid, 0, list(process.records))]
        for grant in self.grants.values():
            yield [grant]

    def difference(self, other: State) -> str:
        """Where two states differ first, for tests; empty: nowhere. Their clocks may differ."""
        facts = "secret next_pid groups spent devices owners numbers grants sandboxes wall position ends machine"
        for name in facts.split():
            if getattr(self, name) != getattr(other, name):
                return f"{name}: {getattr(self, name)} and {getattr(other, name)}"
        for what, mine, others in (
            ("program", self.programs, other.programs),
            ("process", self.processes, other.processes),
        ):
            if found := _difference(what, mine, others):
                return found
        return ""


def _difference(what: str, mine: Mapping[int, object], others: Mapping[int, object]) -> str:
    for pid in mine.keys() | others.keys():
        if mine.get(pid) != others.get(pid):
            return f"{what} {pid}: {mine.get(pid)}\nand {others.get(pid)}"
    return ""
