"""Where the master key is: in a file, in the kernel keyring, or with a command. All keys are below it (keys.py).

Each source holds a text: keys in hexadecimal, one a line, the first of which is used from here on. More than one are
there while a rotation is under way: what the others wrap is wrapped anew. A file is made at the first boot, because
nothing else can be asked for it; the keyring is emptied by a reboot, and a command is somebody else's, so those two are
given a key by their owner.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Literal, Protocol

from llmasos.kernel.edge.locked import KEY_BYTES
from llmasos.syscalls.atomic_file import make_directory, replacing, write_all
from llmasos.syscalls.errno import Errno

Kind = Literal["file", "keyring", "command"]

KEY_FILE = "seal.key"
KEYRING_NAME = b"llmasos:seal"
COMMAND_SECONDS = 60.0  # a person may have to confirm it
MOST_BYTES = 1 << 16
_NEW = "openssl rand -hex 32"


def name_of(key: bytes | memoryview) -> bytes:
    """How a master key is known in what it wraps: 8 bytes that say nothing of it."""
    return hashlib.sha256(b"llmasos master" + key).digest()[:8]


def list_of(file: Path) -> Path:
    """The list of the directories with something under the master key that is, or would be, in that file."""
    return file.with_name(f"{file.name}.stores")


class Source(Protocol):
    """A place of the master key."""

    about: str  # for people
    makes: bool  # whether the first key is made by us
    slow: bool  # whether reading it may take its time
    listed: Path  # of the directories that have something under it (stores.py)

    def read(self) -> list[bytes]:
        """The keys, newest first; none: there is none yet. Raises SyscallError EPERM, EIO, EINVAL."""

    def write(self, keys: list[bytes]) -> None:
        """Put these in their place, and leave nothing of the old ones. Raises SyscallError."""

    def missing(self) -> str:
        """What to do where there is no key."""

    def apart(self, place: Path) -> bool:
        """Whether it lies outside the disk that `place` is on."""


def parse(text: bytes, where: str) -> list[bytes]:
    """The keys in a text. Raises SyscallError EINVAL."""
    try:
        keys = [bytes.fromhex(line.strip()) for line in text.decode("ascii").splitlines() if line.strip()]
    except (UnicodeError, ValueError):
        keys = [b""]
    if any(len(key) != KEY_BYTES for key in keys):
        raise Errno.EINVAL(
            f"{where} has something else than keys: wanted {2 * KEY_BYTES} hexadecimal digits a line (`{_NEW}` makes one)"
        )
    return keys


def _text(keys: list[bytes]) -> bytes:
    return b"".join(key.hex().encode() + b"\n" for key in keys)


def overwrite(descriptor: int) -> None:
    """Zeros over a file's contents, on the disk. Raises OSError."""
    size, at = os.fstat(descriptor).st_size, 0
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_APPEND)  # else zeros would come behind it
    zeros = bytes(min(size, 1 << 20))
    while at < size:
        at += os.pwrite(descriptor, zeros[: size - at], at)
    os.fsync(descriptor)


class FileSource:
    """A file of mode 0600."""

    makes, slow = True, False

    def __init__(self, path: Path) -> None:
        self.path, self.about, self.listed = path, f"file {path}", list_of(path)

    def read(self) -> list[bytes]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Errno.EIO(f"the key {self.path} cannot be read: {error.strerror}; mend that") from None
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
                raise Errno.EPERM(f"others may read the key {self.path}: `chmod 600 {self.path}`, then `seal rotate`")
            text = file.read(MOST_BYTES)
            if os.fstat(descriptor).st_nlink == 0:  # it has just been exchanged, and is being overwritten
                return self.read()
            return parse(text, f"the key {self.path}")

    def write(self, keys: list[bytes]) -> None:
        try:
            make_directory(self.path.parent)
            old = os.open(self.path, os.O_RDWR | os.O_CLOEXEC) if self.path.exists() else -1
            try:
                with replacing(self.path, durable=True) as descriptor:
                    os.fchmod(descriptor, 0o600)
                    write_all(descriptor, _text(keys))
                if old >= 0:
                    overwrite(old)
            finally:
                if old >= 0:
                    os.close(old)
        except OSError as error:
            raise Errno.EIO(
                f"the key {self.path} cannot be made: {error.strerror}; name another place ([seal] key_file), or boot "
                "without encryption (--plain)"
            ) from None

    def missing(self) -> str:
        return f"bring {self.path} back"

    def apart(self, place: Path) -> bool:
        try:
            return os.stat(self.path).st_dev != os.stat(place).st_dev
        except OSError:
            return False


class CommandSource:
    """What a command prints."""

    makes, slow = False, True

    def __init__(self, command: str, file: Path) -> None:
        """`file`: where the key would be as a file; beside it is the list of what is under it."""
        self._command, self.about, self.listed = command, f"command {command}", list_of(file)

    def read(self) -> list[bytes]:
        try:
            done = subprocess.run(
                shlex.split(self._command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Errno.ETIME(f"key_command {self._command!r} did not end in {COMMAND_SECONDS:g} s") from None
        except (OSError, ValueError) as error:
            raise Errno.EPERM(f"key_command {self._command!r} cannot be run: {error}; mend it in [seal]") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-200:]
            raise Errno.EPERM(f"key_command {self._command!r} ended with status {done.returncode}: {said}")
        return parse(done.stdout[:MOST_BYTES], f"what key_command {self._command!r} prints")

    def write(self, keys: list[bytes]) -> None:
        raise Errno.ENOTSUP(
            f"the master key is the command's: have {self._command!r} print the new key and below it the old one, and "
            "run `llmasos seal rotate`; then the old one can go"
        )

    def missing(self) -> str:
        return f"have {self._command!r} print a key (`{_NEW}` makes one)"

    def apart(self, place: Path) -> bool:
        return True


_CALLS = {"x86_64": (248, 250), "aarch64": (217, 219)}  # add_key, keyctl
_USER_KEYRING = -4
_SETPERM, _SEARCH, _READ = 5, 10, 11
_PERMISSIONS = 0x3F3F0000  # its possessor and this user, everything; nobody else anything


class KeyringSource:
    """The user's keyring in the operating system's kernel, which a reboot empties."""

    about = f"kernel keyring, {KEYRING_NAME.decode()}"
    makes = slow = False

    def __init__(self, file: Path) -> None:
        """`file`: as of a command."""
        self.listed = list_of(file)

    def read(self) -> list[bytes]:
        number = self._call(1, _SEARCH, _USER_KEYRING, b"user", KEYRING_NAME, 0)
        if number < 0:
            return []
        found = ctypes.create_string_buffer(MOST_BYTES)
        size = self._call(1, _READ, number, found, MOST_BYTES)
        if size < 0:
            raise Errno.EPERM(f"the key {KEYRING_NAME.decode()} cannot be read: {os.strerror(ctypes.get_errno())}")
        return parse(found.raw[:size], f"the key {KEYRING_NAME.decode()} of the keyring")

    def write(self, keys: list[bytes]) -> None:
        text = _text(keys)
        number = self._call(0, b"user", KEYRING_NAME, text, len(text), _USER_KEYRING)
        if number < 0 or self._call(1, _SETPERM, number, _PERMISSIONS) < 0:
            why = os.strerror(ctypes.get_errno())
            raise Errno.EPERM(f"the key cannot be put into the kernel keyring: {why}; use a key_file or a key_command")

    def missing(self) -> str:
        return f"load it (`llmasos seal load FILE`; `{_NEW}` makes a new one): a reboot empties the keyring"

    def apart(self, place: Path) -> bool:
        return True

    def _call(self, which: int, *arguments: object) -> int:
        numbers = _CALLS.get(platform.machine())
        if numbers is None or not os.path.exists("/proc/keys"):
            raise Errno.ENOTSUP("this system has no kernel keyring; use a key_file or a key_command")
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        made = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
        result = int(libc.syscall(ctypes.c_long(numbers[which]), *made))
        if result < 0 and ctypes.get_errno() == errno.ENOSYS:
            raise Errno.ENOTSUP("this system's kernel keyring cannot be used; use a key_file or a key_command")
        return result


def source_of(kind: Kind, file: Path, command: str) -> Source:
    """The source of the master key that is configured."""
    match kind:
        case "keyring":
            return KeyringSource(file)
        case "command":
            return CommandSource(command, file)
    return FileSource(file)
