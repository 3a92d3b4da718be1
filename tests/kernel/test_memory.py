"""Frames, page tables and prefix names as a hypothesis state machine, against a model that knows only contents.

The model keeps, for every frame, what a device would hold in it, and for every context its log. Whatever is allocated,
shared, copied on write, freed, found by prefix or evicted: a table's frames always hold the context's own tokens, and
refcounts equal a recount of all tables.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmasos.drivers.protocol import BLOCK_TOKENS
from llmasos.kernel.groups.group import Group
from llmasos.kernel.memory.frames import FramePool
from llmasos.kernel.memory.page_table import PageTable, blocks
from llmasos.kernel.memory.prefix import PrefixIndex, root
from llmasos.kernel.memory.swap import SwapSpace
from llmasos.kernel.tokens import Log, log_of

FRAMES = 10

which = st.integers(0, 1 << 16)
stretches = st.lists(st.integers(0, 1), max_size=20) | st.sampled_from([[0] * 16, [0] * 32, [1] * 16, [0] * 40])


GROUP = Group()
FRAME_BYTES = 7


class Context:
    def __init__(self, table: PageTable, log: Log) -> None:
        self.table, self.log = table, log


class Memory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = FramePool(FRAMES, FRAME_BYTES)
        self.group = Group()
        self.contexts: list[Context] = []
        self.held: dict[int, list[tuple[int, ...]]] = {}  # frame -> for each slot, the whole prefix up to it

    def context(self, index: int) -> Context:
        return self.contexts[index % len(self.contexts)]

    @precondition(lambda self: len(self.contexts) < 6)
    @rule(log=stretches, salt=st.sampled_from([0, 0, 0, 7]))
    def spawn(self, log: list[int], salt: int) -> None:
        self.contexts.append(Context(PageTable(self.group, salt), log_of(log)))

    @precondition(lambda self: self.contexts)
    @rule(i=which, tokens=stretches)
    def feed(self, i: int, tokens: list[int]) -> None:
        self.context(i).log.extend(tokens)

    @precondition(lambda self: self.contexts)
    @rule(i=which)
    def find_prefix(self, i: int) -> None:
        context = self.context(i)
        table, before = context.table, context.table.cached
        gained = table.reuse(self.pool, context.log)
        assert table.cached == before + gained
        assert gained % BLOCK_TOKENS == 0
        assert table.cached < len(context.log) or gained == 0, "the last token is always computed"

    @precondition(lambda self: self.contexts)
    @rule(i=which, most=st.integers(1, 50))
    def compute(self, i: int, most: int) -> None:
        """A step: room is made, the device copies and writes, full blocks get names."""
        context = self.context(i)
        table = context.table
        tokens = min(most, len(context.log) - table.cached, table.room(self.pool))
        if tokens <= 0:
            return
        private_before = self.mappings()
        copied = table.extend(self.pool, tokens)
        if copied is not None:
            source, target = copied
            assert private_before.get(source, 0) > 1, "a frame of one mapping needs no copy"
            self.held[target] = list(self.held[source])
        first = table.cached // BLOCK_TOKENS
        others = [f for c in self.contexts if c is not context for f in c.table.frames]
        for frame in table.frames[first : blocks(table.cached + tokens)]:
            assert frame not in others, "a frame that others map too is written"
        for position in range(table.cached, table.cached + tokens):
            frame, slot = table.frames[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            self.held[frame] = [*self.held.get(frame, [])[:slot], (table.salt, *context.log[: position + 1])]
        table.computed(self.pool, context.log, tokens)

    @precondition(lambda self: 0 < len(self.contexts) < 6)
    @rule(i=which)
    def fork(self, i: int) -> None:
        parent = self.context(i)
        available = self.pool.available
        self.contexts.append(Context(parent.table.fork(self.pool, self.group), parent.log[:]))
        assert self.pool.available == available, "a fork takes no frame"

    @precondition(lambda self: self.contexts)
    @rule(i=which, length=st.integers(0, 60))
    def truncate(self, i: int, length: int) -> None:
        context = self.context(i)
        del context.log[length:]
        context.table.cut(self.pool, min(length, len(context.log)))

    @precondition(lambda self: self.contexts)
    @rule(i=which)
    def preempt(self, i: int) -> None:
        self.context(i).table.cut(self.pool, 0)

    @precondition(lambda self: self.contexts)
    @rule(i=which)
    def exit(self, i: int) -> None:
        context = self.context(i)
        context.table.cut(self.pool, 0)
        self.contexts.remove(context)

    @rule()
    def lose_everything(self) -> None:
        for context in self.contexts:
            context.table.clear(SwapSpace())
        self.pool.reset()
        self.held.clear()

    def mappings(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for context in self.contexts:
            for frame in context.table.frames:
                counts[frame] = counts.get(frame, 0) + 1
        return counts

    @invariant()
    def refcounts_are_a_recount(self) -> None:
        self.pool.check(c.table.frames for c in self.contexts)
        mapped = len(self.mappings())
        assert self.pool.free + self.pool.cached + mapped == FRAMES
        assert self.pool.available == FRAMES - mapped
        assert self.group.kv == FRAME_BYTES * mapped

    @invariant()
    def every_table_holds_its_own_context(self) -> None:
        for context in self.contexts:
            table = context.table
            assert len(table.frames) == blocks(table.cached)
            assert table.sent <= len(table.frames)
            for position in range(table.cached):
                held = self.held[table.frames[position // BLOCK_TOKENS]]
                wanted = (table.salt, *context.log[: position + 1])
                assert held[position % BLOCK_TOKENS] == wanted

    def teardown(self) -> None:
        for context in self.contexts:
            context.table.cut(self.pool, 0)
        self.pool.check([])
        assert self.pool.available == FRAMES


Memory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemory = Memory.TestCase


def test_freed_tails_are_taken_before_shareable_heads() -> None:
    pool, table, log = FramePool(4), PageTable(GROUP), log_of([0] * 49)
    table.extend(pool, 48)
    table.computed(pool, log, 48)
    head, middle, tail = table.frames
    table.cut(pool, 0)
    assert (pool.free, pool.cached) == (1, 3)
    taken = [pool.alloc(GROUP) for _ in range(3)]
    assert taken[1:] == [tail, middle]
    again = PageTable(GROUP)
    assert again.reuse(pool, log) == 16
    assert again.frames == [head]


def test_contexts_of_different_owners_never_share() -> None:
    pool, log = FramePool(8), log_of([0] * 33)
    mine = PageTable(GROUP, 1)
    mine.extend(pool, 32)
    mine.computed(pool, log, 32)
    assert PageTable(GROUP, 2).reuse(pool, log) == 0
    assert PageTable(GROUP, 1).reuse(pool, log) == 32


def test_a_name_dies_with_its_frame_and_its_children_cannot_be_reached_through_another() -> None:
    index = PrefixIndex()
    a, b = bytes(64), b"\1" * 64
    parent = index.name(root(0), a, 0)
    index.name(parent, b, 1)
    index.unname(0)
    assert index.find(root(0), a) is None
    other = index.name(root(0), a, 5)
    assert other != parent
    assert index.find(other, b) is None


def test_releasing_more_often_than_mapped_is_an_error_at_once() -> None:
    pool = FramePool(2)
    frame = pool.alloc(GROUP)
    pool.release([frame])
    with pytest.raises(AssertionError, match="more often than mapped"):
        pool.release([frame])


def test_extending_without_room_is_an_error_and_room_says_so() -> None:
    pool, table = FramePool(2), PageTable(GROUP)
    assert table.room(pool) == 32
    table.extend(pool, 30)
    table.computed(pool, log_of([0] * 30), 30)
    assert table.room(pool) == 2
    child = table.fork(pool, GROUP)
    assert child.room(pool) == 0, "the shared last block must be copied, and no frame is left for it"
    with pytest.raises(AssertionError, match="without room"):
        child.extend(pool, 1)


def _lose(pool: FramePool) -> None:
    pool._free.pop()


def _free_twice(pool: FramePool) -> None:
    pool._free.append(pool._free[0])


def _free_what_is_mapped(pool: FramePool) -> None:
    pool._free.append(0)


def _forget_the_payer(pool: FramePool) -> None:
    pool.payers[0] = None


def _have_nobodys_paid_for(pool: FramePool) -> None:
    pool.payers[pool._free[-1]] = GROUP


def _miscount_refs(pool: FramePool) -> None:
    pool.refs[0] += 1


def _miscount_a_part(pool: FramePool) -> None:
    pool._held[0] += 1


def _name_what_is_free(pool: FramePool) -> None:
    pool.prefix.name(root(0), bytes(4 * BLOCK_TOKENS), pool._free[-1])


def _keep_what_has_no_name(pool: FramePool) -> None:
    frame = pool._free.pop()
    pool._cached[0][frame] = None
    pool._held[0] += 1


def _take_one_that_is_not_there(pool: FramePool) -> None:
    pool._free[0] = FRAMES


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_lose, "not in one state"),
        (_free_twice, "free twice"),
        (_free_what_is_mapped, "not in one state"),
        (_forget_the_payer, "not paid for"),
        (_have_nobodys_paid_for, "not paid for"),
        (_miscount_refs, "refcounts differ"),
        (_miscount_a_part, "parts have"),
        (_name_what_is_free, "free frames have names"),
        (_keep_what_has_no_name, "have no name"),
        (_take_one_that_is_not_there, "not in one state"),
    ],
)
def test_a_recount_of_frames_finds_whatever_is_off(harm: Callable[[FramePool], None], said: str) -> None:
    pool = FramePool(FRAMES, FRAME_BYTES)
    frame = pool.alloc(GROUP)
    pool.check([[frame]])
    assert frame == 0
    harm(pool)
    with pytest.raises(AssertionError, match=said):
        pool.check([[frame]])
