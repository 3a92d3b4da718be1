"""Moving KV frames between an image's slab and its lower tiers, as a step asks for it.

Frames that lie side by side on both ends move in one piece, and several threads move pieces at once: a disk, and the
encryption before it, are faster so.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import groupby

from llmasos.drivers.engine.image import Frames
from llmasos.drivers.engine.kv import Stretch
from llmasos.drivers.engine.swap import Lost, Places, at_once
from llmasos.drivers.protocol import Move
from llmasos.syscalls.errno import Errno, SyscallError

_TASKS = 16  # of the frames of a step that are moved
_log = logging.getLogger(__name__)


class Mover:
    """Moves frames of `images`, by number. Raises EINVAL for one that is not there."""

    def __init__(self, images: Mapping[int, Frames]) -> None:
        self._images = images
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "swap")

    @property
    def threads(self) -> Executor:
        return self._threads

    def out(self, moves: list[Move]) -> list[int]:
        """Move frames to lower tiers; returns the indices of those that could not be written."""

        def write(piece: list[Move]) -> str:
            places, frames = self._ends(piece)
            try:
                places.write(piece[0].ctx, piece[0].slot, frames)
            except OSError as error:
                return str(error)
            return ""

        pieces = self._pieces(moves)
        if len({(move.image, move.tier, move.slot) for move in moves}) == len(moves):
            failures = self._by_many(write, pieces)
        else:  # a place that is written twice: in their order
            failures = [write(piece) for piece in pieces]
        unwritten: list[int] = []
        number = 0
        for piece, failure in zip(pieces, failures, strict=True):
            if failure:
                unwritten += range(number, number + len(piece))
            number += len(piece)
        if unwritten:
            _log.warning("%d frames could not be moved out: %s", len(unwritten), next(filter(None, failures)))
        self._wait()
        return unwritten

    def back(self, moves: list[Move]) -> dict[int, int]:
        """Move frames back in; returns, for each context that has lost one, how many of its frames came before that."""

        def read(piece: list[Move]) -> str:
            places, frames = self._ends(piece)
            try:
                places.read(piece[0].ctx, piece[0].slot, frames)
            except Lost as error:
                return str(error)
            return ""

        pieces = self._pieces(moves)
        arrived: dict[int, int] = {}
        lost: dict[int, int] = {}
        gone: Counter[int] = Counter()
        reasons: dict[int, str] = {}
        for piece, failure in zip(pieces, self._by_many(read, pieces), strict=True):
            ctx = piece[0].ctx
            if failure:
                reasons.setdefault(ctx, failure)
                gone[ctx] += len(piece)
                lost.setdefault(ctx, arrived.get(ctx, 0))
            arrived[ctx] = arrived.get(ctx, 0) + len(piece)
        for ctx, reason in reasons.items():
            _log.warning("%d frames of context %d are lost: %s", gone[ctx], ctx, reason)
        self._wait()
        return lost

    def _by_many(self, work: Callable[[list[Move]], str], pieces: list[list[Move]]) -> list[str]:
        """The result of the work on each piece. Several pieces are one task: handing one over takes as long as moving a
        frame."""
        size = max(1, len(pieces) // _TASKS)
        tasks = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        done = self._threads.map(lambda task: [work(piece) for piece in task], tasks)
        return [failure for task in done for failure in task]

    def _pieces(self, moves: list[Move]) -> list[list[Move]]:
        """The moves in their order, in pieces that are one copy each."""
        return [
            piece
            for (image, tier), some in groupby(moves, key=lambda move: (move.image, move.tier))
            for piece in at_once(list(some), self._image(image).below[tier - 1].shelf)
        ]

    def _ends(self, piece: list[Move]) -> tuple[Places, Stretch]:
        """The places of a piece and its frames."""
        first = piece[0]
        image = self._image(first.image)
        return image.below[first.tier - 1], image.slab.some(first.frame, len(piece))

    def _image(self, number: int) -> Frames:
        if number not in self._images:
            raise SyscallError(Errno.EINVAL, f"no image {number} is loaded")
        return self._images[number]

    def _wait(self) -> None:
        """Wait until copies between the device and the host are done."""
        for image in self._images.values():
            image.slab.wait()
