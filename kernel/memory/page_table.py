"""A process's page table: which frame holds which 16 tokens of its context.

The rules of copy-on-write are here: full blocks are immutable and shared freely; the last, partial block is copied on the
first write after a fork. `sent` is how much of the table the driver knows, because a step carries only what has changed
since.

Invariant between steps: len(frames) == ceil(cached / BLOCK_TOKENS). While a step is in flight the table also covers
the tokens that step computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmasos.drivers.protocol import BLOCK_TOKENS
from llmasos.kernel.groups.group import Group
from llmasos.kernel.memory.frames import FramePool
from llmasos.kernel.memory.prefix import COMMON, Parent, root
from llmasos.kernel.memory.swap import Slot, SwapSpace
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.tokens import Log

NOWHERE = 1 << 62  # a block behind every log


def table_of(group: Group, owner: Owner) -> PageTable:
    """The empty table of a process of that owner which is born in a group. Where its blocks have their names stays as it
    is then, whatever group the process comes to."""
    return PageTable(group, COMMON if group.shares_prefixes else owner.salt, owner.salt, owner.part)


def blocks(tokens: int) -> int:
    """Blocks needed for this many tokens."""
    return -(-tokens // BLOCK_TOKENS)


@dataclass(slots=True, frozen=True)
class Kept:
    """The KV of a block's first `tokens` tokens lies in `slot`."""

    slot: Slot
    tokens: int


class _Nothing(dict[int, Kept]):
    """What all tables share that have nothing in lower tiers: it takes nothing."""

    __slots__ = ()

    def __setitem__(self, block: int, kept: Kept) -> None:
        raise TypeError(
            "it is shared by all page tables that have nothing in lower tiers; give this one a dict of its own"
        )

    def __reduce__(self) -> str:
        return "_NOTHING"  # copies are this one


_NOTHING = _Nothing()


class PageTable:
    """Frames of one context in one pool; `cached` is the number of leading tokens whose KV they hold.

    `kept` has the blocks, by number, whose KV lies in a lower tier, whether or not the block has a frame as well. It
    always matches the log. `group` pays for the frames and places of the table. `owner` is the salt of the owner of its
    KV, `salt` that under which its blocks are found.

    From block `alien` on the KV came from a file that nobody vouches for, or was computed from such KV: its names hang on
    the root `apart`, where only this process and its forks look.
    """

    __slots__ = ("alien", "apart", "cached", "chain", "frames", "group", "kept", "owner", "part", "salt", "sent")

    def __init__(self, group: Group, salt: int = 0, owner: int | None = None, part: int = 0) -> None:
        self.group = group
        self.part = part  # of the pool, from which its frames are
        self.owner = salt if owner is None else owner
        self.alien, self.apart = NOWHERE, 0
        self.frames: list[int] = []
        self.cached = 0
        self.chain: list[int] | tuple[()] = ()  # serials of the leading full blocks that went through the prefix index
        self.sent = 0  # leading frames the driver knows
        self.salt = salt
        self.kept: dict[int, Kept] = _NOTHING

    def fork(self, pool: FramePool, group: Group, owner: Owner | None = None) -> PageTable:
        """A copy that shares every frame, for a child of `owner` (None: the same); the driver knows nothing of it yet.
        The places in lower tiers stay the parent's. Where the child's blocks have their names elsewhere, as those of
        another owner have who does not share them, it has nothing."""
        child = self.like(group) if owner is None else table_of(group, owner)
        if child.salt != self.salt:
            return child
        child.alien, child.apart = self.alien, self.apart
        child.frames = self.frames.copy()
        child.cached = self.cached
        child.chain = self.chain[:]
        pool.share_mapped(child.frames)
        return child

    def like(self, group: Group) -> PageTable:
        """An empty table for the same KV, elsewhere."""
        other = PageTable(group, self.salt, self.owner, self.part)
        other.alien, other.apart = self.alien, self.apart
        return other

    def distrust(self, block: int, apart: int) -> None:
        """Nobody vouches for the KV from this block on."""
        self.alien, self.apart = block, apart
        self._forget_alien()

    def _forget_alien(self) -> None:
        """Once no such KV is left, what is computed again is like any other."""
        if self.cached <= self.alien * BLOCK_TOKENS and all(block < self.alien for block in self.kept):
            self.alien = NOWHERE

    @property
    def sound(self) -> int:
        """Of how many leading tokens the KV is what this kernel's drivers have computed."""
        return self.alien * BLOCK_TOKENS

    @property
    def _parent(self) -> Parent:
        """Of the block after those of `chain`."""
        if len(self.chain) == self.alien:
            return root(self.salt, self.apart)
        return self.chain[-1] if self.chain else root(self.salt)

    def reuse(self, pool: FramePool, log: Log) -> int:
        """Map frames of equal blocks that are computed already; returns the number of tokens gained. Stops where the
        group would have to pay for a frame and may not have more.

        Only at a block boundary, and never the last token of the log: its logits are wanted, so it is computed.
        """
        at = self.cached
        if at % BLOCK_TOKENS or len(self.chain) * BLOCK_TOKENS != at:
            return 0
        gained = 0
        while at + BLOCK_TOKENS < len(log):
            hit = pool.prefix.find(self._parent, log[at : at + BLOCK_TOKENS].tobytes())
            if hit is None:
                break
            serial, frame = hit
            if pool.refs[frame] == 0 and self.group.kv_room()[0] < pool.frame_bytes:
                break
            pool.share(frame, self.group)
            self.frames.append(frame)
            self.chain = chain = self.chain or []
            chain.append(serial)
            at += BLOCK_TOKENS
            gained += BLOCK_TOKENS
        self.cached = at
        return gained

    def move_out(self, pool: FramePool, space: SwapSpace) -> list[tuple[int, Slot]]:
        """Find places for the blocks that no other table maps; returns (frame, slot) of those to be written. Blocks
        without a place are computed again later; so are shared blocks, if the others have let go of them by then. Call
        `cut` next."""
        moves = []
        for block, frame in enumerate(self.frames[: blocks(self.cached)]):
            held = min(BLOCK_TOKENS, self.cached - block * BLOCK_TOKENS)
            kept = self.kept.get(block)
            if pool.refs[frame] > 1 or (kept is not None and kept.tokens >= held):
                continue
            slot = kept.slot if kept is not None else self._place(space)
            if slot is None:
                break
            if not self.kept:
                self.kept = {}
            self.kept[block] = Kept(slot, held)
            moves.append((frame, slot))
        return moves

    def _place(self, space: SwapSpace) -> Slot | None:
        slot = space.take() if space.free and self.group.may_swap(space.frame_bytes) else None
        if slot is not None:
            self.group.charge_swap(space.frame_bytes)
        return slot

    @property
    def clean(self) -> int:
        """Cached tokens whose KV lies in a lower tier too."""
        return sum(kept.tokens for block, kept in self.kept.items() if block < len(self.frames))

    def returning(self, length: int) -> int:
        """How many of the next tokens of a log of `length` can be moved in from a lower tier; never the last one, whose
        logits are wanted."""
        if not self.kept or self.cached % BLOCK_TOKENS:
            return 0
        tokens = sum(kept.tokens for kept in self._following())
        return max(0, min(tokens, length - 1 - self.cached))

    def _following(self) -> Iterator[Kept]:
        """The blocks in lower tiers that follow the cached tokens, up to the first gap."""
        block, partial = divmod(self.cached, BLOCK_TOKENS)
        while not partial and (kept := self.kept.get(block)) is not None:
            yield kept
            block += 1
            partial = kept.tokens < BLOCK_TOKENS

    def move_in(self, pool: FramePool, tokens: int) -> list[tuple[int, Slot]]:
        """Take frames for the next `tokens` tokens, as many as `returning` said; the caller has checked `room`. Returns
        (frame, slot) of each. They count as cached from here on, but get their names only in `computed`."""
        slots = [self.kept[block].slot for block in range(len(self.frames), blocks(self.cached + tokens))]
        frames = self._grow(pool, len(slots))
        self.cached += tokens
        return list(zip(frames, slots, strict=True))

    def bring(self, pool: FramePool, tokens: int) -> list[int]:
        """Take frames at a block boundary for up to `tokens` tokens whose KV comes from elsewhere, as far as there are
        frames and the group may have them. They count as cached from here on, but get their names only in `computed`."""
        size, group = self.group.kv_room()
        count = min(blocks(tokens), pool.available_to(self.part))
        if group is not None:
            count = min(count, size // pool.frame_bytes)
        self.cached += min(tokens, count * BLOCK_TOKENS)
        return self._grow(pool, count)

    def stored(self) -> tuple[int, list[int], list[Slot]]:
        """The KV of the log from its start up to the first gap: the number of tokens, their frames, and the places in
        lower tiers after them."""
        behind = list(self._following())
        tokens = self.cached + sum(kept.tokens for kept in behind)
        return tokens, self.frames[: blocks(self.cached)], [kept.slot for kept in behind]

    def trim(self, space: SwapSpace, tokens: int) -> None:
        """The log has been cut to `tokens` tokens: drop the places of the rest."""
        for block in [block for block in self.kept if (block + 1) * BLOCK_TOKENS > tokens]:
            left = tokens - block * BLOCK_TOKENS
            if left > 0:
                self.kept[block] = Kept(self.kept[block].slot, min(left, self.kept[block].tokens))
            else:
                self.drop_place(space, block)

    def drop_place(self, space: SwapSpace, block: int) -> None:
        """The KV of this block in a lower tier, if there is any, is useless now: give its place back."""
        kept = self.kept.pop(block, None)
        if kept is not None:
            space.give(kept.slot)
            self.group.charge_swap(-space.frame_bytes)
            if self.alien < NOWHERE:
                self._forget_alien()

    def unwritten(self, space: SwapSpace, slot: Slot) -> None:
        """The write to `slot` failed: drop it if this table still owns it."""
        for block in [block for block, kept in self.kept.items() if kept.slot == slot]:
            self.drop_place(space, block)

    def room(self, pool: FramePool) -> int:
        """How many tokens can be computed with the frames that are available now, counting a copy of a shared last
        block."""
        return self._room(pool, pool.available_to(self.part))

    def room_of_group(self, pool: FramePool) -> tuple[int, Group | None]:
        """The same with the frames that the group may have; and which group limits it."""
        size, group = self.group.kv_room()
        return self._room(pool, size // pool.frame_bytes if group is not None else 1 << 40), group

    def _room(self, pool: FramePool, available: int) -> int:
        frames = len(self.frames) + available
        if self.cached % BLOCK_TOKENS and pool.refs[self.frames[self.cached // BLOCK_TOKENS]] > 1:
            if available == 0:
                return 0
            frames -= 1
        return frames * BLOCK_TOKENS - self.cached

    def extend(self, pool: FramePool, tokens: int) -> tuple[int, int] | None:
        """Make room for `tokens` more; the caller has checked `room`.

        Returns (source, destination) if the last block must be copied on the device first.
        """
        copied: tuple[int, int] | None = None
        index = self.cached // BLOCK_TOKENS
        if self.cached % BLOCK_TOKENS and not pool.private(self.frames[index], self.owner):
            copied = (self.frames[index], pool.alloc(self.group, self.owner, self.part, whole=True))
            pool.release((copied[0],))
            self.frames[index] = copied[1]
            self.sent = min(self.sent, index)
        self._grow(pool, blocks(self.cached + tokens) - len(self.frames))
        return copied

    def _grow(self, pool: FramePool, count: int) -> list[int]:
        """Take `count` more frames; returns them."""
        frames = [pool.alloc(self.group, self.owner, self.part) for _ in range(count)]
        self.frames += frames
        return frames

    def computed(self, pool: FramePool, log: Log, tokens: int) -> None:
        """A step has computed `tokens` more; blocks that became full get their names."""
        self.cached += tokens
        while (len(self.chain) + 1) * BLOCK_TOKENS <= self.cached:
            at = len(self.chain) * BLOCK_TOKENS
            block = log[at : at + BLOCK_TOKENS].tobytes()
            self.chain = chain = self.chain or []
            chain.append(pool.prefix.name(self._parent, block, self.frames[len(self.chain)]))

    def cut(self, pool: FramePool, tokens: int) -> None:
        """Keep the first `tokens` tokens only (or what is cached, if that is less)."""
        self.cached = min(self.cached, tokens)
        keep = blocks(self.cached)
        pool.release(reversed(self.frames[keep:]))
        del self.frames[keep:]
        if self.chain:
            del self.chain[self.cached // BLOCK_TOKENS :]
        self.sent = min(self.sent, keep)
        if self.alien < NOWHERE:
            self._forget_alien()

    def move_to(self, group: Group, pool: FramePool, space: SwapSpace) -> None:
        """From here on `group` pays for the places, and for the frames that no other table maps."""
        pool.move(self.frames, group)
        size = len(self.kept) * space.frame_bytes
        self.group.charge_swap(-size)
        group.charge_swap(size)
        self.group = group

    def hand_over(self, pool: FramePool, group: Group) -> None:
        """From here on `group` pays for what the present one pays for, from the front, as far as its limits allow. The
        frames behind that are released."""
        payer, self.group = self.group, group
        for block, frame in enumerate(self.frames):
            if pool.payers[frame] is payer:
                if group.kv_room()[0] < pool.frame_bytes:
                    self.cut(pool, block * BLOCK_TOKENS)
                    return
                pool.charge(frame, group)

    def clear(self, space: SwapSpace) -> None:
        """The device has lost its memory: clear frames and places, and release nothing."""
        self.frames.clear()
        self.chain = ()
        self.group.charge_swap(-len(self.kept) * space.frame_bytes)
        self.kept = _NOTHING
        self.cached = self.sent = 0
        self.alien = NOWHERE

    def check(self, length: int, in_step: int) -> None:
        """It covers exactly the cached tokens and those of the step in flight, of a log of `length` tokens."""
        tokens = self.cached + in_step
        assert len(self.frames) == blocks(tokens), f"{len(self.frames)} frames for {tokens} tokens"
        assert len(set(self.frames)) == len(self.frames), "a frame is mapped twice"
        assert self.sent <= len(self.frames), "more frames are sent than there are"
        for block, kept in self.kept.items():
            assert 0 < kept.tokens <= length - block * BLOCK_TOKENS, f"block {block} in a lower tier is beyond the log"
