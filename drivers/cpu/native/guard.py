"""What is used out of a model's file while it is in memory: is it still what was loaded?

Tables and streamed layers (stream.py) are mapped, so a file that somebody writes to changes under the model. Each step
looks, before and after it, at the file's size and times, which a write changes; that takes a microsecond. If they have
changed (another driver that loads the file touches it too) all that is mapped is summed up again. A fault of the disk
changes no times: where models have to be trusted (`[trust]`) each layer that is brought in again is held against its
SHA-256 as well, which was taken when it was loaded. The step of what is not as it was fails, so no token comes of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import xxhash

from llmasos.syscalls.errno import Errno, SyscallError

_PIECE = 1 << 20  # bytes read at a time
_log = logging.getLogger(__name__)


class Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Held:
    """A stretch of the file that is mapped. `layer`: -1: it is none."""

    at: int
    size: int
    total: int  # its checksum
    name: str
    layer: int = -1
    sha: bytes = b""  # its SHA-256, where models have to be trusted


def hashed(descriptor: int, at: int, size: int, make: Callable[[], Hash]) -> bytes:
    """The hash of a stretch of a file; empty: it is cut short. Raises OSError."""
    found, scratch = make(), memoryview(bytearray(min(_PIECE, max(1, size))))
    for piece in _pieces(size):
        count = os.preadv(descriptor, [scratch[: piece[1]]], at + piece[0])
        if count < piece[1]:
            return b""
        found.update(scratch[:count])
    return found.digest()


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(_PIECE, size - first)) for first in range(0, size, _PIECE))


class Guard:
    """Watches the file of one loaded model. `strict`: each layer that is brought in is looked at."""

    def __init__(self, descriptor: int, held: Sequence[Held], *, strict: bool = False) -> None:
        self._descriptor = os.dup(descriptor)
        self._path = os.path.realpath(f"/proc/self/fd/{self._descriptor}")
        self._held = held
        self._stamp = self._now()
        self._layers = {one.layer: one for one in held if one.layer >= 0}
        self.strict = strict
        self.trouble = ""

    def look(self) -> None:
        """Raises SyscallError EIO: something is not as it was loaded."""
        try:
            if not self.trouble and (now := self._now()) != self._stamp:
                self._stamp = now
                for one in self._held:
                    self._check(one, one.total.to_bytes(8, "big"), xxhash.xxh3_64)
        except OSError as error:
            self._fail(error.strerror or str(error))
        if self.trouble:
            raise SyscallError(Errno.EIO, self.trouble)

    def brought_in(self, layer: int) -> None:
        """A layer has been read anew. `look` tells what is wrong."""
        if self.strict and (one := self._layers.get(layer)) is not None:
            try:
                self._check(one, one.sha, hashlib.sha256)
            except OSError as error:
                self._fail(error.strerror or str(error))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _now(self) -> tuple[int, int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def _check(self, one: Held, wanted: bytes, make: Callable[[], Hash]) -> None:
        if not self.trouble and hashed(self._descriptor, one.at, one.size, make) != wanted:
            self._fail(f"its {one.name} is not what was loaded")

    def _fail(self, why: str) -> None:
        self.trouble = (
            f"{self._path} has changed under the model: {why}; `evict` the model, and it is made anew of its own files"
        )
        _log.error("%s", self.trouble)
