"""The smallest kernel: hands out frames, keeps logs, and asks an engine for tokens, as a real one would.

Frames come in random order and are reused, so that nothing can rely on where a context lies.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmasos.drivers.cpu import open_device
from llmasos.drivers.device import Device
from llmasos.drivers.protocol import BLOCK_TOKENS, Copy, Load, Move, Run, RunResult, Sample, Step
from llmasos.syscalls.records import Sampler, TokenLogprobs

GREEDY = Sampler()
IMAGE = 3


def engine(directory: Path, dtype: str = "fp32", frames: int = 256) -> Device:
    """A CPU engine with one thread and one model, as image IMAGE."""
    device = open_device({"threads": "1", "dtype": dtype})
    device.fetch(Load(1, IMAGE, str(directory), "", frames), lambda fraction: None)()
    return device


@dataclass
class Process:
    """What the kernel knows of a process: its log, how far it is in KV, its frames, what the driver was told."""

    ctx: int
    log: list[int]
    sampler: Sampler = GREEDY
    computed: int = 0
    table: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # in the first lower tier, where its KV lies instead of in frames
    told: int = 0  # blocks of the table the driver knows
    knows_log: bool = False
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Feeder:
    """One engine and its processes."""

    def __init__(self, device: Device, frames: int = 256, seed: int = 0, ahead: int = 0, idle: bool = False) -> None:
        """`ahead`: tokens that the device may guess with each that is sampled. `idle`: between any two steps it has time
        to begin the next one early."""
        self.device = device
        self._idle = idle
        self._ahead = ahead
        self._random = random.Random(seed)
        self._free = list(range(frames))
        self._random.shuffle(self._free)
        self._users = dict.fromkeys(range(frames), 0)
        self._next = 1
        self._copies: list[Copy] = []
        self._outs: list[Move] = []
        self._ins: list[Move] = []
        self._places = 0

    def spawn(self, tokens: Sequence[int], sampler: Sampler = GREEDY) -> Process:
        process = Process(self._next, list(tokens), sampler)
        self._next += 1
        return process

    def fork(self, parent: Process, sampler: Sampler | None = None) -> Process:
        """A child that shares the full frames; the last partial one is copied."""
        child = self.spawn(parent.log, sampler or parent.sampler)
        child.computed = parent.computed
        full, rest = divmod(parent.computed, BLOCK_TOKENS)
        for frame in parent.table[:full]:
            self._users[frame] += 1
            child.table.append(frame)
        if rest:
            child.table.append(self._allocate())
            self._copies.append(Copy(IMAGE, parent.table[full], child.table[-1]))
        return child

    def preempt(self, process: Process) -> None:
        """Take all its frames; it is rebuilt from its log, in others."""
        self.device.drop([process.ctx])
        self._release(process)
        process.computed = process.told = 0
        process.knows_log = False

    def move_out(self, process: Process, tier: int = 1) -> None:
        """Move its KV to places of a tier in the next step; its frames are somebody else's at once."""
        for frame in process.table:
            self._outs.append(Move(IMAGE, process.ctx, frame, tier, self._places))
            process.places.append(self._places)
            self._places += 1
        self._release(process)
        process.told = 0

    def move_in(self, process: Process, tier: int = 1) -> None:
        """Have it back with the next step."""
        process.table = [self._allocate() for _ in process.places]
        self._ins += [
            Move(IMAGE, process.ctx, frame, tier, place)
            for frame, place in zip(process.table, process.places, strict=True)
        ]
        process.places = []

    def end(self, process: Process) -> None:
        self.device.drop([process.ctx])
        self._release(process)

    def truncate(self, process: Process, length: int) -> None:
        del process.log[length:]
        process.computed = min(process.computed, length - 1)

    def run(self, process: Process, count: int, logprobs: int = 0, append: bool = True) -> Run:
        """The next `count` tokens of a process as a run; samples where that completes the log."""
        position = process.computed
        tokens = process.log[position : position + count]
        end = position + len(tokens)
        ahead = self._ahead if append and not logprobs and end == len(process.log) else 0
        blocks = -(-(end + ahead) // BLOCK_TOKENS)
        while len(process.table) < blocks:
            process.table.append(self._allocate())
        keep = min(process.told, blocks)
        sample = Sample(process.sampler, end, append, logprobs) if end == len(process.log) else None
        history = None if process.knows_log else process.log[:position]
        process.computed, process.told, process.knows_log = end, blocks, True
        table = process.table[keep:blocks]
        return Run(process.ctx, IMAGE, position, tokens, keep, table, sample, history, ahead)

    def step(self, runs: Sequence[Run]) -> list[RunResult]:
        copies, self._copies = self._copies, []
        outs, self._outs = self._outs, []
        ins, self._ins = self._ins, []
        if self._idle:
            self.device.go_on(lambda: False)
        results = self.device.step(Step(1, list(runs), copies, outs, ins)).results
        assert [result.ctx for result in results] == [run.ctx for run in runs]
        return results

    def generate(
        self, processes: Sequence[Process], count: int, chunk: int | Sequence[int] = 64, logprobs: int = 0
    ) -> list[list[int]]:
        """Decode `count` tokens for each, all of them in the same steps; prompts in chunks of `chunk` tokens (a sequence:
        of those sizes in turn). Log-probabilities go to `Process.logprobs`."""
        sizes = [chunk] if isinstance(chunk, int) else list(chunk)
        made: dict[int, list[int]] = {process.ctx: [] for process in processes}
        turn = 0
        while waiting := [process for process in processes if len(made[process.ctx]) < count]:
            runs = []
            for process in waiting:
                runs.append(self.run(process, sizes[turn % len(sizes)], logprobs))
                turn += 1
            for process, run, result in zip(waiting, runs, self.step(runs), strict=True):
                assert not result.error, result.error
                if run.sample is not None:
                    process.computed += len(result.more)
                    for token in (result.token, *result.more):
                        process.log.append(token)
                        made[process.ctx].append(token)
                    if result.logprobs is not None:
                        process.logprobs.append(result.logprobs)
        return [made[process.ctx][:count] for process in processes]

    def _allocate(self) -> int:
        frame = self._free.pop(self._random.randrange(len(self._free)))
        self._users[frame] = 1
        return frame

    def _release(self, process: Process) -> None:
        for frame in process.table:
            self._users[frame] -= 1
            if self._users[frame] == 0:
                self._free.append(frame)
        process.table = []
