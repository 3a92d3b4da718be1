"""Models in a device's memory. An image is a model in one dtype on one device: its weights, and the pool of KV frames of
the processes that run it. Processes map it as shared text; it stays cached after the last one has gone. Its weights may
be taken out while processes map it (kernel/models/paging.py): frames, page tables and prefixes outlive that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmasos.drivers.protocol import BLOCK_TOKENS, Probed
from llmasos.kernel.groups.pressure import Activity
from llmasos.kernel.memory.frames import FramePool
from llmasos.kernel.memory.page_table import PageTable
from llmasos.kernel.memory.swap import SwapCost, SwapSpace
from llmasos.kernel.memory.thrash import Thrash
from llmasos.kernel.memory.victims import Victims
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.request import Channel
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.parts import Packed

if TYPE_CHECKING:
    from llmasos.kernel.objects.process import LLMProcess

LOADING, RESIDENT, EVICTED = "loading", "resident", "evicted"
# LOADING: asked of the driver. EVICTED: known (probed), but its weights are not in memory, nor on their way.

_ACTIVE = (Activity.CPU, Activity.RUNS, Activity.MEMORY, Activity.WEIGHTS)


@dataclass(slots=True, eq=False)
class Image:
    """`users` are the processes that map it; `holders` those of them with pages, least recently run first; `active` those
    that want to run, or would if the weights were there."""

    id: int
    name: str
    path: str
    requested: set[str]  # dtypes it was asked for under ("" is the device's default)
    state: str = LOADING
    dtype: str = ""
    probed: Probed | None = None
    weight_bytes: int = 0
    guesses: bool = False
    changed: bool = False  # of its files, while they are used, something is not what was loaded
    progress: float = 0.0
    ref: int = 0  # of the last request to the driver for it
    abandoned: bool = False  # the driver has been told that nobody waits for it any more
    deaths: int = 0  # of the driver in a row while it loaded this
    failures: int = 0  # page-ins in a row that failed
    failing_since: int = 0  # when the first of those did
    retry_at: int = 0  # not to be tried again before
    lasting: bool = False  # the last of those failed by what does not pass: its files are broken, or not there
    pool: FramePool = field(default_factory=lambda: FramePool(0))
    swap: SwapSpace = field(default_factory=SwapSpace)
    swap_cost: SwapCost = field(default_factory=SwapCost)
    victims: Victims = field(default_factory=Victims)
    thrash: Thrash = field(default_factory=Thrash)
    loaded: Channel = field(default_factory=Channel)  # woken when it is in memory
    known: Channel = field(default_factory=Channel)  # when it has been probed
    users: dict[int, LLMProcess] = field(default_factory=dict)
    holders: OrderedDict[int, LLMProcess] = field(default_factory=OrderedDict)
    starved: OrderedDict[int, LLMProcess] = field(default_factory=OrderedDict)  # BLOCKED(pagein), first come first
    # KV that is coming from a file or from another device, by the pid of its process
    imports: dict[int, PageTable] = field(default_factory=dict)
    owners: set[Owner] = field(default_factory=set)  # who have asked for it
    used: int = 0  # when a process last began or ended to use it
    # paging (kernel/models/paging.py)
    active: dict[int, LLMProcess] = field(default_factory=dict)
    held: bool = False  # the driver has its frames
    allotted: int = 0  # bytes of weight memory it has, or is being given
    wanted_since: int | None = None  # EVICTED, and somebody wants it
    asked: int = 0  # when its load was asked for
    resident_since: int = 0
    paging_time: int = 0  # what its last page-in took
    ran: int = 0  # when it was last in a step
    steps: int = 0  # since it was paged in
    hinted: bool = False  # to be paged in when that costs nobody who runs anything
    unneeded: bool = False  # the first to go
    pinned: bool = False
    faulted: bool = False  # the page-in that is wanted now is a fault
    faults: int = 0  # times that a process wanted to run it and its weights had been evicted
    pageins: int = 0
    evictions: int = 0
    digest: str = ""  # SHA-256 of its files, as they were when it was loaded; empty: not known yet
    trusted: str = ""  # why it may be loaded, where [trust] asks
    wiped: int = 0  # times that its weights went with a driver

    def knows(self, other: Image) -> bool:
        """Whether those who have asked for it may be told the name of another image."""
        return all(one.operator or any(map(one.over, other.owners)) for one in self.owners)

    def join(self, process: LLMProcess, now: int) -> None:
        """The process maps it from here on, with the pages that its table has."""
        self.users[process.pid] = process
        self.owners.add(process.owner)
        self.used = now
        process.group.map_image(self.id, self.weight_bytes)
        if process.table.frames:
            self.hold(process)

    def leave(self, process: LLMProcess, now: int) -> None:
        """The process, which has no pages any more, maps it no longer."""
        if self.users.pop(process.pid, None) is not None:
            process.group.unmap_image(self.id, self.weight_bytes)
        self.active.pop(process.pid, None)
        self.starved.pop(process.pid, None)
        self.used = now

    def note_activity(self, process: LLMProcess) -> None:
        """A process that maps it has a new state. One that its group throttles does not want to run, so the weights may
        go; one that waits for frames or for weights does."""
        if process.activity in _ACTIVE:
            self.active[process.pid] = process
        else:
            self.active.pop(process.pid, None)

    def weigh(self, size: int) -> None:
        """Its weights take `size` bytes, as measured; the groups of its processes pay for them."""
        old, self.weight_bytes = self.weight_bytes, size
        if old != size:
            for process in self.users.values():
                process.group.unmap_image(self.id, old)
            for process in self.users.values():
                process.group.map_image(self.id, size)

    def hold(self, process: LLMProcess) -> None:
        """The process has pages and runs with them."""
        if process.pid not in self.holders:
            self.victims.came(process)
        self.holders[process.pid] = process
        self.holders.move_to_end(process.pid)
        self.victims.ran(process)

    def let_go(self, process: LLMProcess) -> None:
        """The process has no pages any more, or never had."""
        if self.holders.pop(process.pid, None) is not None:
            self.victims.gone(process)

    def cut(self, process: LLMProcess, tokens: int) -> None:
        """Release the frames of the process beyond its first `tokens` tokens, from the tail."""
        process.table.cut(self.pool, tokens)
        if not process.table.frames:
            self.let_go(process)

    @property
    def needed(self) -> bool:
        """Whether anybody would miss it, were it taken out of the table."""
        return bool(self.mapped or self.loaded or self.known or self.hinted or self.pinned)

    @property
    def mapped(self) -> bool:
        """Whether its frames are needed: a process maps it, or is on its way to."""
        return bool(self.users or self.imports)

    def drop_imports(self, part: int) -> None:
        """Nobody of a part can run for lack of frames: take back those that KV is being read into. It is computed
        instead."""
        for table in self.imports.values():
            if table.part == part:
                table.cut(self.pool, 0)

    @property
    def block_tokens(self) -> int:
        return BLOCK_TOKENS

    @property
    def frame_bytes(self) -> int:
        return self.pool.frame_bytes

    def tokens_in(self, size: int) -> int:
        """Tokens whose KV that many bytes hold."""
        return size // self.frame_bytes * self.block_tokens

    @property
    def context(self) -> int:
        """Tokens a context can have: the model's window, or what all its frames together hold."""
        window = self.probed.context if self.probed else 0
        return min(window, self.pool.most * BLOCK_TOKENS)

    @property
    def kv_bytes(self) -> int:
        return self.pool.count * self.probed.block_bytes if self.probed else 0

    def answers_to(self, path: str, dtype: str) -> bool:
        return self.path == path and (dtype in self.requested or (dtype != "" and dtype == self.dtype))

    @property
    def size(self) -> int:
        """Bytes of all its weights: as measured, but no more than the driver has said."""
        said = self.probed.weight_bytes if self.probed else 0
        return min(self.weight_bytes, said) if self.weight_bytes else said

    @property
    def wanted(self) -> bool:
        """Whether anybody wants weights that are neither in memory nor on their way."""
        return self.state == EVICTED and bool(self.active or self.loaded or self.hinted)

    def lose(self) -> None:
        """The device has lost everything."""
        self.wiped += self.state == RESIDENT
        if self.probed is not None:
            used = self.mapped or bool(self.loaded)
            self.hinted = self.hinted or (used and self.state != EVICTED) or self.pinned
            self.state = EVICTED
        self.held = self.faulted = False
        self.allotted = 0
        self.wanted_since = None
        self.retry_at = 0
        self.active.clear()

    def lose_kv(self) -> None:
        """The KV in its frames and places is gone, or of no use any more; its processes have yet to be settled."""
        for process in self.users.values():
            process.table.clear(self.swap)
            process.driver_log = process.quantum_used = 0
            process.taken = False
        for holder in list(self.holders.values()):
            self.let_go(holder)
        for table in self.imports.values():
            table.clear(self.swap)
        self.starved.clear()
        self.pool.reset()
        self.swap.reset()

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """EINVAL if a token is not in the model's vocabulary."""
        vocab = self.probed.vocab if self.probed else 0
        if tokens and (tokens.highest if isinstance(tokens, Packed) else max(tokens)) >= vocab:
            bad = next(t for t in tokens if t >= vocab)
            raise Errno.EINVAL(f"token {bad} is not in {self.name}'s vocabulary of {vocab} (ids 0..{vocab - 1})")

    def check(self) -> None:
        """Frames and places are mapped as often as they are counted, by its users only; page-ins and evictions add up."""
        self.pool.check(table.frames for table in (*(p.table for p in self.users.values()), *self.imports.values()))
        self.swap.check(kept.slot for p in self.users.values() for kept in p.table.kept.values())
        holders = {pid for pid, process in self.users.items() if process.table.frames}
        assert self.holders.keys() == holders, f"{holders} hold pages, known: {list(self.holders)}"
        resident, counted = self.state == RESIDENT, self.pageins - self.evictions - self.wiped
        assert counted == resident, f"{counted} page-ins left, resident: {resident}"
        assert resident or not self.starved, f"{list(self.starved)} wait for frames without weights"
        assert self.held or not resident, "in memory without frames"

    @property
    def streamed(self) -> bool:
        """It runs, or is to run, with only a part of its weights in memory."""
        return 0 < self.allotted < self.size

    @property
    def shown_state(self) -> str:
        if self.state == EVICTED and not self.pageins:
            return LOADING  # it waits for its turn for the first time
        return "streamed" if self.state == RESIDENT and self.streamed else self.state
