"""An entry of a file of keys: a wrapped key, whose it is and what it is for. `docs/seal.md` gives its bytes.

Entries have 128 bytes each, so that none is ever in two sectors of a disk, and one that is written over is gone at once;
a longer text goes on in entries behind it.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FREE, OWNER, PROCESS, JOURNAL, IMAGE, TEXT, ROOT = range(7)
ABOVE = frozenset({OWNER, ROOT})  # kinds of keys that wrap others
SLOT_BYTES = 128
MAGIC = b"LLMasOSk"
VERSION = 1
_HEAD = struct.Struct("<8sI4x8s")
_SLOT = struct.Struct("<BxH4x8s8sQ12s48sQ")  # kind, slots of text, name, parent's name, pid, nonce, wrapped key, check
_ABOUT = struct.Struct("<B8s8sQ")
_NAME_AT = 8  # in a slot
_LETTERS = SLOT_BYTES - 2  # of text in a slot


@dataclass(slots=True)
class Slot:
    """`at`: its place in the file, in bytes."""

    kind: int
    name: bytes
    parent: bytes
    pid: int
    nonce: bytes
    wrapped: bytes
    text: str
    at: int = 0

    @property
    def slots(self) -> int:
        return 1 + -(-len(self.text.encode()) // _LETTERS)

    def packed(self) -> bytes:
        text = self.text.encode()
        pieces = [text[at : at + _LETTERS] for at in range(0, len(text), _LETTERS)]
        head = _SLOT.pack(self.kind, len(pieces), self.name, self.parent, self.pid, self.nonce, self.wrapped, 0)
        check = xxhash.xxh3_64_intdigest(head[:-8] + text)
        start = (head[:-8] + struct.pack("<Q", check)).ljust(SLOT_BYTES, b"\0")
        return start + b"".join((bytes([TEXT, len(piece)]) + piece).ljust(SLOT_BYTES, b"\0") for piece in pieces)

    def key(self, under: AESGCM) -> bytes:
        """The key that is wrapped in it. Raises InvalidTag: it is not what was written, or under another key."""
        return under.decrypt(self.nonce, self.wrapped, _ABOUT.pack(self.kind, self.name, self.parent, self.pid))


def wrapping(
    key: bytes | memoryview, kind: int, name: bytes, parent: bytes, under: AESGCM, pid: int = 0, text: str = ""
) -> Slot:
    """A slot for a key, wrapped under that of its parent."""
    nonce = secrets.token_bytes(12)
    wrapped = under.encrypt(nonce, key, _ABOUT.pack(kind, name, parent, pid))
    return Slot(kind, name, parent, pid, nonce, wrapped, text)


def head() -> bytes:
    """What a file begins with."""
    return _HEAD.pack(MAGIC, VERSION, b"").ljust(SLOT_BYTES, b"\0")


def is_head(data: bytes) -> bool:
    magic, version, _ = _HEAD.unpack_from(data.ljust(_HEAD.size, b"\0"))
    return bool(magic == MAGIC and version == VERSION)


def is_blank(data: bytes) -> bool:
    """Whether a file has nothing but zeros, and at most a head that went astray."""
    return not data.replace(head(), b"").strip(b"\0")


def length(data: bytes) -> int:
    """Bytes of the entry that begins there, if one does."""
    return SLOT_BYTES * (1 + int(_SLOT.unpack_from(data)[1]))


def parsed(data: bytes, at: int, start: int) -> Slot | None:
    """The entry at `at` of what is in the file from `start` on; None: none begins there, or it was cut short."""
    kind, pieces, name, parent, pid, nonce, wrapped, check = _SLOT.unpack_from(data, at)
    if kind in (FREE, TEXT):
        return None
    ends = [at + SLOT_BYTES * number for number in range(1, pieces + 1)]
    text = b"".join(data[end + 2 : end + 2 + data[end + 1]] for end in ends if end + 1 < len(data))
    if xxhash.xxh3_64_intdigest(data[at : at + _SLOT.size - 8] + text) != check:
        return None
    return Slot(kind, name, parent, pid, nonce, wrapped, text.decode(), start + at)


def places(data: bytes, name: bytes) -> Iterator[int]:
    """Where in a piece of a file, which begins at a slot, entries of that name seem to be, the last one first."""
    at = len(data)
    while (at := data.rfind(name, 0, at)) >= 0:
        if (start := at - _NAME_AT) >= 0 and start % SLOT_BYTES == 0:
            yield start
        at += len(name) - 1


def latest(data: bytes) -> dict[bytes, Slot]:
    """The entries of a whole file by name. One that was written anew and not yet overwritten counts no more."""
    return {slot.name: slot for slot in all_in(data, SLOT_BYTES)}


def all_in(data: bytes, begin: int) -> Iterator[Slot]:
    """The entries of a whole file, from `begin` on."""
    for at in range(begin, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
        if (slot := parsed(data, at, 0)) is not None:
            yield slot


def differences(before: bytes, now: bytes) -> Iterator[int]:
    """Where whole slots of a file are others than they were."""
    piece = SLOT_BYTES << 9
    for start in range(0, len(now), piece):
        if now[start : start + piece] != before[start : start + piece]:
            for at in range(start, min(start + piece, len(now) - SLOT_BYTES + 1), SLOT_BYTES):
                if now[at : at + SLOT_BYTES] != before[at : at + SLOT_BYTES]:
                    yield at
