"""Whoever has all files of a user, and all keys that are left: what can be read?

Written against the formats as docs/seal.md gives them, not with the kernel's own code.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SLOT = 128
Pair = tuple[bytes, bytes]  # a key and a nonce


class Scan:
    """Everything below `places`, each file as it is and as the keys below them decrypt it."""

    def __init__(self, places: list[Path], master: list[bytes]) -> None:
        self.files = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
        self.master = {hashlib.sha256(b"llmasos master" + key).digest()[:8]: key for key in master}
        self.keys: dict[bytes, bytes] = {}
        self.used: dict[Pair, set[bytes]] = {}  # what was encrypted under each key and nonce
        for data in self.files.values():
            if data.startswith(b"LLMasOSk"):
                self._unwrap(data)

    def holds(self, *needles: bytes) -> list[Path]:
        """The files in which any of these can be read."""
        return [path for path in self.files if any(needle in text for text in self.texts(path) for needle in needles)]

    def texts(self, path: Path) -> Iterator[bytes]:
        data = self.files[path]
        yield data
        if data.startswith(b"LLMasOSj"):
            yield from self._journal(data)
        if data.startswith(b"LLMasPI"):
            yield from self._image(data)

    def _unwrap(self, data: bytes) -> None:
        """The file's root by the master keys, owners' keys by that, then the others by those."""
        for wanted in (6, 1, None):
            for at in range(SLOT, len(data) - SLOT + 1, SLOT):
                kind, _, name, parent, pid, nonce, wrapped, _ = struct.unpack_from("<BxH4x8s8sQ12s48sQ", data, at)
                above = self.master.get(parent) or self.keys.get(parent)
                if kind in (0, 5) or (wanted is not None and kind != wanted) or above is None:
                    continue
                try:
                    about = struct.pack("<B8s8sQ", kind, name, parent, pid)
                    self.keys[name] = AESGCM(above).decrypt(nonce, wrapped, about)
                except InvalidTag:
                    continue

    def _journal(self, data: bytes) -> Iterator[bytes]:
        at, segment, salt = 16, None, b""
        while at + 16 <= len(data):
            (length,) = struct.unpack_from("<I", data, at)
            body = data[at + 16 : at + 16 + length]
            at += 16 + length
            if body[:2] == b"\xc1\x01":
                _, _, name, salt = struct.unpack("<2s8s8s32s", body)
                key = self.keys.get(name)
                segment = hmac.digest(key, b"segment" + salt, "sha256") if key is not None else None
            elif body[:2] == b"\xc1\x02" and segment is not None and len(body) == length:
                nonce = int.from_bytes(body[2:10], "little").to_bytes(12, "big")
                self.used.setdefault((segment, nonce), set()).add(body)
                inner = AESGCM(segment).decrypt(nonce, body[10:], None)
                yield inner
                yield from self._parts(msgspec.msgpack.decode(inner), salt)

    def _parts(self, frame: list[Any], salt: bytes) -> Iterator[bytes]:
        for entry in frame[1]:
            if entry[0] == 21 and (key := self.keys.get(entry[2])) is not None:
                key = hmac.digest(key, b"process" + salt, "sha256")
                at, data = entry[3], entry[4]
                for number in range(at // 16, (at + len(data) + 15) // 16):
                    part = data[max(0, number * 16 - at) : number * 16 + 16 - at]
                    nonce = struct.pack(">QQ", number, max(0, at - number * 16))
                    self.used.setdefault((key, nonce), set()).add(part)
                stream = Cipher(algorithms.AES(key), modes.CTR((at // 16).to_bytes(16, "big"))).decryptor()
                stream.update(bytes(at % 16))
                yield stream.update(data)

    def _image(self, data: bytes) -> Iterator[bytes]:
        prelude = data[:72]
        _, _, way, name, _, head, part, parts = struct.unpack("<8sIB3x16s16sQQQ", prelude)
        if way != 2 or (key := self.keys.get(name[:8])) is None:
            return
        at = 80
        for number in range(parts + 1):
            length = (part if number else head) + 16
            nonce = struct.pack("<4xQ", number)
            self.used.setdefault((key, nonce), set()).add(data[at : at + length])
            yield AESGCM(key).decrypt(nonce, data[at : at + length], prelude)
            at += length


def needles(tokens: list[int]) -> list[bytes]:
    """Token ids as files may have them: in msgpack, and as arrays of either width and order."""
    return [
        msgspec.msgpack.encode(tokens)[1:],
        *(struct.pack(f"{order}{len(tokens)}{width}", *tokens) for order in "<>" for width in "IQ"),
    ]
