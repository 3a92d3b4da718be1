"""Lower tiers: where KV frames go while their contexts do not run.

A frame is contiguous, so it goes out and comes back in one piece. A tier below a GPU is host memory (host_places.py), one
below that, or below a CPU, is a swap file (disk_places.py). vLLM's and LMCache's offloading are the counterparts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from llmasos.drivers.engine.kv import Stretch
from llmasos.drivers.protocol import Move


class Lost(Exception):
    """A frame that was moved out cannot be read back."""


class Places(Protocol):
    """The places that one image has in a tier."""

    shelf: int
    """Places side by side: from a multiple of this up to the next, frames that lie side by side too move at once."""

    def write(self, ctx: int, slot: int, frames: Stretch) -> None:
        """Keep frames in the places from `slot` on, all of one shelf. Raises OSError; these places hold nothing then."""

    def read(self, ctx: int, slot: int, frames: Stretch) -> None:
        """Bring back the frames of this context. Raises Lost; the frames are undefined then."""

    def forget(self, ctx: int) -> None:
        """Forget the frames of a context: nobody will read them."""

    def wipe(self, slots: Sequence[int]) -> None:
        """Zero these places, which nobody has."""

    def close(self) -> None:
        """Let go of all places."""


Below = Callable[[int, Stretch], Places]
"""A lower tier, such as HostPlaces (host_places.py): makes an image's places in it, from their number and a frame like
those that will be written."""


def at_once(moves: Sequence[Move], shelf: int) -> list[list[Move]]:
    """Moves of one image and tier in pieces that `Places` take in one go."""
    pieces: list[list[Move]] = []
    for move in moves:
        last = pieces[-1][-1] if pieces else None
        if (
            last is not None
            and move.ctx == last.ctx
            and move.frame == last.frame + 1
            and move.slot == last.slot + 1
            and move.slot % shelf
        ):
            pieces[-1].append(move)
        else:
            pieces.append([move])
    return pieces
