"""The frames of one model's KV on one device: how often each is mapped, which are free, which are kept for their prefix.

A frame is in exactly one of three states: mapped (refcount > 0), cached (refcount 0, but named in the prefix index and
therefore worth keeping), or free. `alloc` takes free frames first, then the cached one released longest ago; a process
releases its table from the tail, so a prefix loses its tail first and its shareable head last.

The control group of the process that mapped a frame first pays for it until no process maps it.

Entry points: alloc, share, release, private, and the index `prefix` of named frames; check() recounts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from llmasos.kernel.groups.group import Group
from llmasos.kernel.memory.prefix import PrefixIndex


class FramePool:
    """`count` frames of `frame_bytes` each, numbered from 0. Knows no process: callers keep the tables."""

    def __init__(self, count: int, frame_bytes: int = 0) -> None:
        self.count = count
        self.frame_bytes = frame_bytes
        self.payers: list[Group | None] = [None] * count  # of mapped frames
        self.prefix = PrefixIndex()
        self.reset()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def available(self) -> int:
        """Frames that `alloc` can give without taking any from a process."""
        return len(self._free) + len(self._cached)

    def alloc(self, payer: Group) -> int:
        """A frame with refcount 1 and no name. The caller has checked that one is `available`."""
        if self._free:
            frame = self._free.pop()
        elif self._cached:
            frame, _ = self._cached.popitem(last=False)
            self.prefix.unname(frame)
        else:
            raise AssertionError("extend without room: room() was not checked")
        self.refs[frame] = 1
        self.charge(frame, payer)
        return frame

    def share(self, frame: int, payer: Group) -> None:
        """One more mapping of a frame that is mapped (and paid for) or cached."""
        if self.refs[frame] == 0:
            del self._cached[frame]
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
                    self._cached[frame] = None
                else:
                    self._free.append(frame)

    def private(self, frame: int) -> bool:
        """Whether a frame has one mapping only, so that it may be written. Then it loses its name, which would not
        survive."""
        if self.refs[frame] != 1:
            return False
        self.prefix.unname(frame)
        return True

    @property
    def idle(self) -> list[int]:
        """The free frames, in which KV of any process may still be."""
        return list(self._free)

    def forget(self, frame: int) -> None:
        """A cached frame is free, and its KV is nobody's any more."""
        del self._cached[frame]
        self.prefix.unname(frame)
        self._free.append(frame)

    def reset(self) -> None:
        """The device has lost everything: all frames are free and nameless. The tables must be empty already."""
        for frame in range(self.count):
            self.charge(frame, None)
        self.refs = [0] * self.count
        self.prefix.clear()
        self._free = list(range(self.count - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Recount from all page tables that map this pool; raises AssertionError on any difference."""
        counted = [0] * self.count
        for table in tables:
            for frame in table:
                counted[frame] += 1
        if counted != self.refs:
            wrong = [(f, self.refs[f], counted[f]) for f in range(self.count) if self.refs[f] != counted[f]]
            raise AssertionError(f"refcounts differ from mappings (frame, refs, mappings): {wrong[:8]}")
        unpaid = [f for f in range(self.count) if (self.refs[f] > 0) != (self.payers[f] is not None)]
        if unpaid:
            raise AssertionError(f"frames are mapped and not paid for, or the other way round: {unpaid[:8]}")
        free, cached = set(self._free), set(self._cached)
        if len(free) != len(self._free):
            raise AssertionError("a frame is free twice")
        for frame, refs in enumerate(self.refs):
            if (refs == 0) != ((frame in free) + (frame in cached) == 1):
                raise AssertionError(f"frame {frame}: refs {refs}, free {frame in free}, cached {frame in cached}")
            if frame in free and frame in self.prefix:
                raise AssertionError(f"free frame {frame} has a name")
            if frame in cached and frame not in self.prefix:
                raise AssertionError(f"cached frame {frame} has no name")
