"""Seals of the parts of a process image's file (checkpoint_file.py), and the keys of encrypted ones.

Sealed means: without a passphrase, followed by a checksum (xxh3), which finds accidents; with one, encrypted with
AES-256-GCM under a key of this file alone (scrypt of the passphrase and a random salt), followed by its tag, which finds
everything. So it is with a key that the kernel gives, by its name: that one is the file's from the first, and kept among
the keys of the kernel's user, where it can be forgotten (kernel/edge/keys.py). The number of a part and what stands
before the parts go into every seal, so that none can be exchanged, left out, or be another file's.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import OrderedDict
from threading import Lock
from typing import Protocol

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SUM = struct.Struct("<Q")
# scrypt's cost as OWASP advises: 128 MiB and some tenths of a second for each guess at a passphrase.
_COST = 1 << 17
_KEPT_KEYS = 4

Buffer = bytes | memoryview


class Damaged(Exception):
    """A part of the file is not as it was written; says what is wrong with it."""


class Seal(Protocol):
    """`number` 0 is the head, the parts follow."""

    size: int  # bytes of a seal

    def close(self, number: int, data: Buffer) -> tuple[Buffer, bytes]:
        """The bytes to store for `data`, and its seal."""

    def open(self, number: int, stored: memoryview, seal: bytes) -> None:
        """Turn stored bytes back into the data, in place. Raises Damaged."""


class Sum:
    """Checksums, seeded with the bytes before the parts."""

    size = SUM.size

    def __init__(self, about: bytes) -> None:
        self._seed = xxhash.xxh3_64_intdigest(about)

    def _sum(self, number: int, data: Buffer) -> bytes:
        return SUM.pack(xxhash.xxh3_64_intdigest(data, seed=(self._seed + number) & (1 << 64) - 1))

    def close(self, number: int, data: Buffer) -> tuple[Buffer, bytes]:
        return data, self._sum(number, data)

    def open(self, number: int, stored: memoryview, seal: bytes) -> None:
        if self._sum(number, stored) != seal:
            raise Damaged("its checksum is off")


class Tag:
    """AES-256-GCM. The key is this file's alone, so the number can be the nonce."""

    size = 16

    def __init__(self, about: bytes, key: bytes) -> None:
        self._about = about
        self._cipher = AESGCM(key)

    def close(self, number: int, data: Buffer) -> tuple[Buffer, bytes]:
        sealed = memoryview(self._cipher.encrypt(struct.pack("<4xQ", number), data, self._about))
        return sealed[: -self.size], bytes(sealed[-self.size :])

    def open(self, number: int, stored: memoryview, seal: bytes) -> None:
        try:
            whole = b"".join((stored, seal))
            stored[:] = self._cipher.decrypt(struct.pack("<4xQ", number), whole, self._about)
        except InvalidTag:
            raise Damaged("it is not what was encrypted") from None


NAME_BYTES, SEAL_BYTES = 16, 48


def given(seal: bytes) -> tuple[bytes, bytes, bytes]:
    """Of a key that the kernel gives: its name, which stands in the prelude, the key, and a check of it."""
    name, key = seal[:NAME_BYTES], seal[NAME_BYTES:]
    return name, key, hmac.digest(key, b"check", "sha256")[:16]


_keys: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()  # of files looked at and not yet read
_keys_lock = Lock()


def derive(passphrase: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """The key of a file, and a check of it for the prelude, which tells a wrong passphrase from a damaged file."""
    both = hashlib.scrypt(passphrase, salt=salt, n=_COST, r=8, p=1, maxmem=256 << 20, dklen=48)
    return both[:32], both[32:]


def known_key(passphrase: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """The same for a reader; a file that was inspected is soon read, so its key is kept and not derived again."""
    known_by = hashlib.sha256(salt + passphrase).digest()
    with _keys_lock:
        known = _keys.pop(known_by, None)
    if known is None:
        known = derive(passphrase, salt)
        with _keys_lock:
            _keys[known_by] = known
            while len(_keys) > _KEPT_KEYS:
                _keys.popitem(last=False)
    return known
