"""Process images of a simulated device: tokens and hashes of frames to a file and back (drivers/checkpoint.py)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from llmasos.drivers import checkpoint
from llmasos.drivers.checkpoint_file import Reader
from llmasos.drivers.protocol import BLOCK_TOKENS, Export, Exported, Import, Imported
from llmasos.drivers.seals import Damaged
from llmasos.drivers.sim.memory import Image, Memory
from llmasos.syscalls.errno import SyscallError

_BLOCK = struct.Struct(f"<I{BLOCK_TOKENS}I{BLOCK_TOKENS}Q")  # slots written, their tokens, their hashes


def _way(image: Image, arithmetic: str) -> dict[str, str]:
    return {"model": image.model.name, "weights": image.model.dtype, "engine": arithmetic}


def export(request: Export, memory: Memory, arithmetic: str, tick: Callable[[], None]) -> Callable[[], Exported]:
    """Copy the frames; the function that is returned writes them."""
    if not request.image:
        return lambda: checkpoint.save(request, {}, 0, [], "", tick)
    image = memory.images[request.image]
    parts, reason = [], ""
    for frame in request.frames:
        if frame not in image.hashes:
            memory.faults.append(f"export {request.ref}: frame {frame} holds nothing")
        parts.append(_packed(image.tokens.get(frame, []), image.hashes.get(frame, [])))
    for _, slot in request.places:
        held = image.swapped.get(slot)
        if held is None or held.ctx != request.ctx:
            reason = f"place {slot} holds nothing of context {request.ctx}"
            break
        parts.append(_packed(held.tokens, held.hashes))
    way = _way(image, arithmetic)
    return lambda: checkpoint.save(request, way, _BLOCK.size, parts, reason, tick)


def read(request: Import, memory: Memory, arithmetic: str) -> Imported:
    """Read KV into frames."""
    image = memory.images[request.image]
    memory.wipe([(request.image, frame) for frame in request.wipes])
    try:
        with Reader(request.path, request.key, request.seal) as file:
            if reason := checkpoint.mistrust(file, request, _way(image, arithmetic), _BLOCK.size):
                return checkpoint.nothing_imported(request, reason)
            failures = [_fetch(request, image, file, i) for i in range(len(request.frames))]
            return checkpoint.imported(request, failures, file)
    except SyscallError as error:
        return checkpoint.nothing_imported(request, error.reason)


def _fetch(request: Import, image: Image, file: Reader, number: int) -> str:
    packed, frame = bytearray(_BLOCK.size), request.frames[number]
    image.tokens.pop(frame, None)
    image.hashes.pop(frame, None)
    try:
        file.read(request.first + number, memoryview(packed))
    except Damaged as error:
        return str(error)
    count, *both = _BLOCK.unpack(packed)
    image.tokens[frame], image.hashes[frame] = both[:count], both[BLOCK_TOKENS:][:count]
    return ""


def _packed(held: list[int], hashes: list[int]) -> bytes:
    """A frame as bytes."""
    rest = [0] * (BLOCK_TOKENS - len(held))
    return _BLOCK.pack(len(held), *held, *rest, *hashes, *rest)
