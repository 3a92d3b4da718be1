"""The file of a process image: one head and any number of parts of one size, each checked; whole or not there at all.

    prelude   magic, format, is it encrypted, salt or name of the key, check of the key, sizes; and its own checksum
    head      sealed
    parts     sealed, one after the other: KV, a block each
    end       a magic and the prelude's checksum again: how a copy that stopped early shows

Sealed: followed by a checksum, or encrypted and followed by its tag (seals.py).

Like CRIU's and QEMU's images it takes its name when it is on the disk (syscalls/atomic_file.py). A reader trusts no size
before it has been held against the file's own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

import xxhash

from llmasos.drivers.checkpoint_refusals import WHICH, Locked, kind_of, refusal
from llmasos.drivers.seals import SUM, Buffer, Damaged, Seal, Sum, Tag, derive, given, known_key
from llmasos.syscalls import atomic_file
from llmasos.syscalls.atomic_file import opened, write_all
from llmasos.syscalls.errno import Errno, SyscallError

FORMAT = 1
MAGIC, END = b"LLMasPI\0", b"LLMasEND"
MOST_HEAD = 32 << 20  # bytes
MOST_PART = 1 << 30
_PRELUDE = struct.Struct("<8sIB3x16s16sQQQ")  # magic, format, encrypted, salt, check, bytes of head and part, parts
_OPEN, _PASSPHRASE, _SEALED = range(3)  # encrypted
_END = struct.Struct("<8sQ")
_START = _PRELUDE.size + SUM.size
_PIECE = 64 << 20  # bytes written between two looks at whether they have reached the disk

Tick = Callable[[], None]


def _nothing() -> None:
    pass


# --- writing --------------------------------------------------------------------------------------------------------


def write(
    path: str,
    head: bytes,
    part_bytes: int,
    parts: Sequence[Buffer],
    passphrase: bytes = b"",
    tick: Tick = _nothing,
    seal: bytes = b"",
) -> int:
    """Write the file, which is then on the disk, whole, and readable by its owner only. Returns its size in bytes.

    Raises SyscallError and leaves the file that had the name before: EIO (also when there is no space), ENOENT, EPERM,
    EINVAL.
    """
    try:
        _check_place(path)
        with atomic_file.replacing(path, durable=True) as descriptor:
            size = fill(descriptor, head, part_bytes, parts, passphrase, tick, seal)
    except OSError as error:
        raise refusal(path, error, writing=True) from None
    return size


def fill(
    descriptor: int,
    head: bytes,
    part_bytes: int,
    parts: Sequence[Buffer],
    passphrase: bytes = b"",
    tick: Tick = _nothing,
    seal: bytes = b"",
) -> int:
    """Write the contents to an empty file. `seal`: a key that the kernel gives, where there is no passphrase. Returns its
    size in bytes. Raises OSError, E2BIG."""
    if len(head) > MOST_HEAD:
        raise SyscallError(Errno.E2BIG, f"a head of {len(head)} bytes; {MOST_HEAD} are possible")
    way, salt, key, check = _OPEN, secrets.token_bytes(16), b"", bytes(16)
    if passphrase:
        way, (key, check) = _PASSPHRASE, derive(passphrase, salt)
    elif seal:
        way, (salt, key, check) = _SEALED, given(seal)
    prelude = _PRELUDE.pack(MAGIC, FORMAT, way, salt, check, len(head), part_bytes, len(parts))
    sealing: Seal = Tag(prelude, key) if key else Sum(prelude)
    total = xxhash.xxh3_64_intdigest(prelude)
    unsure = size = write_all(descriptor, prelude, SUM.pack(total))
    for number, data in enumerate((head, *parts)):
        stored, made = sealing.close(number, data)
        written = write_all(descriptor, stored, made)
        size += written
        unsure += written
        tick()
        if unsure > _PIECE:
            os.fdatasync(descriptor)
            unsure = 0
            tick()
    return size + write_all(descriptor, _END.pack(END, total))


def _check_place(path: str) -> None:
    """Raises EINVAL where something other than a process image has the name."""
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(state.st_mode):
        hint = f"name a file, such as {os.path.join(path, 'process.img')}" if os.path.isdir(path) else "name a file"
        raise SyscallError(Errno.EINVAL, f"{path} is {kind_of(state.st_mode)}; {hint}")
    with opened(path) as descriptor:
        if state.st_size and os.pread(descriptor, len(MAGIC), 0) != MAGIC:
            raise SyscallError(
                Errno.EINVAL, f"{path} is there and is no process image; remove it, or choose another name"
            )


# --- reading --------------------------------------------------------------------------------------------------------


class Reader:
    """An open file: `head`, and `parts` parts of `part_bytes` bytes. For use in a `with`; several threads may `read`.

    `encrypted`: its seals cannot be made without a passphrase or a key. `vouched`: not without a key of the kernel's
    user, so that a kernel of his has written it."""

    def __init__(self, path: str, passphrase: bytes = b"", seal: bytes = b"") -> None:
        """Raises SyscallError: ENOENT, EPERM (no access; the passphrase is wrong, or missing; Locked: it needs a `seal`),
        EINVAL (no process image, or one that is not encrypted with a passphrase though there is one), EIO (damaged)."""
        self.path = path
        self.part_bytes = self.parts = 0
        try:
            if not stat.S_ISREG(mode := os.stat(path).st_mode):  # opening a device may do something
                raise SyscallError(Errno.EINVAL, f"{path} is {kind_of(mode)}, no process image{WHICH}")
            with opened(path) as descriptor:
                self._read_start(descriptor, passphrase, seal)
                self._descriptor = os.dup(descriptor)
        except OSError as error:
            raise refusal(path, error) from None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _read_start(self, descriptor: int, passphrase: bytes, seal: bytes) -> None:
        """All before the parts, each step checked before the next believes it."""
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise SyscallError(Errno.EINVAL, f"{self.path} is {kind_of(state.st_mode)}, no process image{WHICH}")
        self.mine = state.st_uid == os.geteuid()
        prelude, head_bytes, salt, check = self._read_prelude(descriptor, state.st_size)
        self._seal = self._open_seal(prelude, passphrase, seal, salt, check)
        stored = self._read_head(descriptor, head_bytes, state.st_size)
        self.id = hashlib.sha256(prelude + stored[head_bytes:]).digest()
        self._first = _START + len(stored)
        self.flaw = self._find_flaw(descriptor, state.st_size, prelude)

    def _read_prelude(self, descriptor: int, size: int) -> tuple[bytes, int, bytes, bytes]:
        """The prelude, and of what it says the bytes of the head, the salt and the check of the key."""
        start = os.pread(descriptor, _START, 0)
        prelude = start[: _PRELUDE.size]
        if start[: len(MAGIC)] != MAGIC:
            raise SyscallError(Errno.EINVAL, f"{self.path} is no process image{WHICH}")
        if len(start) < _START or SUM.unpack(start[_PRELUDE.size :])[0] != xxhash.xxh3_64_intdigest(prelude):
            raise self._damaged("its first bytes are not what was written")
        _, form, encrypted, salt, check, head_bytes, self.part_bytes, self.parts = _PRELUDE.unpack(prelude)
        if form != FORMAT:
            raise SyscallError(
                Errno.EINVAL,
                f"{self.path} is of format {form}, {FORMAT} is known here; use the LLMasOS that wrote it",
            )
        if encrypted > _SEALED:
            raise self._damaged("it is encrypted in no way that is known")
        self.encrypted, self.vouched = bool(encrypted), encrypted == _SEALED
        if head_bytes > MOST_HEAD or head_bytes > size or self.part_bytes > MOST_PART:
            raise self._damaged(f"it has {size} bytes, its head or its parts would have more than they can")
        return prelude, head_bytes, salt, check

    def _open_seal(self, prelude: bytes, passphrase: bytes, seal: bytes, salt: bytes, check: bytes) -> Seal:
        """Raises EPERM for a passphrase or a key that is missing or wrong, EINVAL for one that is too much."""
        if self.vouched:
            if passphrase:
                raise SyscallError(
                    Errno.EINVAL,
                    f"{self.path} is encrypted under a key of the kernel's user, not with a passphrase; leave it out",
                )
            name, key, found = given(seal)
            if name != salt:
                raise Locked(self.path, salt)
            if not secrets.compare_digest(found, check):
                raise self._damaged("the key of that name is not its own")
            return Tag(prelude, key)
        if not self.encrypted:
            if passphrase:
                raise SyscallError(
                    Errno.EINVAL,
                    f"{self.path} is not encrypted, so a passphrase vouches for nothing; leave it out",
                )
            return Sum(prelude)
        if not passphrase:
            raise SyscallError(Errno.EPERM, f"{self.path} is encrypted; give its passphrase")
        key, found = known_key(passphrase, salt)
        if not secrets.compare_digest(found, check):
            raise SyscallError(Errno.EPERM, f"the passphrase is not that of {self.path}")
        return Tag(prelude, key)

    def _read_head(self, descriptor: int, head_bytes: int, size: int) -> bytes:
        """Read the head; returns it as it is stored, with its seal."""
        stored = os.pread(descriptor, head_bytes + self._seal.size, _START)
        if len(stored) < head_bytes + self._seal.size:
            raise self._damaged(f"it ends in its head, after {size} bytes")
        head = bytearray(stored[:head_bytes])
        try:
            self._seal.open(0, memoryview(head), stored[head_bytes:])
        except Damaged as error:
            raise self._damaged(f"its head: {error}") from None
        self.head = bytes(head)
        return stored

    def _find_flaw(self, descriptor: int, size: int, prelude: bytes) -> str:
        """Why not all parts can be there, or ""."""
        whole = self._first + self.parts * (self.part_bytes + self._seal.size) + _END.size
        if size != whole:
            return f"the file has {size} bytes instead of {whole}"
        end = os.pread(descriptor, _END.size, whole - _END.size)
        return "" if end == _END.pack(END, xxhash.xxh3_64_intdigest(prelude)) else "the end of the file is missing"

    def _damaged(self, what: str) -> SyscallError:
        return SyscallError(Errno.EIO, f"{self.path} is damaged: {what}")

    def read(self, number: int, into: memoryview) -> None:
        """Read part `number`, from 0. Raises Damaged; the contents of `into` are undefined then."""
        seal = bytearray(self._seal.size)
        wanted = self.part_bytes + len(seal)
        if not 0 <= number < self.parts or len(into) != self.part_bytes:
            raise Damaged(f"there is no part {number} of {len(into)} bytes")
        try:
            done = os.preadv(self._descriptor, [into, seal], self._first + number * wanted)
            while 0 < done < wanted:
                rest = [into[done:]] if done < len(into) else []
                rest.append(memoryview(seal)[max(0, done - len(into)) :])
                count = os.preadv(self._descriptor, rest, self._first + number * wanted + done)
                done = done + count if count else -1
        except OSError as error:
            raise Damaged(f"it cannot be read: {error.strerror}") from None
        if done != wanted:
            raise Damaged("the file ends before it")
        self._seal.open(number + 1, into, bytes(seal))

    def fetch(self) -> None:
        """Have the operating system read ahead: all parts will be wanted."""
        with suppress(OSError):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
