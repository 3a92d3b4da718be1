"""Keys of connections between machines, and the files that hold them, as ssh has its own.

A key is a pair of Curve25519. People write the public half `curve:` and 43 letters; the 40 letters of ZeroMQ's own text
(Z85), which `zmq.curve_keypair()` makes, are read too. The files, in the directory of the user's settings:

    authorized_keys   the kernel's: who may come (`KEY NAME [uid=N | tenant=NAME]`, one a line)
    server.key        the kernel's secret key, 0600
    client.key        a user's secret key, 0600
    known_kernels     a user's: which key a kernel has (`HOST:PORT KEY`, one a line)
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from llmasos.syscalls import limits, runtime
from llmasos.syscalls.atomic_file import make_directory, opened, read_at, replacing, write_all
from llmasos.syscalls.errno import Errno, SyscallError

AUTHORIZED, SERVER, CLIENT, KNOWN = "authorized_keys", "server.key", "client.key", "known_kernels"
SIZE = 32  # bytes of each half
MOST_BYTES = 1 << 20  # of a file
_PREFIX = "curve:"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_SECRET = "secret:"


class Key(NamedTuple):
    """A key that may come, and whose programs those are that show it: the user's with that `uid`, else the `tenant`'s of
    the kernel's own user."""

    public: bytes
    name: str
    uid: int | None
    tenant: str

    @property
    def line(self) -> str:
        """As it stands in the file."""
        own = self.uid is None and self.tenant == own_tenant(self.name)
        whose = "" if own else f" uid={self.uid}" if self.uid is not None else f" tenant={self.tenant}"
        return f"{text_of(self.public)} {self.name}{whose}"

    @property
    def owner(self) -> str:
        """For people."""
        return f"user {self.uid}" if self.uid is not None else f"tenant {self.tenant}"


def own_tenant(name: str) -> str:
    """The owner of what comes by a key for which none is named: no program can attach for such a tenant."""
    return f"key-{name}"


def text_of(public: bytes) -> str:
    return _PREFIX + base64.urlsafe_b64encode(public).decode().rstrip("=")


def public_of(text: str) -> bytes:
    """The 32 bytes of a public key in one of its forms. Raises SyscallError EINVAL."""
    try:
        if text.startswith(_PREFIX):
            found = base64.b64decode(text.removeprefix(_PREFIX) + "=", altchars=b"-_", validate=True)
        else:
            found = z85.decode(text.encode()) if len(text) == 40 else b""
    except (binascii.Error, ValueError, KeyError, UnicodeError, OverflowError):
        found = b""
    if len(found) != SIZE:
        raise Errno.EINVAL(
            f"{text[:60]!r} is no public key: wanted {_PREFIX} and 43 letters, as `llmasos key new` prints"
        )
    return found


def checked_name(name: str) -> str:
    """A name for a key. Raises SyscallError EINVAL."""
    if not _NAME.fullmatch(name):
        raise Errno.EINVAL(f"{name[:60]!r} is no name for a key: wanted up to 60 letters, digits, '_', '.' and '-'")
    return name


# --- who may come ---------------------------------------------------------------------------------------------------


def authorized(path: Path) -> dict[bytes, Key]:
    """The keys of a file by their public half; none if there is no file. Raises SyscallError EINVAL naming the line,
    EPERM if others may write to the file, EIO."""
    found: dict[bytes, Key] = {}
    names: set[str] = set()
    for number, line in enumerate(_lines(path, private=False), 1):
        words = line.split()
        if not words or words[0] == "#":
            continue
        try:
            key = _key(words)
        except SyscallError as error:
            raise Errno.EINVAL(f"{path}, line {number}: {error.reason}") from None
        if key.public in found or key.name in names:
            raise Errno.EINVAL(f"{path}, line {number}: the key or its name {key.name!r} is there twice")
        found[key.public] = key
        names.add(key.name)
    return found


def _key(words: list[str]) -> Key:
    if not 2 <= len(words) <= 3:
        raise Errno.EINVAL("wanted KEY NAME, and uid=N or tenant=NAME if need be")
    public, name = public_of(words[0]), checked_name(words[1])
    return named(public, name, words[2] if len(words) == 3 else "")


def named(public: bytes, name: str, whose: str = "") -> Key:
    """A key for `uid=N`, `tenant=NAME`, or an owner of its own. Raises SyscallError EINVAL."""
    kind, _, value = whose.partition("=")
    if kind == "uid" and value.isascii() and value.isdecimal() and int(value) < 1 << 31:
        return Key(public, name, int(value), "")
    if kind == "tenant" and re.fullmatch(r"(?!\.{1,2}\Z|session-|key-)[A-Za-z0-9_.-]{1,64}", value):
        return Key(public, name, None, value)
    if whose:
        raise Errno.EINVAL(f"{whose[:60]!r}: wanted uid=N, or tenant=NAME")
    return Key(public, name, None, own_tenant(name))


def write_authorized(path: Path, keys: dict[bytes, Key]) -> None:
    """Write the file; it is on the disk when this returns. Raises SyscallError EIO."""
    text = "".join(f"{key.line}\n" for key in sorted(keys.values(), key=lambda one: one.name))
    _write(path, f"# who may come to this kernel by TCP: KEY NAME [uid=N | tenant=NAME]\n{text}")


# --- secret keys ----------------------------------------------------------------------------------------------------


def secret_of(path: Path) -> bytes:
    """The secret key in a file. Raises SyscallError ENOENT, EPERM if others may read it, EINVAL."""
    lines = list(_lines(path, private=True))
    if not lines:
        raise Errno.ENOENT(f"there is no key {path}; `llmasos key new` makes one")
    text = lines[0].strip()
    try:
        found = base64.b64decode(text.removeprefix(_SECRET) + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not text.startswith(_SECRET) or len(found) != SIZE:
        raise Errno.EINVAL(f"{path} holds no secret key of this system; `llmasos key new FILE` makes one")
    return found


def public_half(secret: bytes) -> bytes:
    """Raises SyscallError ENOTSUP: ZeroMQ was built without CURVE."""
    _check_curve()
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def new_secret(path: Path) -> bytes:
    """Make a key, and its file; returns its public half. Raises SyscallError EBUSY: there is one; EIO; ENOTSUP."""
    _check_curve()
    public, secret = (z85.decode(half) for half in zmq.curve_keypair())
    text = f"{_SECRET}{base64.urlsafe_b64encode(secret).decode().rstrip('=')}\n"
    try:
        make_directory(path.parent)
        with replacing(path, durable=True, new=True) as descriptor:
            write_all(descriptor, text.encode())
    except FileExistsError:
        raise Errno.EBUSY(f"there is a key {path} already; name another file, or use that one") from None
    except OSError as error:
        raise Errno.EIO(f"the key {path} cannot be made: {error.strerror}") from None
    return public


def _check_curve() -> None:
    if not zmq.has("curve"):
        raise Errno.ENOTSUP("ZeroMQ was built here without CURVE, which connections between machines need")


# --- which key a kernel has -----------------------------------------------------------------------------------------


def known(path: Path) -> dict[str, bytes]:
    """The keys of kernels by HOST:PORT. Raises SyscallError EINVAL, EPERM, EIO."""
    found = {}
    for number, line in enumerate(_lines(path, private=False), 1):
        words = line.split()
        if words and words[0] != "#":
            if len(words) != 2:
                raise Errno.EINVAL(f"{path}, line {number}: wanted HOST:PORT KEY")
            found[words[0]] = public_of(words[1])
    return found


def write_known(path: Path, kernels: dict[str, bytes]) -> None:
    """Raises SyscallError EIO."""
    _write(path, "".join(f"{where} {text_of(public)}\n" for where, public in sorted(kernels.items())))


def place(name: str) -> Path:
    """Where a file of these is. Raises SyscallError ENOENT: no home is known."""
    try:
        return runtime.settings_place() / name
    except RuntimeError as error:
        raise Errno.ENOENT(f"no place for {name}: {error}; set XDG_CONFIG_HOME") from None


def host_and_port(text: str) -> tuple[str, int]:
    """Of `HOST:PORT`, `[IPv6]:PORT`. Raises SyscallError EINVAL."""
    host, colon, port = text.removeprefix(runtime.REMOTE).rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdecimal()):
        raise Errno.EINVAL(f"{text[:100]!r} is no address: wanted HOST:PORT, as 127.0.0.1:7411 or [::1]:7411")
    if int(port) >= 1 << 16 or len(bare) > limits.MAX_NAME or not re.fullmatch(r"[A-Za-z0-9_.:%-]+", bare):
        raise Errno.EINVAL(f"{text[:100]!r} is no address: wanted HOST:PORT, as 127.0.0.1:7411 or [::1]:7411")
    return bare, int(port)


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lines(path: Path, *, private: bool) -> Iterator[str]:
    """The lines of a file; none if there is no such file."""
    try:
        with opened(path) as descriptor:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise Errno.EINVAL(f"{path} is no regular file")
            if about.st_uid not in (os.getuid(), 0) or about.st_mode & (0o077 if private else 0o022):
                what = "read" if private else "changed"
                raise Errno.EPERM(f"{path} can be {what} by others; `chmod {'600' if private else 'go-w'} {path}`")
            text = read_at(descriptor, MOST_BYTES + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Errno.EIO(f"{path} cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise Errno.EINVAL(f"{path} has more than {MOST_BYTES} bytes")
    yield from text.decode(errors="replace").splitlines()


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, durable=True) as descriptor:
            write_all(descriptor, text.encode())
    except OSError as error:
        raise Errno.EIO(f"{path} cannot be written: {error.strerror}") from None
