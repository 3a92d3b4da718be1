"""Installed models: what the native decoder made of a model, kept in one file so that it is made once.

A file has a header (what it is, where its pages are, their checksums), the pages of the weights and those of the tables,
each on a boundary that can be mapped, as they lie in memory. The weights are read into an arena of huge pages; the
tables, few rows of which a step needs, are mapped. Its name has the digest of what it was made from and the version of
the format. The digest of a gigabyte takes a second, so it is remembered by the files' sizes and times of change.

Nothing here is fit to be trusted more than the model's own files; so a file that is cut short, changed or of another
version is made again, with a warning, and where nothing can be written the model is used from memory all the same.
Files that nobody has loaded for a long time, of models that have changed or gone, are removed when another is installed.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import re
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from llmasos.drivers.cpu.native import stream
from llmasos.drivers.cpu.native.library import ABI, Layer, Model
from llmasos.drivers.cpu.native.network import Blueprint, Page, Parts
from llmasos.drivers.cpu.native.packing import BITS, PAGE, Arena
from llmasos.drivers.engine.digest import content_digest
from llmasos.syscalls import atomic_file

FORMAT = 1  # of the file; that of its structures is library.ABI
_MAGIC = b"LLMasOS\0"
_PRELUDE = struct.Struct("<8sQQ")  # magic, bytes of the header, its checksum
_MOST_HEADER = 1 << 24
_MAPPED = 1 << 16  # bytes; every system's pages divide it
_PIECE = 1 << 20  # bytes read or written at a time
_POLL_SECONDS = 0.1
KEPT_DAYS = 90.0  # without being loaded
_INSTALLED = re.compile(r".+-int[48]-[0-9a-f]{16}\.v\d+\.\d+")  # a file's name
_log = logging.getLogger(__name__)


class Damaged(Exception):
    """An installed file that cannot be used: why."""


class _Header(msgspec.Struct):
    format: int
    abi: int
    digest: str
    bits: int
    model: bytes  # Model and Layers with offsets for pointers
    layers: bytes
    pages: list[Page]  # of the weights, from their beginning
    sums: list[int]  # of the pages
    tables_size: int
    tables_sums: list[int]  # of pieces of the tables
    weights_size: int


@dataclass
class Mapped:
    """A part of a file, mapped; what is never looked at is never read."""

    base: int
    map: mmap.mmap


class Store:
    """The installed models of one directory, which several drivers may use at once."""

    def __init__(self, directory: Path, threads: int = 2) -> None:
        self.directory = directory.expanduser().absolute()
        self.digests = self.directory / "digests"
        self._threads = threads

    def get(
        self,
        source: Path,
        form: str,
        make: Callable[[Callable[[float], None]], Blueprint],
        progress: Callable[[float], None],
        room: int = 0,
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
        bits = BITS[form]
        digest = self._digest(source, lambda: progress(0.0))
        path = self.directory / f"{_plain(source.name)}-{form}-{digest[:16]}.v{FORMAT}.{ABI}"
        bad: list[os.stat_result] = []
        found = self._read(path, digest, bits, room, progress, bad)
        if found:
            return found
        with self._lock(path, lambda: progress(0.0)):
            found = self._read(path, digest, bits, room, progress, bad)  # by whoever had the lock before
            if found:
                return found
            began = time.monotonic()
            blueprint = make(lambda fraction: progress(fraction * 0.9))
            try:
                if self._digest(source, lambda: progress(0.9)) != digest:
                    _log.warning("%s changed while it was read: it is not kept", source)
                    return blueprint
                size = self._write(path, blueprint, digest, bits, lambda fraction: progress(0.9 + fraction * 0.1))
            except OSError as error:
                _log.warning("%s is used but not kept: %s: %s", source, path, error.strerror)
            else:
                _log.info(
                    "installed %s: %.0f MB in %.1f s, as %s",
                    source,
                    size / 1e6,
                    time.monotonic() - began,
                    path,
                )
                self._sweep()
                if room:  # what was made takes all of it: what fits is read
                    del blueprint
                    found = self._read(path, digest, bits, room, progress, bad)
                    if found is None:
                        raise Damaged(f"{path} has been installed just now and cannot be read")
                    blueprint = found
                else:
                    blueprint = _with_tables_of(path, blueprint, size)
            _give_back()
            return blueprint

    def _sweep(self) -> None:
        """Remove what has not been loaded for long."""
        oldest = time.time() - KEPT_DAYS * 86_400
        for path in self.directory.iterdir():
            if not _INSTALLED.fullmatch(path.name):
                continue
            with suppress(OSError):  # another user's, or gone
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    _log.info("removed %s: not loaded for %.0f days", path, KEPT_DAYS)

    # --- names ------------------------------------------------------------------------------------------------------

    def _digest(self, source: Path, tick: Callable[[], None]) -> str:
        """SHA-256 of what a model is made from: its configuration and weights."""
        return content_digest(source, self.digests, tick)

    @contextmanager
    def _lock(self, path: Path, tick: Callable[[], None]) -> Iterator[None]:
        """Be the only one to install this; waiting shows life. A lock dies with its holder."""
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

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(
        self,
        path: Path,
        digest: str,
        bits: int,
        room: int,
        progress: Callable[[float], None],
        bad: list[os.stat_result],
    ) -> Blueprint | None:
        """What is in the file; None if there is none, or it is damaged. `bad` remembers what was found so."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        state = os.fstat(descriptor)
        try:
            if any(os.path.samestat(state, other) for other in bad):
                return None
            blueprint = self._read_file(descriptor, digest, bits, room, progress)
            with suppress(OSError):  # another user's
                os.utime(descriptor)  # for _sweep
            return blueprint
        except (Damaged, OSError) as error:
            _log.warning("the installed model %s is damaged (%s): it is made again", path, error)
            if isinstance(error, Damaged):
                bad.append(state)
            return None
        finally:
            os.close(descriptor)

    def _read_file(
        self, descriptor: int, digest: str, bits: int, room: int, progress: Callable[[float], None]
    ) -> Blueprint:
        header, start = _read_header(descriptor)
        if (header.format, header.abi, header.digest, header.bits) != (FORMAT, ABI, digest, bits):
            raise Damaged("its name says another model than its header")
        layers = Layer * (len(header.layers) // ctypes.sizeof(Layer))
        weights_at, tables_at = start, _up(start + header.weights_size)
        if os.fstat(descriptor).st_size < tables_at + header.tables_size:
            raise Damaged("it is cut short")
        sizes = [page.size for page in header.pages]
        streamed = stream.choose(sizes[:-1], room - sizes[-1]) if room else []
        if streamed:
            arena = Arena(sum(size + PAGE for i, size in enumerate(sizes) if i not in streamed))
        else:
            arena = Arena(header.weights_size)
            arena.used = header.weights_size
        bases = [arena.base] * len(sizes)
        wanted: list[tuple[int, memoryview | None, int, int, str]] = []
        for i, (page, total) in enumerate(zip(header.pages, header.sums, strict=True)):
            into = None  # of a page that stays in the file only the checksum is looked at
            if i not in streamed:
                at = page.offset
                if streamed:
                    at = arena.page()
                    arena.used += page.size
                    bases[i] = arena.base + at - page.offset
                into = arena.bytes(at, at + page.size)
            wanted.append((weights_at + page.offset, into, page.size, total, page.name))
        for (first, size), total in zip(_pieces(header.tables_size), header.tables_sums, strict=True):
            wanted.append((tables_at + first, None, size, total, "tables"))
        with ThreadPoolExecutor(self._threads) as pool:
            for done, _ in enumerate(pool.map(lambda part: _fetch(descriptor, *part), wanted)):
                progress((done + 1) / len(wanted))
        parts = None
        if streamed:
            file = _map(descriptor, weights_at, header.weights_size)
            stretches = []
            for i in streamed:
                bases[i] = file.base
                stretches.append(stream.Stretch(i, file.base + header.pages[i].offset, sizes[i]))
            resident = stream.resident(sizes[:-1], streamed) + sizes[-1]
            parts = Parts(bases, stretches, file, header.weights_size, resident)
        return Blueprint(
            Model.from_buffer_copy(header.model),
            layers.from_buffer_copy(header.layers),
            arena,
            header.pages,
            _map(descriptor, tables_at, header.tables_size, scattered=True),
            header.tables_size,
            parts,
        )

    # --- writing ----------------------------------------------------------------------------------------------------

    def _write(self, path: Path, blueprint: Blueprint, digest: str, bits: int, progress: Callable[[float], None]) -> int:
        """Write the file, whole or not at all; returns its size in bytes."""
        tables = blueprint.tables
        assert isinstance(tables, Arena)
        weights_size, tables_size = blueprint.weights.used, blueprint.tables_size
        sums = [
            xxhash.xxh3_64_intdigest(blueprint.weights.bytes(page.offset, page.offset + page.size))
            for page in blueprint.pages
        ]
        header = msgspec.msgpack.encode(
            _Header(
                format=FORMAT,
                abi=ABI,
                digest=digest,
                bits=bits,
                model=bytes(blueprint.model),
                layers=bytes(blueprint.layers),
                pages=blueprint.pages,
                sums=sums,
                tables_size=tables_size,
                tables_sums=[
                    xxhash.xxh3_64_intdigest(tables.bytes(first, first + size)) for first, size in _pieces(tables_size)
                ],
                weights_size=weights_size,
            )
        )
        start = _up(_PRELUDE.size + len(header))
        tables_at = _up(start + weights_size)
        with atomic_file.replacing(path) as descriptor:
            os.write(descriptor, _PRELUDE.pack(_MAGIC, len(header), xxhash.xxh3_64_intdigest(header)) + header)
            done = 0
            for memory, at, size in (
                (blueprint.weights, start, weights_size),
                (tables, tables_at, tables_size),
            ):
                for first in range(0, size, _PIECE):
                    piece = memory.bytes(first, min(first + _PIECE, size))
                    while piece:
                        written = os.pwrite(descriptor, piece, at + first)
                        first += written
                        piece = piece[written:]
                        done += written
                    progress(done / (weights_size + tables_size))
        return tables_at + tables_size


def _with_tables_of(path: Path, made: Blueprint, size: int) -> Blueprint:
    """What was made and written to a file of so many bytes, with its tables mapped there, as any later load has them. Its
    weights stay where they are: there may not be memory for them twice."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # somebody has removed it
        return made
    try:
        if os.fstat(descriptor).st_size < size:
            return made
        tables = _map(descriptor, size - made.tables_size, made.tables_size, scattered=True)
    finally:
        os.close(descriptor)
    return replace(made, tables=tables)


def _give_back() -> None:
    """Have the C library return the memory that it keeps for the next allocation; it keeps a lot of what packing took."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # glibc's
    if trim is not None:
        trim(0)


def _map(descriptor: int, at: int, size: int, *, scattered: bool = False) -> Mapped:
    """`scattered`: of what is read the neighbours are not wanted."""
    mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, offset=at)
    if scattered and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return Mapped(int(np.frombuffer(mapped, dtype=np.uint8).ctypes.data), mapped)


def _read_header(descriptor: int) -> tuple[_Header, int]:
    """The header and where the weights start."""
    prelude = os.pread(descriptor, _PRELUDE.size, 0)
    if len(prelude) < _PRELUDE.size:
        raise Damaged("it is cut short")
    magic, size, total = _PRELUDE.unpack(prelude)
    if magic != _MAGIC or size > _MOST_HEADER:
        raise Damaged("it is no installed model")
    raw = os.pread(descriptor, size, _PRELUDE.size)
    if len(raw) < size or xxhash.xxh3_64_intdigest(raw) != total:
        raise Damaged("the checksum of its header is off")
    try:
        header = msgspec.msgpack.decode(raw, type=_Header)
    except msgspec.MsgspecError as error:
        raise Damaged(f"its header cannot be read: {error}") from None
    return header, _up(_PRELUDE.size + size)


def _fetch(descriptor: int, at: int, into: memoryview | None, size: int, wanted: int, name: str) -> None:
    """Read and check a page, a piece at a time: a piece is still in the cache when it is summed up."""
    total = xxhash.xxh3_64()
    scratch = memoryview(bytearray(_PIECE)) if into is None else None
    done = 0
    while done < size:
        length = min(_PIECE, size - done)
        piece = into[done : done + length] if into is not None else scratch[:length]  # type: ignore[index]
        count = os.preadv(descriptor, [piece], at + done)
        if count == 0:
            raise Damaged("it is cut short")
        total.update(piece[:count])
        done += count
    if total.intdigest() != wanted:
        raise Damaged(f"the checksum of its {name} is off")


def _pieces(size: int) -> list[tuple[int, int]]:
    """Offsets and sizes of the parts of the tables: each has its checksum, so that several threads can check them."""
    part = 16 * _PIECE
    return [(first, min(part, size - first)) for first in range(0, size, part)]


def _up(size: int) -> int:
    return -(-size // _MAPPED) * _MAPPED


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:64] or "model"
