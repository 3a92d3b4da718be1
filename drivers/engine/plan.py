"""One step's batch for one image: which rows stand where, where their KV goes, and what each of them attends to.

Tokens of all runs are packed into rows, as in vLLM's and Orca's continuous batching; nothing is padded but by a few rows.
Runs of a few tokens (decodes) become *decode rows*, sorted by length and attended in groups; longer ones (prompt
chunks) become *segments*, each attended alone.

Noninterference demands that a row's bits do not depend on its neighbours or on chunking. So the padding of a row's keys
depends on its own length only; sliding windows start at multiples of SPLIT (the KV tile of the attention kernel), so
tiles are the same whatever the chunk; and in fp32, whose matrix product sums 384 and more keys in another order than 256,
lengths up to SMALL are computed apart from longer ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.torch_kv import TorchSlab
from llmasos.drivers.protocol import BLOCK_TOKENS, Run

SEGMENT_TOKENS = 4  # a run of at least this many is a segment of its own
SPLIT = 512  # keys the attention kernel takes at a time
SMALL = 256  # keys up to which all products sum in the same order
_SPLIT_BLOCKS, _SMALL_BLOCKS = SPLIT // BLOCK_TOKENS, SMALL // BLOCK_TOKENS
_MINUS_INFINITY = float("-inf")


@dataclass(slots=True)
class Group:
    """Rows `first:last` attend together over `keys` keys; `mask` (0 or -inf, fp32) hides some from each row.

    A decode group has a context per row: `mask` [rows, 1, 1, keys]. A segment has one context: `mask`
    [1, 1, rows, keys]. `index` gathers K and V out of `TorchSlab.block_rows`.
    """

    first: int
    last: int
    decode: bool
    keys: int
    index: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True)
class Plan:
    """The batch. `last_row[i]` is the row of run i's last token; rows from `rows` up to `padded` are padding."""

    rows: int
    padded: int
    tokens: torch.Tensor  # [1, padded]
    positions: torch.Tensor  # [1, padded]
    kv_index: torch.Tensor  # rows of TorchSlab.token_rows, [rows * heads]
    groups: dict[int | None, list[Group]]  # by sliding window
    last_row: list[int]


@dataclass(slots=True)
class _Span:
    """Consecutive tokens `first:last` of one run."""

    run: int
    first: int
    last: int


def padded_blocks(blocks: int, start: int, fine: bool) -> int:
    """Blocks to gather for a row whose keys are `start:blocks`: never fewer than that, and a function of
    the row's own length. `fine`: sums are known not to depend on padding (16-bit types), so pad little."""
    if blocks > _SMALL_BLOCKS and not fine:
        return -(-blocks // _SPLIT_BLOCKS) * _SPLIT_BLOCKS - start
    wanted, size = blocks - start, 4
    while size < wanted:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def build(runs: list[Run], contexts: list[Context], slab: TorchSlab, windows: list[int | None], row_unit: int) -> Plan:
    """The batch of `runs` (contexts in the same order, already told of them). Rows are padded to a
    multiple of `row_unit`."""
    decodes: list[_Span] = []
    segments: list[_Span] = []
    for i, run in enumerate(runs):
        count = len(run.tokens)
        if count < SEGMENT_TOKENS:
            decodes.extend(_Span(i, t, t + 1) for t in range(count))
            continue
        cut = SMALL - run.position
        if 0 < cut < count:
            segments += [_Span(i, 0, cut), _Span(i, cut, count)]
        else:
            segments.append(_Span(i, 0, count))
    decodes.sort(key=lambda span: runs[span.run].position + span.first)
    spans = decodes + segments

    tokens: list[int] = []
    positions: list[int] = []
    frames: list[int] = []
    last_row = [0] * len(runs)
    for span in spans:
        run, table = runs[span.run], contexts[span.run].table
        tokens += run.tokens[span.first : span.last]
        at = range(run.position + span.first, run.position + span.last)
        positions += at
        frames += [table[p // BLOCK_TOKENS] for p in at]
        if span.last == len(run.tokens):
            last_row[span.run] = len(tokens) - 1
    rows = len(tokens)
    padding = [0] * (-rows % row_unit)
    offsets = torch.tensor([p % BLOCK_TOKENS for p in positions])
    device = slab.data.device
    return Plan(
        rows=rows,
        padded=rows + len(padding),
        tokens=torch.tensor([tokens + padding]).to(device),
        positions=torch.tensor([positions + padding]).to(device),
        kv_index=slab.token_index(torch.tensor(frames), offsets).to(device),
        groups={window: _groups(spans, len(decodes), runs, contexts, slab, window) for window in windows},
        last_row=last_row,
    )


def _groups(
    spans: list[_Span],
    decodes: int,
    runs: list[Run],
    contexts: list[Context],
    slab: TorchSlab,
    window: int | None,
) -> list[Group]:
    fine = slab.dtype.itemsize == 2

    def reach(span: _Span) -> tuple[int, int, int]:
        """First block to gather, how many, and how many of them there are."""
        run = runs[span.run]
        first_hidden = run.position + span.first + 1 - window if window else 0
        start = max(0, first_hidden) // SPLIT * _SPLIT_BLOCKS
        blocks = -(-(run.position + span.last) // BLOCK_TOKENS)
        return start, padded_blocks(blocks, start, fine), blocks

    groups: list[Group] = []
    row = 0
    shaped = [(reach(span), span) for span in spans[:decodes]]
    for size, members in groupby(shaped, key=lambda item: item[0][1]):
        listed = list(members)
        table = np.empty((len(listed), size), dtype=np.int64)
        bounds = np.empty((2, len(listed), 1), dtype=np.int64)  # of the visible keys, counted from the first gathered
        for i, ((start, _, blocks), span) in enumerate(listed):
            _fill(table[i], contexts[span.run], start, blocks)
            length = runs[span.run].position + span.last
            bounds[1, i] = length - start * BLOCK_TOKENS
            bounds[0, i] = max(0, length - window) - start * BLOCK_TOKENS if window else 0
        key = np.arange(size * BLOCK_TOKENS)
        mask = np.where((key >= bounds[0]) & (key < bounds[1]), np.float32(0), np.float32(_MINUS_INFINITY))
        groups.append(_group(slab, row, len(listed), True, size, table, mask[:, None, None]))
        row += len(listed)
    for span in spans[decodes:]:
        start, size, blocks = reach(span)
        table = np.empty((1, size), dtype=np.int64)
        _fill(table[0], contexts[span.run], start, blocks)
        run = runs[span.run]
        position = np.arange(run.position + span.first, run.position + span.last)[:, None]
        key = np.arange(size * BLOCK_TOKENS) + start * BLOCK_TOKENS
        visible = key <= position
        if window:
            visible &= key > position - window
        mask = np.where(visible, np.float32(0), np.float32(_MINUS_INFINITY))
        groups.append(_group(slab, row, len(position), False, size, table, mask[None, None]))
        row += len(position)
    return groups


def _fill(into: np.ndarray, context: Context, start: int, blocks: int) -> None:
    """Block table entries start:blocks, then the first of them again: padding reads the context's own frames."""
    table = np.frombuffer(context.table, dtype=np.int64)[start:blocks]
    into[: len(table)] = table
    into[len(table) :] = table[0]


def _group(slab: TorchSlab, row: int, count: int, decode: bool, size: int, table: np.ndarray, mask: np.ndarray) -> Group:
    device = slab.data.device
    index = slab.block_index(torch.from_numpy(table)).to(device)
    return Group(row, row + count, decode, size * BLOCK_TOKENS, index, torch.from_numpy(mask).to(device))
