"""The files of the audit log, and the state that lets the next kernel go on with the chain (syscalls/audit_chain.py).

In a directory of its own, 0700, all files 0600, but that operators may list it and read the lines (readers.py):
these, in files that are called after the number of their first one; `key`, the end of the chain as it was when the lines
were last synced, written over in place, so that what is on the disk forges no line older than that; and the verification
keys, which a careful operator takes elsewhere. Who can read these two can forge lines, so only the kernel's user can.

After a kernel's death the lines that came after that state are followed one by one. What was torn is cut off, what is no
line of the chain is put aside, lines that are missing are missed: a line of the log says each, and the chain goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmasos.kernel.edge import readers
from llmasos.kernel.edge.journal_file import sync_directory, write_all
from llmasos.syscalls import audit_chain
from llmasos.syscalls.atomic_file import read_at, replacing, write_at
from llmasos.syscalls.audit_chain import KEY_BYTES, NOTHING, SUFFIX, Chain, file_name
from llmasos.syscalls.errno import Errno

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_BYTES = 8 << 20  # of a file; then the next one is begun
KEY = "key"
# Magic, lines, first line of the file, its bytes, key, head, seed of signatures.
_STATE = struct.Struct("<8sQQQ32s32s32s")
_MAGIC = b"LLMasOSa"
_CHECK = 16  # bytes of a digest behind it
_PIECE = 1 << 20


@dataclass(slots=True)
class AuditFile:
    """The open audit log. `fd` is at the end of `size` whole bytes of the file that begins with line `first`."""

    directory: Path
    lock: int
    keys: Path  # the file of the verification keys
    keep: int  # files that are kept; 0: all
    readers: Sequence[int] | None  # uids of others who may read the lines; None: that is left as it is
    chain: Chain
    seed: bytes  # of the key that signs heads
    first: int = 0
    size: int = 0
    fd: int = -1
    old: list[int] = field(default_factory=list)  # descriptors of earlier files, to be synced
    notes: list[tuple[str, str]] = field(default_factory=list)  # for the kernel log

    @property
    def path(self) -> Path:
        return self.directory / file_name(self.first)

    def write(self, fields: Mapping[str, object]) -> None:
        """Add a line. Raises OSError; then the log is as it was."""
        if self.size >= MOST_BYTES:
            self.begin_file()
        before = self.chain.lines, self.chain.key, self.chain.head
        line = self.chain.add(fields)
        try:
            write_all(self.fd, line)
        except OSError:
            self.chain.lines, self.chain.key, self.chain.head = before
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)
            raise
        self.size += len(line)

    def begin_file(self) -> None:
        """Go on in a new file, whose first line has the head of the last one's. Raises OSError."""
        if not self.directory.exists():  # somebody has removed it
            self.directory.mkdir(mode=0o700)
            self.let_in()
        path, chain = self.directory / file_name(self.chain.lines), self.chain
        if path.exists() and path.stat().st_size:
            path.replace(_aside(path))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self.readers:
            self._let_read(fd)
        before = chain.lines, chain.key, chain.head
        line = chain.add({"what": "begin", "of": "log", "before": chain.head.hex(), "key": self.public().hex()})
        try:
            write_all(fd, line)
        except OSError:
            chain.lines, chain.key, chain.head = before
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        if self.fd >= 0:
            self.old.append(self.fd)
        self.fd, self.first, self.size = fd, before[0], len(line)
        self._drop_oldest()

    def let_in(self) -> None:
        """Let those read the log who may now, and nobody who might before."""
        if self.readers is None:
            return
        try:
            readers.let_pass(self.directory.parent, self.readers)
            readers.allow_at(self.directory, self.readers, readers.LIST)
            for path in files(self.directory):
                readers.allow_at(path, self.readers, readers.READ)
        except OSError as error:
            self._unread(error)

    def _let_read(self, fd: int) -> None:
        try:
            readers.allow(fd, self.readers or (), readers.READ)
        except OSError as error:
            self._unread(error)

    def _unread(self, error: OSError) -> None:
        text = (
            f"audit: who may read {self.directory} cannot be set: {error.strerror}; it is the kernel's user who reads "
            "it, or name a directory on another file system ([audit] directory)"
        )
        if ("warning", text) not in self.notes:
            self.notes.append(("warning", text))

    def _drop_oldest(self) -> None:
        """Remove the files that are too many; a line says so first, for a file less is a change like any other."""
        found = files(self.directory)
        going = found[: -self.keep] if self.keep else []
        if going:
            since = int(found[len(going)].stem)
            self.write({"what": "dropped", "of": "log", "details": {"before": since}})
            for path in going:
                path.unlink(missing_ok=True)

    def in_place(self) -> bool:
        """Whether the file still has its name, and is as long as it was left."""
        try:
            found = os.fstat(self.fd)
            return os.path.samestat(found, self.path.stat()) and found.st_size == self.size
        except OSError:
            return False

    # --- the disk ---------------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """What the next kernel needs to go on from here."""
        chain = self.chain
        packed = _STATE.pack(_MAGIC, chain.lines, self.first, self.size, chain.key, chain.head, self.seed)
        return packed + hashlib.sha256(packed).digest()[:_CHECK]

    def sync(self, fds: list[int], state: bytes, *, fsync: bool = True) -> None:
        """Bring files to the disk, and then the state of that moment. Raises OSError. May run in a thread."""
        if fsync:
            for fd in fds:
                os.fdatasync(fd)
            if len(fds) > 1:  # the last one is new
                sync_directory(self.path)
        key = os.open(self.directory / KEY, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_at(key, state, 0)
            if os.fstat(key).st_size > len(state):  # a write that went astray: a key of the past must not stay there
                os.ftruncate(key, len(state))
            if fsync:
                os.fdatasync(key)
        finally:
            os.close(key)

    def sync_now(self) -> None:
        self.sync([*self.old, self.fd], self.state())

    def close(self) -> None:
        for fd in (*self.old, self.fd, self.lock):
            with contextlib.suppress(OSError):
                os.close(fd)

    # --- heads ------------------------------------------------------------------------------------------------------

    def public(self) -> bytes:
        """The key that signatures of heads are checked with."""
        return _signer(self.seed).public_key().public_bytes_raw()

    def signed_head(self, at: str) -> dict[str, Any]:
        """The head of all lines so far, signed: what an anchor is sent."""
        lines, head = self.chain.lines, self.chain.head
        signature = _signer(self.seed).sign(audit_chain.signed_words(lines, head))
        return {
            "lines": lines,
            "at": at,
            "head": head.hex(),
            "key": self.public().hex(),
            "signature": signature.hex(),
        }


def files(directory: Path) -> list[Path]:
    """The files of the log, the oldest first."""
    return sorted(path for path in directory.glob(f"*{SUFFIX}") if path.stem.isdecimal())


def _signer(seed: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # 20 ms, and not of every boot

    return Ed25519PrivateKey.from_private_bytes(seed)


# --- a boot ---------------------------------------------------------------------------------------------------------


def open_audit(
    directory: Path, keys: Path | None = None, keep: int = 0, others: Sequence[int] | None = None
) -> AuditFile:
    """Hold the audit log of a directory and go on with its chain; begin one if there is none. `keys`: the file of the
    verification keys, if it is not in the directory; `others`: uids of those who may read the lines beside the kernel's
    own (None: that is left as it is).

    Raises SyscallError: EBUSY: another kernel holds it; EIO: it cannot be read or written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Errno.EIO(f"the directory {directory} of the audit log cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        keys = keys or directory / audit_chain.VERIFICATION
        log = AuditFile(directory, lock, keys, keep, others, Chain(0, b""), b"")
        _open(log)
        log.let_in()
    except BlockingIOError:
        os.close(lock)
        raise Errno.EBUSY(f"another kernel writes the audit log in {directory}; name another directory") from None
    except OSError as error:
        os.close(lock)
        raise Errno.EIO(
            f"the audit log in {directory} cannot be written: {error.strerror}; mend that, or name another directory "
            "([audit] directory)"
        ) from None
    return log


def _open(log: AuditFile) -> None:
    if not _recall(log):
        found = files(log.directory)
        log.chain, log.seed = Chain(0, os.urandom(KEY_BYTES)), os.urandom(KEY_BYTES)
        if found:
            log.chain.lines, log.chain.head = _end_of(found[-1])
        _keep_verification(log)
        log.begin_file()
        if found:
            text = f"its key in {log.directory} was lost; it goes on with a new one at line {log.first}"
            _say(log, "rekeyed", text, {})
    else:
        _follow(log)
    log.sync_now()
    sync_directory(log.directory / KEY)


def _recall(log: AuditFile) -> bool:
    """Take up the state that an earlier kernel has left. False: there is none, or it is damaged."""
    try:
        found = (log.directory / KEY).read_bytes()
    except FileNotFoundError:
        return False
    packed, check = found[: _STATE.size], found[_STATE.size : _STATE.size + _CHECK]
    if len(packed) < _STATE.size or hashlib.sha256(packed).digest()[:_CHECK] != check:
        return False
    magic, lines, log.first, log.size, key, head, log.seed = _STATE.unpack(packed)
    log.chain = Chain(lines, key, head)
    return bool(magic == _MAGIC)


def _end_of(path: Path) -> tuple[int, bytes]:
    """The number of lines and the head that the last file comes to, as far as it can be read: nobody vouches for it."""
    lines, head = int(path.stem), NOTHING
    with path.open("rb") as file:
        for text in file:
            line = audit_chain.parse(text.removesuffix(b"\n"))
            if line is None:
                break
            if line.number == lines == int(path.stem):
                with contextlib.suppress(ValueError):
                    head = bytes.fromhex(str(line.fields.get("before")))
            lines, head = line.number + 1, audit_chain.next_head(head, line.seal, line.body)
    return lines, head


def _keep_verification(log: AuditFile) -> None:
    """Write down the first key of a chain, with which all its seals can be checked."""
    row = {"from": log.chain.lines, "key": log.chain.key.hex(), "sign": log.public().hex()}
    known = log.keys.read_bytes() if log.keys.exists() else b""
    with replacing(log.keys, durable=True) as file:
        write_all(file, known + json.dumps(row).encode() + b"\n")


def _follow(log: AuditFile) -> None:
    """Go on behind the last line that is there."""
    while True:
        try:
            log.fd = os.open(log.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            log.begin_file()
            _say(log, "missing", f"{log.path.name} or the one before it is not there: lines are missing", {})
            return
        length = os.fstat(log.fd).st_size
        if length < log.size:
            _cut_short(log, length)
            return
        rest = _followed(log)
        following = log.directory / file_name(log.chain.lines)
        if rest or log.chain.lines == log.first or not following.exists():
            break
        log.old.append(log.fd)
        log.first, log.size = log.chain.lines, 0
    if rest:
        _put_aside(log, rest)


def _followed(log: AuditFile) -> bytes:
    """Follow the lines behind the state. Returns what is left in the file and is none."""
    rest = b""
    while piece := os.pread(log.fd, _PIECE, log.size + len(rest)):
        rest += piece
        while (end := rest.find(b"\n")) >= 0:
            line = audit_chain.parse(rest[:end])
            if line is None or not log.chain.follow(line):
                return read_at(log.fd, os.fstat(log.fd).st_size, log.size)
            log.size += end + 1
            rest = rest[end + 1 :]
    return rest


def _cut_short(log: AuditFile, length: int) -> None:
    """The file is shorter than it was when it was last synced. What is left stays; the next file says so."""
    missing = log.size - length
    log.begin_file()
    _say(log, "missing", f"{missing} bytes are missing at the end of the file before this one", {"bytes": missing})


def _put_aside(log: AuditFile, rest: bytes) -> None:
    """Cut off what is no line of the chain: a last line that was torn, or what somebody else has written."""
    torn = b"\n" not in rest
    details: dict[str, int | str] = {"bytes": len(rest)}
    if torn:
        text = f"the last line was cut short, {len(rest)} bytes of it are cut off"
    else:
        aside = _aside(log.path)
        with replacing(aside, durable=True) as file:
            write_all(file, rest)
        details["kept"] = aside.name
        text = f"{len(rest)} bytes behind line {log.chain.lines - 1} are of no kernel; they are kept as {aside.name}"
    os.ftruncate(log.fd, log.size)
    if not log.size:  # not even the first line of this file
        log.begin_file()
    _say(log, "torn" if torn else "strange", text, details)


def _aside(path: Path) -> Path:
    """A name for what is no part of the log."""
    return next(aside for n in range(1, 1 << 20) if not (aside := path.with_suffix(f".strange-{n}")).exists())


def _say(log: AuditFile, what: str, text: str, details: Mapping[str, object]) -> None:
    log.write({"what": what, "of": "log", **({"details": details} if details else {})})
    log.notes.append(("warning" if what == "torn" else "error", f"audit: {text}"))
