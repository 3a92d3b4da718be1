"""The memory of a simulated device: frames that record the computation instead of holding keys and values.

A slot of a frame holds the token that was computed there and the hash of the whole prefix up to it. So a frame that was
clobbered, handed out twice, not copied or kept wrongly can be told from the right one (running.py). `faults` lists
requests that a correct kernel does not make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmasos.drivers.protocol import Step, Wipe
from llmasos.drivers.sim.spec import DeviceSpec, ModelSpec


@dataclass(slots=True)
class Swapped:
    """A frame in the second tier."""

    ctx: int
    tokens: list[int]
    hashes: list[int]


@dataclass(slots=True)
class Image:
    model: ModelSpec
    frames: int
    root: int
    tokens: dict[int, list[int]] = field(default_factory=dict)  # frame -> the token in each slot written so far
    hashes: dict[int, list[int]] = field(default_factory=dict)  # frame -> the prefix hash in each of them
    slots: int = 0  # places in the second tier
    swapped: dict[int, Swapped] = field(default_factory=dict)  # place -> the frame that is there
    weights: int = 0  # bytes of them in memory; 0: none are


@dataclass(slots=True)
class Context:
    image: int
    table: list[int]
    log: list[int]
    chain: list[int]  # the prefix hash after each token of the log
    told: bool  # the log came from the kernel, not from the frames


class Memory:
    """All images and contexts, and the frames that move between the tiers."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.images: dict[int, Image] = {}
        self.contexts: dict[int, Context] = {}
        self.faults: list[str] = []
        self._spec = spec
        self._moved_out = self._moved_in = 0  # frames

    def unload(self, number: int) -> None:
        del self.images[number]
        for ctx in [ctx for ctx, context in self.contexts.items() if context.image == number]:
            del self.contexts[ctx]

    def drop(self, ctxs: Sequence[int]) -> None:
        gone = set(ctxs)
        for ctx in ctxs:
            self.contexts.pop(ctx, None)
        for image in self.images.values():
            image.swapped = {slot: held for slot, held in image.swapped.items() if held.ctx not in gone}

    def destroy(self, image: Image, request: Wipe) -> None:
        """Clear the frames and places of a process that is destroyed."""
        for frame in request.frames:
            image.tokens.pop(frame, None)
            image.hashes.pop(frame, None)
        for _, slot in request.places:
            image.swapped.pop(slot, None)

    def move_out(self, request: Step) -> list[int]:
        unwritten = []
        for number, move in enumerate(request.outs):
            image = self.images.get(move.image)
            if image is None or move.frame not in image.hashes or move.tier != 1 or not 0 <= move.slot < image.slots:
                self.faults.append(f"step {request.ref}: cannot move out {move}")
                continue
            self._moved_out += 1
            if self._spec.unwritten_every and self._moved_out % self._spec.unwritten_every == 0:
                image.swapped.pop(move.slot, None)
                unwritten.append(number)
                continue
            image.swapped[move.slot] = Swapped(move.ctx, list(image.tokens[move.frame]), list(image.hashes[move.frame]))
        return unwritten

    def move_in(self, request: Step) -> dict[int, int]:
        """Returns, for each context that has lost a frame, how many of its frames came before that."""
        arrived: dict[int, int] = {}
        lost: dict[int, int] = {}
        for move in request.ins:
            image = self.images.get(move.image)
            if image is None or move.tier != 1 or not 0 <= move.frame < image.frames:
                self.faults.append(f"step {request.ref}: cannot move in {move}")
                continue
            self._moved_in += 1
            held = image.swapped.get(move.slot)
            broken = self._spec.lose_every and self._moved_in % self._spec.lose_every == 0
            if held is not None and held.ctx != move.ctx:
                self.faults.append(f"step {request.ref}: place {move.slot} is of context {held.ctx}: {move}")
            if held is None or held.ctx != move.ctx or broken:
                lost.setdefault(move.ctx, arrived.get(move.ctx, 0))
                continue
            arrived[move.ctx] = arrived.get(move.ctx, 0) + 1
            image.tokens[move.frame], image.hashes[move.frame] = list(held.tokens), list(held.hashes)
        return lost

    def wipe(self, frames: Sequence[tuple[int, int]]) -> None:
        """Clear frames (image, frame)."""
        for number, frame in frames:
            image = self.images.get(number)
            if image is None or not 0 <= frame < image.frames:
                self.faults.append(f"cannot wipe frame {frame} of image {number}")
                continue
            image.tokens.pop(frame, None)
            image.hashes.pop(frame, None)

    def copy(self, request: Step) -> int:
        copied = 0
        for copy in request.copies:
            image = self.images.get(copy.image)
            if image is None or copy.src not in image.hashes or not 0 <= copy.dst < image.frames:
                self.faults.append(f"step {request.ref}: cannot copy {copy}")
                continue
            image.tokens[copy.dst] = list(image.tokens[copy.src])
            image.hashes[copy.dst] = list(image.hashes[copy.src])
            copied += image.model.frame_bytes
        return copied
