"""System calls by their records, with a time; log-probabilities."""

from __future__ import annotations

from llmasos import System, aio
from llmasos.syscalls.records import DecodeResult, ReadResult
from llmasos.syscalls.table import Decode, Read, Spawn


def blocking(place: str) -> list[int]:
    with System.connect(place) as system:
        pid: int = system(Spawn(system.kernel.boot.default_model, [1, 2, 3]), timeout=60)
        ahead: DecodeResult = system(Decode(pid, 0, logprobs=3))
        read: ReadResult = system(Read(pid, 0))
        return [len(ahead.logprobs[0].top_ids), *read.tokens]


async def awaited(place: str) -> list[int]:
    async with aio.System.connect(place) as system:
        pid: int = await system(Spawn(system.kernel.boot.default_model, [1, 2, 3]), timeout=60)
        ahead: DecodeResult = await system(Decode(pid, 0, logprobs=3))
        read: ReadResult = await system(Read(pid, 0))
        return [len(ahead.logprobs[0].top_ids), *read.tokens]
