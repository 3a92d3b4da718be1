"""Lower tiers: where KV frames go while their contexts do not run.

A frame is contiguous, so it goes out and comes back in one piece. In host memory (below a GPU's, host_places.py) it
lies as it is. On disk it is encrypted with AES-GCM under a key that only this process has and forgets with the context:
what is left in the file then is noise, and what has been changed there, or is not what was last written to its place, is
not taken back. The file has no name, so it is gone when the driver is, however it went. vLLM's and LMCache's offloading
are the counterparts.
"""

from __future__ import annotations

import itertools
import os
import secrets
import struct
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmasos.drivers.engine.kv import Stretch, bytes_of, fill
from llmasos.drivers.protocol import Move

_KEY_BITS = 256
_NONCE, _TAG = 12, 16  # bytes


class Lost(Exception):
    """What was moved out cannot be had back."""


class Places(Protocol):
    """The places that one image has in a tier."""

    shelf: int
    """Places side by side: from a multiple of this up to the next, frames that lie side by side too move at once."""

    def write(self, ctx: int, slot: int, frames: Stretch) -> None:
        """Keep frames in the places from `slot` on, all of one shelf. Raises OSError, and these places hold
        nothing then."""

    def read(self, ctx: int, slot: int, frames: Stretch) -> None:
        """Bring back what was written for this context. Raises Lost, and the frames are undefined then."""

    def forget(self, ctx: int) -> None:
        """Nobody will ask for what was written for this context."""

    def close(self) -> None:
        """Let go of all places."""


class SwapFile:
    """A file without a name, of at most `size` bytes; takes space as it is written."""

    def __init__(self, directory: Path, size: int) -> None:
        self.size = size
        directory.mkdir(parents=True, exist_ok=True)
        # TemporaryFile unlinks at once (O_TMPFILE where the system has it): no name, nothing to be left behind.
        with tempfile.TemporaryFile(dir=directory) as file:
            self.descriptor = os.dup(file.fileno())
        self.close = weakref.finalize(self, os.close, self.descriptor)
        self._regions: list[tuple[int, int]] = []  # (start, end), in order

    @property
    def room(self) -> int:
        """The longest stretch that `take` would give."""
        ends = [0, *(end for _, end in self._regions)]
        starts = [*(start for start, _ in self._regions), self.size]
        return max(start - end for start, end in zip(starts, ends, strict=True))

    def take(self, size: int) -> int:
        """The start of a stretch of the file that nobody else has. Raises MemoryError."""
        if not size:
            return self.size  # where no stretch begins, so that giving it back gives back no other
        start = 0
        for number, (taken, end) in enumerate([*self._regions, (self.size, self.size)]):
            if taken - start >= size:
                self._regions.insert(number, (start, start + size))
                return start
            start = end
        raise MemoryError(f"{size} bytes are not free in a swap file of {self.size}")

    def give(self, start: int) -> None:
        """Nobody uses the stretch from `start` any more."""
        self._regions = [region for region in self._regions if region[0] != start]


class DiskPlaces:
    """A stretch of a swap file. A place holds a nonce, the encrypted frame and its tag. Several threads may use them, a
    place only one at a time.

    Each write has a number, which is authenticated with the place and the context: a frame that is an older one, or
    another's, does not pass. The nonce is that number under a key of its own for each context, so none comes twice.
    """

    shelf = 1  # each frame is sealed, and lost, by itself

    def __init__(self, file: SwapFile, slots: int, frame_bytes: int) -> None:
        self._file = file
        self._stride = _NONCE + frame_bytes + _TAG
        self._slots = slots
        self._start = file.take(slots * self._stride)
        self._size = frame_bytes
        self._lock = Lock()
        self._keys: dict[int, AESGCM] = {}
        self._written: dict[int, tuple[int, int]] = {}  # place -> (context, number of the write)
        self._writes = itertools.count(1)

    @staticmethod
    def slots(size: int, frame_bytes: int) -> int:
        """How many places fit into `size` bytes."""
        return size // (_NONCE + frame_bytes + _TAG)

    def write(self, ctx: int, slot: int, frames: Stretch) -> None:
        for place, frame in enumerate(frames, slot):
            self._write(ctx, place, frame)

    def _write(self, ctx: int, slot: int, frame: Stretch) -> None:
        if not 0 <= slot < self._slots:
            raise OSError(f"the swap file has no place {slot}")
        with self._lock:
            self._written.pop(slot, None)
            if ctx not in self._keys:
                self._keys[ctx] = AESGCM(secrets.token_bytes(_KEY_BITS // 8))
            key, number = self._keys[ctx], next(self._writes)
        nonce = struct.pack("<4xQ", number)
        sealed = key.encrypt(nonce, bytes_of(frame), self._about(ctx, slot))
        done = os.pwritev(self._file.descriptor, [nonce, sealed], self._start + slot * self._stride)
        if done != _NONCE + len(sealed):
            raise OSError(f"of {_NONCE + len(sealed)} bytes {done} were written to the swap file")
        self._written[slot] = ctx, number

    def read(self, ctx: int, slot: int, frames: Stretch) -> None:
        for place, frame in enumerate(frames, slot):
            self._read(ctx, place, frame)

    def _read(self, ctx: int, slot: int, frame: Stretch) -> None:
        owner, number = self._written.get(slot, (-1, 0))
        if owner != ctx:
            raise Lost(f"place {slot} of the swap file holds nothing of context {ctx}")
        try:
            held = os.pread(self._file.descriptor, _NONCE + self._size + _TAG, self._start + slot * self._stride)
            nonce = struct.pack("<4xQ", number)
            if held[:_NONCE] != nonce:
                raise Lost(f"place {slot} of the swap file holds something else than was last written to it")
            plain = self._keys[ctx].decrypt(nonce, memoryview(held)[_NONCE:], self._about(ctx, slot))
        except (InvalidTag, ValueError):
            raise Lost(f"what lies in place {slot} of the swap file is damaged") from None
        except OSError as error:
            raise Lost(f"place {slot} of the swap file cannot be read: {error.strerror}") from None

        def put(into: memoryview) -> None:
            into[:] = plain

        fill(frame, put)

    def _about(self, ctx: int, slot: int) -> bytes:
        return struct.pack("<QQ", ctx, slot)

    def forget(self, ctx: int) -> None:
        if self._keys.pop(ctx, None) is not None:
            self._written = {slot: held for slot, held in self._written.items() if held[0] != ctx}

    def close(self) -> None:
        self._keys.clear()
        self._written.clear()
        self._file.give(self._start)


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


Below = Callable[[int, Stretch], Places]
"""A lower tier, such as HostPlaces (host_places.py): makes an image's places in it. How many, and a frame such as will
be written."""


def on_disk(file: SwapFile) -> Below:
    """A tier in a swap file; where that has less room than is asked for, the last places cannot be written."""

    def places(slots: int, frame: Stretch) -> Places:
        size = len(bytes_of(frame))
        return DiskPlaces(file, min(slots, DiskPlaces.slots(file.room, size)), size)

    return places
