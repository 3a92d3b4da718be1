"""The files of one commit on their way from the hub into the cache; an interrupted download goes on where it stopped.

A blob grows as `blobs/ETAG.incomplete` and gets its name when its digest is right; a snapshot's file is a link to it. If
several programs want one blob, the first fetches it, under the lock that huggingface_hub takes too. Several files are
fetched at once, large ones in parts: the hub's storage (Xet) serves no file of more than 50 GB in one answer.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import filelock

from llmasos.modelfiles import cache, hub_api, web
from llmasos.modelfiles.files import shown
from llmasos.modelfiles.hub_api import LONGEST_WAIT, PIECE, TRIES, Later, Remote, check, pause, url_of
from llmasos.modelfiles.names import Name
from llmasos.modelfiles.together import Together
from llmasos.syscalls.errno import Errno, SyscallError

LOCK_SECONDS = 60.0  # the longest that another program's download may stand still
SPARE = 64 << 20  # bytes of the disk to leave free
AT_ONCE = 4  # files
PART = 8 << 30  # bytes of one request
MOST_PLAIN = 50 * 10**9  # bytes of a file that the hub promises to serve by plain HTTP


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a download: bytes there, bytes in all, the file that progressed last, the number of others that are
    being fetched, and why all of them wait, if they do."""

    done: int
    total: int
    file: str
    waits: str = ""
    others: int = 0


Said = Callable[[Progress], None]  # an exception ends the download, which can go on later


@dataclass(slots=True)
class _State:
    """The progress of one blob, of which the files have `times` copies."""

    done: int = 0
    times: int = 1
    waits: str = ""
    ends: bool = False


class Download:
    """The files of one commit on their way into the cache."""

    def __init__(self, name: Name, commit: str, said: Said | None) -> None:
        self._name, self._commit, self._said = name, commit, said
        self._blobs = cache.folder(name.repo) / "blobs"
        self._place = cache.snapshot(name.repo, commit)
        self._done = self._total = 0  # _done: by earlier calls of `all`
        self._lock = threading.Lock()  # guards the fields below, which every file's thread writes
        self._states: dict[str, _State] = {}
        self._last = ""
        self._together = Together(self._watch)

    def all(self, wanted: list[Remote]) -> None:
        """Fetch those that are missing. Raises EDQUOT, before it fetches anything, if they will not fit."""
        with self._written():
            self._blobs.mkdir(parents=True, exist_ok=True)
            missing = {file.etag: file.size - self._there(file) for file in wanted}
            self._room(sum(missing.values()))
            self._total += sum(file.size for file in wanted)
            blobs: dict[str, list[Remote]] = {}
            for file in wanted:
                blobs.setdefault(file.etag, []).append(file)
            self._states, self._together = {}, Together(self._watch)
            jobs = [lambda files=files: self._one(files) for files in blobs.values()]
            self._together.run(jobs, AT_ONCE)
            self._done += sum(file.size for file in wanted)
            self._states = {}

    def remember(self) -> None:
        """Record that the revision is this commit, once its files are there."""
        with self._written():
            cache.set_commit(self._name.repo, self._name.revision, self._commit)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SyscallError(
                Errno.EIO,
                f"{self._name.repo} cannot be written to {cache.directory()} ({error.strerror or error}); "
                f"{'HF_HUB_CACHE' if os.environ.get('HF_HUB_CACHE') else 'HF_HOME'} names another place",
            ) from None

    def _there(self, file: Remote) -> int:
        """The number of its bytes that are there."""
        with suppress(OSError):
            if (self._blobs / file.etag).stat().st_size == file.size:
                return file.size
        with suppress(OSError):
            return min(os.lstat(self._blobs / (file.etag + cache.PARTIAL)).st_size, file.size)
        return 0

    def _room(self, bytes_wanted: int) -> None:
        free = shutil.disk_usage(self._blobs).free
        if bytes_wanted and bytes_wanted + SPARE > free:
            raise SyscallError(
                Errno.EDQUOT,
                f"{self._name.canonical()} needs {bytes_wanted >> 20} MiB more on the disk of {cache.directory()}, where "
                f"{free >> 20} MiB are free; remove models (`llmasos models du`, `rm`), or let HF_HOME name another disk",
            )

    def _one(self, files: list[Remote]) -> None:
        """Fetch a blob, and link every file that it is to it."""
        file, blob = files[0], self._blobs / files[0].etag
        with self._lock:
            self._states[file.etag] = _State(times=len(files))
        if not self._is_whole(blob, file):
            lock = cache.directory() / ".locks" / self._blobs.parent.name / f"{file.etag}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(lock, file):
                if not self._is_whole(blob, file):
                    self._take(blob, file)
        self._together.go_on()
        for one in files:
            pointer = self._place / one.path
            if not pointer.is_file():
                pointer.parent.mkdir(parents=True, exist_ok=True)
                _link(blob, pointer)
        self._tell(file, file.size, ends=True)

    @staticmethod
    def _is_whole(blob: Path, file: Remote) -> bool:
        with suppress(OSError):
            return blob.is_file() and blob.stat().st_size == file.size
        return False

    def _tell(self, file: Remote, done: int, waits: str = "", *, ends: bool = False) -> None:
        """Report the progress of a file, from its thread. Raises Stopped."""
        with self._lock:
            state = self._states[file.etag]
            state.done, state.waits, state.ends = done, waits, ends
            if not waits:
                self._last = file.path
        if self._said is not None:
            self._together.seen()
        else:
            self._together.go_on()

    def _watch(self) -> None:
        """Report the progress of the whole."""
        if self._said is None:
            return
        with self._lock:
            states = self._states.values()
            done = self._done + sum(state.done * state.times for state in states)
            running = [state for state in states if not state.ends]
            waits = running[0].waits if running and all(state.waits for state in running) else ""
            progress = Progress(done, self._total, self._last, waits, max(0, len(running) - 1))
        self._said(progress)

    @contextmanager
    def _locked(self, path: Path, file: Remote) -> Iterator[None]:
        """Hold the lock of a blob. Raises EBUSY if its holder makes no progress."""
        lock = filelock.FileLock(path)
        size, since = -1, time.monotonic()
        while not lock.is_locked:
            with suppress(filelock.Timeout):
                lock.acquire(timeout=1.0)
                break
            now = self._there(file)
            if now != size:
                size, since = now, time.monotonic()
            self._tell(file, now, "another program is fetching it")
            if time.monotonic() - since > LOCK_SECONDS:
                raise SyscallError(
                    Errno.EBUSY, f"another program holds {path} and fetches nothing; end it and pull again"
                )
        try:
            yield
        finally:
            lock.release()

    def _take(self, blob: Path, file: Remote) -> None:
        """Fetch a blob, from where it was left."""
        partial = blob.with_name(blob.name + cache.PARTIAL)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise SyscallError(Errno.EIO, f"{partial} is no regular file; remove it")
            self._fill(stream, file)
            stream.flush()
            os.fsync(stream.fileno())
            right = _digest(stream, file) in ("", file.etag)
        if not right:
            partial.unlink(missing_ok=True)
            raise SyscallError(
                Errno.EIO,
                f"{shown(file.path)} of {self._name.repo} arrived with other bytes than its digest says; it was thrown "
                "away: pull again",
            )
        os.replace(partial, blob)

    def _fill(self, stream: BinaryIO, file: Remote) -> None:
        stalls, waited = 0, 0.0
        while True:
            have = stream.seek(0, os.SEEK_END)
            if have > file.size:
                have = stream.truncate(0)
            if have == file.size:
                return
            seconds = 2.0**stalls
            try:
                if self._stream(stream, file, have):
                    continue
                why = "the connection ended early"
            except Later as later:
                why, seconds = later.why, later.seconds or seconds
            except web.Cut as cut:
                why = str(cut)
            now = stream.seek(0, os.SEEK_END)
            if now == file.size:
                return
            stalls = 0 if now > have else stalls + 1
            waited = 0.0 if now > have else waited + seconds
            if stalls >= TRIES or waited > LONGEST_WAIT:
                raise SyscallError(
                    Errno.EAGAIN,
                    f"{shown(file.path)} of {self._name.repo} could not be fetched beyond {now >> 20} of "
                    f"{file.size >> 20} MiB: {why}; pull again, it goes on where it was",
                )
            self._tell(file, now, why)
            if now == have:
                pause(seconds, partial(self._tell, file, now, why))

    def _stream(self, stream: BinaryIO, file: Remote, have: int) -> bool:
        """Take the answer to one request; returns whether the whole part arrived."""
        end = min(file.size, have + PART)
        last = "" if end == file.size else str(end - 1)
        headers = {"Range": f"bytes={have}-{last}"} if have or last else {}
        with (
            web.request(url_of(self._name, self._commit, file.path), token=hub_api.token()[0], headers=headers) as reply,
            self._together.cutting(reply.cut),
        ):
            if reply.status == 416:
                stream.truncate(0)
                raise web.Cut("the hub has no such part of the file; it is fetched from the beginning")
            if reply.status == 400 and file.size > MOST_PLAIN:
                raise SyscallError(
                    Errno.ENOTSUP,
                    f"{shown(file.path)} of {self._name.repo} has {file.size >> 30} GiB, and the hub serves it by "
                    f"its own protocol (Xet) only: `hf download {self._name.repo} {shown(file.path)}` (pip install "
                    "huggingface_hub hf_xet) fetches it to where it is found here",
                )
            check(self._name, reply)
            if headers and not (reply.status == 206 and reply.header("Content-Range").startswith(f"bytes {have}-")):
                have, end = stream.truncate(0), file.size
            stream.seek(have)
            while piece := reply.read(PIECE):
                if have + len(piece) > end:
                    stream.truncate(0)
                    raise SyscallError(
                        Errno.EIO,
                        f"{shown(file.path)} of {self._name.repo} has more bytes than the hub's list says",
                    )
                stream.write(piece)
                have += len(piece)
                self._tell(file, have)
        return have == end


def _digest(stream: BinaryIO, file: Remote) -> str:
    """The digest of what has arrived, by the file's kind of digest; empty if it has none."""
    if not file.digest:
        return ""
    summed = (
        hashlib.sha256() if file.digest == "sha256" else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    )
    stream.seek(0)
    while piece := stream.read(PIECE):
        summed.update(piece)
    return summed.hexdigest()


def _link(blob: Path, pointer: Path) -> None:
    """Make a snapshot's name a link to the blob; without links, move the blob there."""
    with suppress(FileNotFoundError):
        pointer.unlink()
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        os.replace(blob, pointer)
