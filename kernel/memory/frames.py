"""The frames of one model's KV on one device: how often each is mapped, which are free, which are kept for their prefix.

A frame is in exactly one of three states: mapped (refcount > 0), cached (refcount 0, but named in the prefix index and
therefore worth keeping), or free. `alloc` takes free frames first, then the cached one released longest ago; a process
releases its table from the tail, so a prefix loses its tail first and its shareable head last.

The control group of the process that mapped a frame first pays for it until no process maps it.

A frame that another owner had before is to be zeroed before anything else is done with it: `wipes` has those that the
driver has yet to be told of. Where all frames are one owner's there are none.

Entry points: alloc, share, release, private, and the index `prefix` of named frames; check() recounts.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from llmasos.kernel.groups.group import Group
from llmasos.kernel.memory.prefix import PrefixIndex


class FramePool:
    """`count` frames of `frame_bytes` each, numbered from 0. Knows no process: callers keep the tables. Of several
    `parts` each has as many frames, mapped or cached, and takes none of another's, whatever those do."""

    def __init__(self, count: int, frame_bytes: int = 0, parts: int = 1) -> None:
        self.count = count
        self.parts = parts
        self.most = count // parts  # frames of a part
        self.frame_bytes = frame_bytes
        self.payers: list[Group | None] = [None] * count  # of mapped frames
        self.prefix = PrefixIndex()
        self.wipes: list[int] = []
        self.reset()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return sum(map(len, self._cached))

    @property
    def available(self) -> int:
        """Frames that nobody maps."""
        return len(self._free) + self.cached

    def available_to(self, part: int) -> int:
        """Frames that `alloc` can give to a part without taking any from a process."""
        return self.most - self._held[part] + len(self._cached[part])

    def alloc(self, payer: Group, owner: int = 0, part: int = 0, *, whole: bool = False) -> int:
        """A frame with refcount 1 and no name, for KV of `owner`, who is of that part; `whole`: all of it is written
        next. The caller has checked that one is `available_to` the part."""
        cached = self._cached[part]
        if self._held[part] < self.most:
            frame = self._free.pop()
            self._held[part] += 1
            self._part[frame] = part
        elif cached:
            frame, _ = cached.popitem(last=False)
            self.prefix.unname(frame)
        else:
            raise AssertionError("extend without room: room() was not checked")
        self.refs[frame] = 1
        self.charge(frame, payer)
        if (before := self.owners[frame]) != owner:
            self.owners[frame] = owner
            if before is not None:
                self.wipes.append(frame)
        if whole and self.wipes:
            self.wipes = [other for other in self.wipes if other != frame]
        return frame

    def share(self, frame: int, payer: Group) -> None:
        """One more mapping of a frame that is mapped (and paid for) or cached."""
        if self.refs[frame] == 0:
            del self._cached[self._part[frame]][frame]
            self.charge(frame, payer)
        self.refs[frame] += 1

    def share_mapped(self, frames: Iterable[int]) -> None:
        """One more mapping of frames that are all mapped, and paid for, already."""
        refs = self.refs
        for frame in frames:
            refs[frame] += 1

    def charge(self, frame: int, payer: Group | None) -> None:
        """Make `payer` pay for a frame; None: nobody pays."""
        before = self.payers[frame]
        if before is not None:
            before.charge_kv(-self.frame_bytes)
        if payer is not None:
            payer.charge_kv(self.frame_bytes)
        self.payers[frame] = payer

    def move(self, frames: Iterable[int], payer: Group) -> None:
        """Make `payer` pay for the frames that are mapped once only."""
        for frame in frames:
            if self.refs[frame] == 1:
                self.charge(frame, payer)

    def release(self, frames: Iterable[int]) -> None:
        """Take one mapping from each frame, in the given order."""
        for frame in frames:
            left = self.refs[frame] - 1
            if left < 0:
                raise AssertionError(f"frame {frame} released more often than mapped")
            self.refs[frame] = left
            if left == 0:
                self.charge(frame, None)
                if frame in self.prefix:
                    self._cached[self._part[frame]][frame] = None
                else:
                    self._free.append(frame)
                    self._held[self._part[frame]] -= 1

    def private(self, frame: int, owner: int = 0) -> bool:
        """Whether a frame has one mapping only, so that `owner` may write it. Then it loses its name, which would not
        survive."""
        if self.refs[frame] != 1:
            return False
        self.owners[frame] = owner
        self.prefix.unname(frame)
        return True

    @property
    def idle(self) -> list[int]:
        """The free frames, in which KV of any process may still be."""
        return list(self._free)

    def forget(self, frame: int) -> None:
        """A cached frame is free, and its KV is nobody's any more."""
        part = self._part[frame]
        del self._cached[part][frame]
        self.prefix.unname(frame)
        self._free.append(frame)
        self._held[part] -= 1

    def reset(self) -> None:
        """The device has lost everything: all frames are free and nameless. The tables must be empty already."""
        for frame in range(self.count):
            self.charge(frame, None)
        self.refs = array("i", bytes(4 * self.count))
        self.prefix.clear()
        self._free = array("i", range(self.count - 1, -1, -1))
        self._cached: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(self.parts)]
        self._held = [0] * self.parts  # frames that are mapped or cached, by part
        self._part = array("i", bytes(4 * self.count))
        self.owners: list[int | None] = [None] * self.count  # whose KV is in them, or was
        self.wipes.clear()

    def to_wipe(self) -> list[int]:
        """Take the frames that are to be zeroed off the list: the caller tells the driver."""
        wipes, self.wipes = self.wipes, []
        return wipes

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Recount from all page tables that map this pool; raises AssertionError on any difference."""
        counted, mapped = [0] * self.count, set[int]()
        for table in tables:
            mapped.update(table)
            for frame in table:
                counted[frame] += 1
        if counted != list(self.refs):
            wrong = [(f, self.refs[f], counted[f]) for f in range(self.count) if self.refs[f] != counted[f]]
            raise AssertionError(f"refcounts differ from mappings (frame, refs, mappings): {wrong[:8]}")
        free, cached, named = set(self._free), set().union(*self._cached), self.prefix.frames
        if self.payers.count(None) != self.count - len(mapped) or any(self.payers[frame] is None for frame in mapped):
            unpaid = [f for f in range(self.count) if (f in mapped) != (self.payers[f] is not None)]
            raise AssertionError(f"frames are mapped and not paid for, or the other way round: {unpaid[:8]}")
        if len(free) != len(self._free):
            raise AssertionError("a frame is free twice")
        taken = [0] * self.parts
        for part, frames in Counter(self._part[frame] for frame in mapped | cached).items():
            taken[part] = frames
        if taken != self._held or max(taken) > self.most:
            raise AssertionError(f"parts have {self._held} frames of {self.most} each; counted: {taken}")
        # Of all frames at once: the simulator asks after every event, and one by one would be half of its time.
        if len(mapped) + len(free) + len(cached) != self.count or mapped | free | cached != set(range(self.count)):
            states = [(f, f in mapped, f in free, f in cached) for f in range(self.count)]
            odd = [state for state in states if sum(state[1:]) != 1]
            raise AssertionError(f"not in one state (frame, mapped, free, cached): {odd[:8]}")
        if not free.isdisjoint(named):
            raise AssertionError(f"free frames have names: {sorted(free & named)[:8]}")
        if not cached <= named:
            raise AssertionError(f"cached frames have no name: {sorted(cached - named)[:8]}")
