"""Installed models: the packed form of a model, kept in a file (installed_file.py) so that it is made once.

A file's name has the digest of the model that it was made from and the version of the format. The digest of a gigabyte
takes a second, so it is remembered by the files' sizes and times of change.

Nothing here is trusted more than the model's own files: a file that is cut short, changed or of another version is made
again, with a warning; where nothing can be written the model is used from memory all the same. Files that nobody has
loaded for a long time, of models that have changed or gone, are removed when another model is installed.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from llmasos.drivers.cpu.native import installed_file
from llmasos.drivers.cpu.native.installed_file import FORMAT, Damaged
from llmasos.drivers.cpu.native.library import ABI
from llmasos.drivers.cpu.native.network import Blueprint
from llmasos.drivers.cpu.native.packing import BITS
from llmasos.drivers.engine.digest import content_digest
from llmasos.syscalls.spare_memory import give_back

_POLL_SECONDS = 0.1
_MAKING_SHARE = 0.9  # of installing; the rest is writing
KEPT_DAYS = 90.0  # without being loaded
_INSTALLED = re.compile(r".+-int[48]-[0-9a-f]{16}\.v\d+\.\d+")  # a file's name
_log = logging.getLogger(__name__)


Progress = Callable[[float], None]
Make = Callable[[Progress], Blueprint]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A load's request to the store."""

    source: Path
    path: Path  # of the installed file
    digest: str
    bits: int
    room: int  # bytes that the weights may take; 0: all
    strict: bool  # models have to be trusted
    progress: Progress
    damaged: list[os.stat_result] = field(default_factory=list)  # files that were found so


class Store:
    """The installed models of one directory, which several drivers may use at once."""

    def __init__(self, directory: Path, threads: int = 2) -> None:
        self.directory = directory.expanduser().absolute()
        self.digests = self.directory / "digests"
        self._threads = threads

    def get(
        self, source: Path, form: str, make: Make, progress: Progress, room: int = 0, *, strict: bool = False
    ) -> Blueprint:
        """The blueprint of the model in the directory `source`: read, or made and kept. `progress` is told fractions.
        `room`, if not 0: bytes that the weights may take; what does not fit stays in the file, if it can be kept there
        (Blueprint.parts). Making a file takes the memory of the whole model. Raises MemoryError where `room` is too
        small for any."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.warning("installed models cannot be kept in %s: %s", self.directory, error.strerror)
            return make(progress)
        digest = self._digest(source, lambda: progress(0.0))
        path = self.directory / f"{_plain(source.name)}-{form}-{digest[:16]}.v{FORMAT}.{ABI}"
        wanted = _Wanted(source, path, digest, BITS[form], room, strict, progress)
        if found := self._read(wanted):
            return found
        with self._lock(path, lambda: progress(0.0)):
            # By now the last holder of the lock may have installed it.
            return self._read(wanted) or self._install(wanted, make)

    def _install(self, wanted: _Wanted, make: Make) -> Blueprint:
        """Make the model, and keep it if that can be; the holder of its lock does so."""
        source, path, progress = wanted.source, wanted.path, wanted.progress
        began = time.monotonic()
        blueprint = make(lambda fraction: progress(fraction * _MAKING_SHARE))
        try:
            if self._digest(source, lambda: progress(_MAKING_SHARE)) != wanted.digest:
                _log.warning("%s changed while it was read: it is not kept", source)
                return blueprint
            size = self._write(wanted, blueprint)
        except OSError as error:
            _log.warning("%s is used but not kept: %s: %s", source, path, error.strerror)
        else:
            took = time.monotonic() - began
            _log.info("installed %s: %.0f MB in %.1f s, as %s", source, size / 1e6, took, path)
            self._sweep()
            if wanted.room:  # the blueprint takes all of the model's memory: only what fits is read
                del blueprint
                found = self._read(wanted)
                if found is None:
                    raise Damaged(f"{path} has been installed just now and cannot be read")
                blueprint = found
            else:
                blueprint = installed_file.with_tables_of(path, blueprint, size)
        give_back()  # packing took a lot
        return blueprint

    def _write(self, wanted: _Wanted, blueprint: Blueprint) -> int:
        def progress(fraction: float) -> None:
            wanted.progress(_MAKING_SHARE + fraction * (1 - _MAKING_SHARE))

        return installed_file.write(wanted.path, blueprint, wanted.digest, wanted.bits, progress)

    def _read(self, wanted: _Wanted) -> Blueprint | None:
        """The blueprint in the file; None if there is no file, or a damaged one, which is looked at once."""
        try:
            descriptor = os.open(wanted.path, os.O_RDONLY)
        except OSError:
            return None
        state = os.fstat(descriptor)
        try:
            if any(os.path.samestat(state, other) for other in wanted.damaged):
                return None
            blueprint = installed_file.read(
                descriptor,
                wanted.digest,
                wanted.bits,
                wanted.room,
                self._threads,
                wanted.progress,
                strict=wanted.strict,
            )
            with suppress(OSError):  # another user's
                os.utime(descriptor)  # for _sweep
            return blueprint
        except (Damaged, OSError) as error:
            _log.warning("the installed model %s is damaged (%s): it is made again", wanted.path, error)
            if isinstance(error, Damaged):
                wanted.damaged.append(state)
            return None
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove files that nobody has loaded for long."""
        oldest = time.time() - KEPT_DAYS * 86_400
        for path in self.directory.iterdir():
            if not _INSTALLED.fullmatch(path.name):
                continue
            with suppress(OSError):  # another user's, or gone
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    _log.info("removed %s: not loaded for %.0f days", path, KEPT_DAYS)

    def _digest(self, source: Path, tick: Callable[[], None]) -> str:
        """SHA-256 of what a model is made from: its configuration and weights."""
        return content_digest(source, self.digests, tick)

    @contextmanager
    def _lock(self, path: Path, tick: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of an installation; waiting calls `tick`. A lock dies with its holder."""
        import filelock  # here: it takes longer to import than most models to load

        lock = filelock.FileLock(self.directory / f".{path.name}.lock")
        said = False
        try:
            while True:
                try:
                    lock.acquire(timeout=0)
                    break
                except filelock.Timeout:
                    if not said:
                        _log.info("waiting for another driver that is installing %s", path.name)
                        said = True
                    tick()
                    time.sleep(_POLL_SECONDS)
        except OSError as error:  # a file system without locks: at worst the work is done twice
            _log.warning("%s cannot be locked: %s", path, error.strerror)
            yield
            return
        try:
            yield
        finally:
            lock.release()


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:64] or "model"
