"""The file of an installed model (installed.py): a header, the pages of the weights, the tables.

The header says what the model is, where its pages are and what their checksums are. Pages and tables stand as they lie in
memory, each on a boundary that can be mapped. The weights are read into an arena of huge pages; the tables, few rows of
which a step needs, are mapped, and so are pages that are streamed (stream.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from llmasos.drivers.cpu.native import stream
from llmasos.drivers.cpu.native.guard import Guard, Held
from llmasos.drivers.cpu.native.library import ABI, Layer, Model
from llmasos.drivers.cpu.native.network import Blueprint, Page, Parts
from llmasos.drivers.cpu.native.packing import PAGE, Arena
from llmasos.syscalls import atomic_file

FORMAT = 1  # of the file; that of its structures is library.ABI
_MAGIC = b"LLMasOS\0"
_PRELUDE = struct.Struct("<8sQQ")  # magic, bytes of the header, its checksum
_MOST_HEADER = 1 << 24
_MAPPED = 1 << 16  # bytes; every system's pages divide it
_PIECE = 1 << 20  # bytes read or written at a time


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
    """A part of a file, mapped; pages that nobody looks at are never read."""

    base: int
    map: mmap.mmap


def read(
    descriptor: int,
    digest: str,
    bits: int,
    room: int,
    threads: int,
    progress: Callable[[float], None],
    *,
    strict: bool = False,
) -> Blueprint:
    """The blueprint in the file. `room`, if not 0: bytes that the weights may take; pages that do not fit stay in the
    file, and only their checksums are looked at. `strict`: those are held against their SHA-256 whenever they are brought
    in (guard.py). Raises Damaged, OSError, and MemoryError where `room` is too small."""
    header, weights_at = _read_header(descriptor)
    if (header.format, header.abi, header.digest, header.bits) != (FORMAT, ABI, digest, bits):
        raise Damaged("its name says another model than its header")
    tables_at = _up(weights_at + header.weights_size)
    if os.fstat(descriptor).st_size < tables_at + header.tables_size:
        raise Damaged("it is cut short")
    sizes = [page.size for page in header.pages]
    streamed = stream.choose(sizes[:-1], room - sizes[-1]) if room else []
    arena, places = _place(header, streamed)
    wanted = [
        _Stretch(weights_at + page.offset, page.size, total, page.name, _part(arena, at, page.size))
        for page, total, at in zip(header.pages, header.sums, places, strict=True)
    ]
    for (first, size), total in zip(_pieces(header.tables_size), header.tables_sums, strict=True):
        wanted.append(_Stretch(tables_at + first, size, total, "tables"))
    with ThreadPoolExecutor(threads) as pool:
        held = []
        for done, one in enumerate(pool.map(lambda stretch: _fetch(descriptor, stretch, strict=strict), wanted)):
            held += [replace(one, layer=done if done < len(places) else -1)] if one is not None else []
            progress((done + 1) / len(wanted))
    layers = Layer * (len(header.layers) // ctypes.sizeof(Layer))
    return Blueprint(
        Model.from_buffer_copy(header.model),
        layers.from_buffer_copy(header.layers),
        arena,
        header.pages,
        _map(descriptor, tables_at, header.tables_size, scattered=True),
        header.tables_size,
        _parts(descriptor, header, weights_at, streamed, arena, places) if streamed else None,
        Guard(descriptor, held, strict=strict and bool(streamed)),
    )


def _place(header: _Header, streamed: list[int]) -> tuple[Arena, list[int | None]]:
    """Memory for the pages that are not `streamed`, and where in it each page goes; None: it stays in the file."""
    if not streamed:
        arena = Arena(header.weights_size)
        arena.used = header.weights_size
        return arena, [page.offset for page in header.pages]
    arena = Arena(sum(page.size + PAGE for i, page in enumerate(header.pages) if i not in streamed))
    places: list[int | None] = []
    for i, page in enumerate(header.pages):
        if i in streamed:
            places.append(None)
            continue
        places.append(arena.page())
        arena.used += page.size
    return arena, places


def _part(arena: Arena, at: int | None, size: int) -> memoryview | None:
    return None if at is None else arena.bytes(at, at + size)


def _parts(
    descriptor: int, header: _Header, weights_at: int, streamed: list[int], arena: Arena, places: list[int | None]
) -> Parts:
    """Where the pages of a model are whose `streamed` pages are mapped. The base of a page is the address that its offset
    counts from."""
    file = _map(descriptor, weights_at, header.weights_size)
    bases = [
        file.base if at is None else arena.base + at - page.offset for page, at in zip(header.pages, places, strict=True)
    ]
    sizes = [page.size for page in header.pages]
    stretches = [stream.Stretch(i, file.base + header.pages[i].offset, sizes[i]) for i in streamed]
    resident = stream.resident(sizes[:-1], streamed) + sizes[-1]
    return Parts(bases, stretches, file, header.weights_size, resident)


def write(path: Path, blueprint: Blueprint, digest: str, bits: int, progress: Callable[[float], None]) -> int:
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
        prelude = _PRELUDE.pack(_MAGIC, len(header), xxhash.xxh3_64_intdigest(header))
        atomic_file.write_all(descriptor, prelude, header)
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


def with_tables_of(path: Path, made: Blueprint, size: int) -> Blueprint:
    """A blueprint that was made and written to a file of `size` bytes, with its tables mapped there, as any later load
    has them. Its weights stay where they are: there may be no memory for them twice."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # somebody has removed it
        return made
    try:
        if os.fstat(descriptor).st_size < size:
            return made
        at, sums = size - made.tables_size, _read_header(descriptor)[0].tables_sums
        tables = _map(descriptor, at, made.tables_size, scattered=True)
        pieces = zip(_pieces(made.tables_size), sums, strict=True)
        guard = Guard(descriptor, [Held(at + first, length, total, "tables") for (first, length), total in pieces])
    except Damaged:
        return made
    finally:
        os.close(descriptor)
    return replace(made, tables=tables, guard=guard)


def _map(descriptor: int, at: int, size: int, *, scattered: bool = False) -> Mapped:
    """`scattered`: reading a page makes its neighbours no likelier to be read."""
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


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of the file with a checksum of its own, and the memory to read it into; None: it stays in the file."""

    at: int
    size: int
    total: int  # its checksum
    name: str
    into: memoryview | None = None


def _fetch(descriptor: int, wanted: _Stretch, *, strict: bool) -> Held | None:
    """Read and check a stretch, a piece at a time: a piece is still in the cache when it is summed up. Returns what stays
    in the file. Raises Damaged."""
    total, sha = xxhash.xxh3_64(), hashlib.sha256()
    scratch = memoryview(bytearray(_PIECE if wanted.into is None else 0))
    done = 0
    while done < wanted.size:
        length = min(_PIECE, wanted.size - done)
        piece = scratch[:length] if wanted.into is None else wanted.into[done : done + length]
        count = os.preadv(descriptor, [piece], wanted.at + done)
        if count == 0:
            raise Damaged("it is cut short")
        total.update(piece[:count])
        if strict and wanted.into is None:
            sha.update(piece[:count])
        done += count
    if total.intdigest() != wanted.total:
        raise Damaged(f"the checksum of its {wanted.name} is off")
    return None if wanted.into else Held(wanted.at, wanted.size, wanted.total, wanted.name, sha=sha.digest())


def _pieces(size: int) -> list[tuple[int, int]]:
    """Offsets and sizes of the parts of the tables: each has its checksum, so that several threads can check them."""
    part = 16 * _PIECE
    return [(first, min(part, size - first)) for first in range(0, size, part)]


def _up(size: int) -> int:
    return -(-size // _MAPPED) * _MAPPED
