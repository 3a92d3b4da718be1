"""The files of one commit on their way from the hub into the cache: what is unfinished is gone on with.

A blob grows as `blobs/ETAG.incomplete` and gets its name when its digest is right; a snapshot's file is a link to it. Of
several programs that want one blob the first fetches it, under the lock that huggingface_hub takes too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import filelock

from modelfiles import cache, hub_api, web
from modelfiles.files import shown
from modelfiles.hub_api import LONGEST_WAIT, PIECE, TRIES, Later, Remote, check, pause, url_of
from modelfiles.names import Name
from syscalls.errno import Errno, SyscallError

LOCK_SECONDS = 60.0  # that another program's download may stand still
SPARE = 64 << 20  # bytes of the disk that are left free


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is: bytes there, bytes in all, what is being fetched, and whether it waits and why."""

    done: int
    total: int
    file: str
    waits: str = ""


Said = Callable[[Progress], None]  # whatever it raises ends the download, which can be gone on with


class Download:
    """The files of one commit on their way into the cache."""

    def __init__(self, name: Name, commit: str, said: Said | None) -> None:
        self._name, self._commit, self._said = name, commit, said
        self._blobs = cache.folder(name.repo) / "blobs"
        self._place = cache.snapshot(name.repo, commit)
        self._done = self._total = 0

    def all(self, wanted: list[Remote]) -> None:
        """Fetch those that are not there. Raises EDQUOT before anything is fetched that will not fit."""
        with self._written():
            self._blobs.mkdir(parents=True, exist_ok=True)
            missing = {file.etag: file.size - self._there(file) for file in wanted}
            self._room(sum(missing.values()))
            self._total += sum(file.size for file in wanted)
            for file in wanted:
                self._one(file)

    def remember(self) -> None:
        """The revision that was asked for is this commit, now that its files are there."""
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
                "HF_HOME names another place",
            ) from None

    def _there(self, file: Remote) -> int:
        """How many of its bytes are there."""
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

    def _one(self, file: Remote) -> None:
        blob = self._blobs / file.etag
        if not self._is_whole(blob, file):
            lock = cache.directory() / ".locks" / self._blobs.parent.name / f"{file.etag}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(lock, file):
                if not self._is_whole(blob, file):
                    self._take(blob, file)
        self._done += file.size
        self._tell(file, 0)
        pointer = self._place / file.path
        if not pointer.is_file():
            pointer.parent.mkdir(parents=True, exist_ok=True)
            _link(blob, pointer)

    @staticmethod
    def _is_whole(blob: Path, file: Remote) -> bool:
        with suppress(OSError):
            return blob.is_file() and blob.stat().st_size == file.size
        return False

    def _tell(self, file: Remote, more: int, waits: str = "") -> None:
        if self._said is not None:
            self._said(Progress(self._done + more, self._total, file.path, waits))

    @contextmanager
    def _locked(self, path: Path, file: Remote) -> Iterator[None]:
        """Hold the lock of a blob. Raises EBUSY if who holds it gets nowhere."""
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
        descriptor = os.open(
            partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC, 0o644
        )
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
                self._stream(stream, file, have)
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
                pause(seconds, lambda why=why, now=now: self._tell(file, now, why))  # type: ignore[misc]

    def _stream(self, stream: BinaryIO, file: Remote, have: int) -> None:
        headers = {"Range": f"bytes={have}-"} if have else {}
        with web.request(
            url_of(self._name, self._commit, file.path), token=hub_api.token()[0], headers=headers
        ) as reply:
            if reply.status == 416:
                stream.truncate(0)
                raise web.Cut("the hub has no such part of the file; it is fetched from the beginning")
            check(self._name, reply)
            if have and not (
                reply.status == 206 and reply.header("Content-Range").startswith(f"bytes {have}-")
            ):
                have = stream.truncate(0)
            stream.seek(have)
            while piece := reply.read(PIECE):
                if have + len(piece) > file.size:
                    stream.truncate(0)
                    raise SyscallError(
                        Errno.EIO,
                        f"{shown(file.path)} of {self._name.repo} has more bytes than the hub's list says",
                    )
                stream.write(piece)
                have += len(piece)
                self._tell(file, have)


def _digest(stream: BinaryIO, file: Remote) -> str:
    """The digest of what has arrived, by the kind that the file is known by; empty where none is."""
    if not file.digest:
        return ""
    summed = (
        hashlib.sha256()
        if file.digest == "sha256"
        else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    )
    stream.seek(0)
    while piece := stream.read(PIECE):
        summed.update(piece)
    return summed.hexdigest()


def _link(blob: Path, pointer: Path) -> None:
    """Let a snapshot's name be the blob; where there are no links the blob itself goes there."""
    with suppress(FileNotFoundError):
        pointer.unlink()
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        os.replace(blob, pointer)
