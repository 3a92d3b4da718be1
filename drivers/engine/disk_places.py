"""KV frames in a swap file, encrypted with AES-GCM.

Only this process has the keys, one for each context, and it forgets a key with its context: the frames left in the file
are noise then. A frame that was changed there, or is not the last one written to its place, is not taken back.
"""

from __future__ import annotations

import itertools
import os
import secrets
import struct
from collections.abc import Sequence
from threading import Lock

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmasos.drivers.engine.kv import Stretch, bytes_of, fill
from llmasos.drivers.engine.swap import Below, Lost, Places
from llmasos.drivers.engine.swap_file import SwapFile

_KEY_BITS = 256
_NONCE, _TAG = 12, 16  # bytes


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

    def wipe(self, slots: Sequence[int]) -> None:
        """Nothing is left to do: with the key of its context a frame in the file is noise."""

    def close(self) -> None:
        self._keys.clear()
        self._written.clear()
        self._file.give(self._start)


def on_disk(file: SwapFile) -> Below:
    """A tier in a swap file; where that has less room than is asked for, the last places cannot be written."""

    def places(slots: int, frame: Stretch) -> Places:
        size = len(bytes_of(frame))
        return DiskPlaces(file, min(slots, DiskPlaces.slots(file.room, size)), size)

    return places
