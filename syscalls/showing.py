"""Showing files to a kernel that serves several users: the client's half, for calls that name paths (shown.py).

The program opens the files with its own rights and sends the descriptors; the reference that it gets stands in the call.
Where an image is written the program makes the file, without a name; the kernel writes it, and when the call is answered
it gets its name, which replaces what had it in one step (atomic_file.py). So neither ever follows a path that the other
may change.

The kernel's own names of what was shown become those that this user knows, in what calls return. They are noted in the
user's cache, so that another program of the user's (a shell that talks to an agent) reads the words of the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from llmasos.syscalls import limits, runtime, shown
from llmasos.syscalls.atomic_file import read_at, replacing, write_all
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import CheckpointInfo, EstimateInfo, ModelInfo, ProcessInfo
from llmasos.syscalls.shown import Denied, File, Kept, Show, Taken, ToKernel, Whole
from llmasos.syscalls.table import Call, Getinfo, Models, Names, Ps

T = TypeVar("T", Kept, Taken)

TRIES = 3  # of a call: its reference may be another kernel's by now, its name one that this user can resolve
# What a model's directory is shown of: what any program reads of it.
_ENDINGS = (".json", ".safetensors", ".gguf", ".jinja", ".model", ".txt", ".tiktoken", ".sig")
_PARTS = re.compile(r"(.*)-\d{5}-of-(\d{5})((?:\.gguf)?)", re.IGNORECASE | re.DOTALL | re.ASCII)  # of a GGUF file
_COPY = re.compile(r".*/models/[0-9a-f]{64}(?:/[^/]+)?", re.DOTALL)  # a path of the kernel's
_FIELDS: dict[type, tuple[str, ...]] = {
    ModelInfo: ("name", "path"),
    EstimateInfo: ("name", "path"),
    ProcessInfo: ("model",),
    CheckpointInfo: ("path",),
}
_USES: dict[Names, Literal["model", "file", "target"]] = {
    Names.MODEL: "model",
    Names.FILE: "file",
    Names.TARGET: "target",
}
CALLS = frozenset({*shown.NAMING, Models, Ps, Getinfo})  # that name files, or return names of some


class _Noted(msgspec.Struct):
    """What the user calls a copy of the kernel's, and the files that he has shown (name, size, time of change)."""

    path: str
    files: list[tuple[str, int, int]]


def showing_to(place: object, tenant: str) -> Showing | None:
    """What shows files to the kernel in a runtime directory; None: it opens paths itself, with rights that are this
    user's, too."""
    if not isinstance(place, Path):
        return None
    try:
        about = os.stat(place / runtime.FILES)
    except OSError:
        return None
    return Showing(place / runtime.FILES) if tenant or about.st_uid != os.getuid() else None


class Showing:
    """Shows files to one kernel. `find` may be set: it gives the path of a model that the kernel does not know by name,
    or raises SyscallError."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.find: Callable[[str], str] | None = None
        self.names: dict[str, str] = {}  # what this user calls what the kernel calls otherwise
        self.turn = threading.Lock()  # one thing is shown at a time: all take some of what the user may have

    def again(self, call: Call[Any], error: SyscallError) -> Call[Any] | None:
        """The call to make in place of one that has failed so; None: there is none. Raises SyscallError."""
        if error.errno is Errno.EAGAIN and shown.UNKNOWN in error.reason:
            return call
        if error.errno is Errno.EPERM and shown.NOT_YOURS in error.reason and self.find is not None:
            named = [name for name, what in shown.NAMING[type(call)] if what is Names.MODEL]
            found = {name: value for name in named if (value := getattr(call, name)) and not _is_path(value)}
            if found:
                return msgspec.structs.replace(call, **{name: self.find(value) for name, value in found.items()})
        return None

    def own(self, value: Any) -> Any:
        """A result with the names that this user knows."""
        if isinstance(value, list):
            return [self.own(one) for one in value]
        changes = {}
        for name in _FIELDS.get(type(value), ()):
            said = getattr(value, name)
            path = shown.file_of(said)
            if (mine := self.names.get(path) or (self._recalled(path) if _COPY.fullmatch(path) else "")) and mine != path:
                changes[name] = said.replace(path, mine)
        return msgspec.structs.replace(value, **changes) if changes else value

    def _recalled(self, path: str) -> str:
        """The name that another program of this user has noted, if its files are the same still."""
        try:
            noted = msgspec.json.decode(_note_of(path).read_bytes(), type=_Noted)
        except (OSError, msgspec.MsgspecError, RuntimeError):
            return ""
        base = noted.path if os.path.isdir(noted.path) else os.path.dirname(noted.path)
        try:
            same = all(_stamp(os.path.join(base, name)) == (name, *rest) for name, *rest in noted.files)
        except OSError:
            return ""
        if same:
            self.names[path] = noted.path
        return noted.path if same else ""


class Attempt:
    """Shows the files of one call; `call` is then the call to make. `done` or `drop` ends it."""

    def __init__(self, showing: Showing, call: Call[Any], until: float | None) -> None:
        """`until`: of time.monotonic."""
        self.call = self._asked = call
        self._showing, self._until = showing, until
        self._names: dict[str, str] = {}
        self._targets = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._running, self._stopped = False, threading.Event()

    def run(self) -> None:
        """Raises SyscallError EPERM, ENOENT, EIO: this program cannot open a file; what the kernel says; TimeoutError."""
        with self._lock:
            self._running = not self._stopped.is_set()
        if not self._running:
            return
        try:
            for name, what in shown.NAMING.get(type(self.call), ()):
                value = getattr(self.call, name)
                if value and not shown.REFERENCE.search(value):  # else the caller has shown it
                    self._field(name, what, value)
        except BaseException:
            self.drop()
            raise
        finally:
            with self._lock:
                self._running = False
        if self._stopped.is_set():
            self.drop()

    def stop(self) -> None:
        """Nobody waits for it, and another thread may be showing."""
        with self._lock:
            self._stopped.set()
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
            running = self._running
        if not running:
            self.drop()

    def failed(self, error: SyscallError, *, again: bool) -> Call[Any]:
        """The call has failed so. The one to make in its place, if it may be made `again`; else raises the error, with
        the names that this user knows."""
        self.stop()
        if again and (call := self._showing.again(self._asked, error)) is not None:
            return call
        reason = error.reason
        for path, mine in (*self._names.items(), *self._showing.names.items()):
            reason = reason.replace(path, mine)
        raise error if reason == error.reason else SyscallError(error.errno, reason)

    def drop(self) -> None:
        """The call has failed: what was to be written is not there."""
        self._targets.__exit__(SyscallError, SyscallError(Errno.EIO, ""), None)

    def done(self, result: Any) -> Any:
        """The call's result as this user knows it. What was written has its name from here on. Raises SyscallError."""
        try:
            self._targets.close()
        except OSError as error:
            raise Errno.EIO(f"the file was written, and cannot get its name: {error.strerror or error}") from None
        found = self._showing.own(result)
        if isinstance(found, CheckpointInfo):
            found = msgspec.structs.replace(found, path=self._names.get(found.path, found.path))
        return found

    # --- fields ---

    def _field(self, name: str, what: Names, value: str) -> None:
        path, first = shown.file_of(value), None
        if what is Names.TARGET:
            descriptor = self._target(path)
            taken = self._show(what, path, [(os.path.basename(path), descriptor)], None)
        elif what is Names.FILE:
            taken = self._show(what, path, [(os.path.basename(path), path)], None)
        else:
            if not _is_path(path):
                return
            path = os.path.abspath(os.path.expanduser(path))
            files = _files_of(path)
            first = None if os.path.isdir(path) else os.path.basename(path)
            taken = self._show(what, path, [(os.path.basename(one), one) for one in files], first)
            self._showing.names[taken.path] = path
            _note(taken.path, path, files)
        self._names[taken.path] = path
        changed = value.replace(shown.file_of(value), taken.reference)
        if len(changed) > limits.MAX_PATH:
            raise Errno.EINVAL(f"{value!r:.80} is too long a name")
        self.call = msgspec.structs.replace(self.call, **{name: changed})

    def _target(self, path: str) -> int:
        """A file to be written, without a name yet. What has the name may be replaced if it is a process image."""
        try:
            if os.path.lexists(path):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    raise Errno.EINVAL(f"{path} is no regular file; name a file, such as {path}.img")
                with _opened(path) as descriptor:
                    if read_at(descriptor, len(shown.IMAGE_MAGIC)) not in (b"", shown.IMAGE_MAGIC):
                        raise Errno.EINVAL(f"{path} is there and is no process image; remove it, or choose another name")
            return self._targets.enter_context(replacing(path, durable=True))
        except OSError as error:
            raise _unopened(path, error) from None

    def _show(self, what: Names, path: str, files: list[tuple[str, str | int]], first: str | None) -> Taken:
        with self._turn(), socket.socket(socket.AF_UNIX) as connection:
            with self._lock:
                if self._stopped.is_set():
                    raise Errno.EINTR("nobody waits for it")
                self._connection = connection
            try:
                connection.settimeout(self._left())
                connection.connect(os.fspath(self._showing.place))
                self._send(connection, Show(_USES[what], os.path.basename(path)[:255]), -1)
                for name, place in files:
                    if isinstance(place, int):
                        self._send(connection, File(name), place)
                    else:
                        with _opened(place) as descriptor:
                            self._send(connection, File(name), descriptor)
                    self._answer(connection, Kept)
                self._send(connection, Whole(first), -1)
                return self._answer(connection, Taken)
            except TimeoutError:
                raise
            except OSError as error:
                why = f"the kernel that {path} was to be shown to has gone, or takes nothing: {error.strerror or error}"
                raise Errno.EPIPE(why) from None
            finally:
                with self._lock:
                    self._connection = None

    @contextlib.contextmanager
    def _turn(self) -> Any:
        left = self._left()
        if not self._showing.turn.acquire(timeout=-1 if left is None else left):
            raise TimeoutError
        try:
            yield
        finally:
            self._showing.turn.release()

    def _left(self) -> float | None:
        if self._until is None:
            return None
        if (left := self._until - time.monotonic()) <= 0:
            raise TimeoutError
        return left

    def _send(self, connection: socket.socket, message: ToKernel, descriptor: int) -> None:
        data = shown.framed(message)
        connection.settimeout(self._left())
        try:
            sent = socket.send_fds(connection, [data], [descriptor] if descriptor >= 0 else [])
            if sent < len(data):
                connection.sendall(data[sent:])
        except BrokenPipeError:  # it takes no more, and has said why
            self._answer(connection, Kept)
            raise

    def _answer(self, connection: socket.socket, wanted: type[T]) -> T:
        connection.settimeout(self._left())
        (length,) = shown.LENGTH.unpack(_exactly(connection, shown.LENGTH.size))
        if length > shown.MOST_MESSAGE:
            raise Errno.EPROTO(f"the kernel answered with {length} bytes where files are shown")
        try:
            message = shown.from_kernel(_exactly(connection, length))
        except msgspec.MsgspecError as error:
            raise Errno.EPROTO(f"the kernel's answer where files are shown is none: {error}") from None
        if isinstance(message, Denied):
            raise message.errno(message.reason)
        if not isinstance(message, wanted):
            raise Errno.EPROTO(f"the kernel answered {type(message).__name__} where files are shown")
        return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError(0, "its socket was closed")
        data += part
    return data


def _is_path(name: str) -> bool:
    return os.path.isabs(name) or name.startswith("~")


def _files_of(path: str) -> list[str]:
    """The files of a model: those of a directory, or a file and its other parts. Raises SyscallError."""
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                found = [e.path for e in entries if e.name.lower().endswith(_ENDINGS) and e.name[0] != "."]
            if not found:
                raise Errno.ENOENT(f"no model in {path}: it has none of the files that models are made of")
            return sorted(found)
        if parts := _PARTS.fullmatch(os.path.basename(path)):
            alike = re.compile(rf"{re.escape(parts[1])}-\d{{5}}-of-{parts[2]}{re.escape(parts[3])}")
            with os.scandir(os.path.dirname(path)) as entries:
                return sorted(one.path for one in entries if alike.fullmatch(one.name)) or [path]
    except OSError as error:
        raise _unopened(path, error) from None
    return [path]


@contextlib.contextmanager
def _opened(path: str) -> Any:
    """A descriptor of a regular file. Raises SyscallError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _unopened(path, error) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Errno.EPERM(f"{path} is no regular file, and one was wanted")
        yield descriptor
    finally:
        os.close(descriptor)


def _unopened(path: str, error: OSError) -> SyscallError:
    if isinstance(error, PermissionError):
        return Errno.EPERM(f"{path}: you have no right to that ({error.strerror})")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Errno.ENOENT(f"{path}: there is no such file")
    return Errno.EIO(f"{path}: {error.strerror or error}")


# --- what the user calls the kernel's copies ---


def _stamp(path: str) -> tuple[str, int, int]:
    state = os.stat(path)
    return os.path.basename(path), state.st_size, state.st_mtime_ns


def _note_of(path: str) -> Path:
    """Raises RuntimeError: no home is known."""
    base = os.environ.get("XDG_CACHE_HOME")
    cache = Path(base) if base else Path.home() / ".cache"
    return cache / "llmasos" / "shown" / hashlib.sha256(path.encode()).hexdigest()


def _note(path: str, own: str, files: list[str]) -> None:
    """Note what a copy of the kernel's is called here. Where that cannot be, other programs see the kernel's name."""
    with contextlib.suppress(OSError, RuntimeError):
        note = _note_of(path)
        data = msgspec.json.encode(_Noted(own, [_stamp(file) for file in files]))
        if note.exists() and note.read_bytes() == data:
            return
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as descriptor:
            write_all(descriptor, data)
