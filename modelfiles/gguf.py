"""GGUF files: their header, with every number of it checked against the file before it is used.

The format is llama.cpp's: metadata and a table of tensors, then their bytes, aligned. The `gguf` package has a reader,
but it believes the counts in a file and loops over them for hours; here the file's length, and the needs of any model,
bound them. A file may be split (`-00001-of-00003.gguf`); the first part has the metadata. A file is known by its first
bytes and not by its name: Ollama names files by their digest.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, overload

from llmasos.modelfiles.files import broken, open_regular, shown
from llmasos.syscalls.errno import Errno, SyscallError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of tensors, unless a file says otherwise
MOST_HEADER = 64 << 20  # bytes; the longest published (a vocabulary of 262,144 with its merges) has 16 MB
MOST_FIELDS = 1 << 14
MOST_TENSORS = 1 << 16
MOST_ITEMS = 3 << 19  # strings in all arrays of a header together: each takes time and memory; 777,050 are published
MOST_TEXT = 4 << 20  # bytes of one string: the longest are chat templates
MOST_NAME = 1 << 10
MOST_NESTING = 3
MOST_DIMENSIONS = 4
MOST_PARTS = 1000
_PIECE = 1 << 18  # bytes read at a time

# Item types of tensors: their number in files, the items in a block, and the bytes of a block.
ITEMS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _TEXT, _ARRAY = 7, 8, 9
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)?", re.IGNORECASE | re.DOTALL | re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor: the type of its items, its shape in numpy's order (rows first), and the file and place of its bytes."""

    kind: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int


class Texts(Sequence[str]):
    """An array of texts as it lies in a header: its end is known, and its texts are decoded when they are first read."""

    def __init__(self, data: bytes, count: int) -> None:
        self._data = data
        self._count = count

    def __len__(self) -> int:
        return self._count

    @functools.cached_property
    def _texts(self) -> list[str]:
        data, at, found = self._data, 0, []
        length = struct.Struct("<Q").unpack_from
        for _ in range(self._count):
            start = at + 8
            at = start + length(data, at)[0]
            found.append(data[start:at].decode(errors="replace"))
        return found

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...

    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        return self._texts[at]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)


@dataclass(frozen=True, slots=True)
class Header:
    """The contents of a GGUF file's header, its parts taken together. Metadata are numbers, bools, texts, and arrays:
    numpy's for numbers, `Texts` for texts."""

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Entry]

    def layer_kinds(self) -> list[str]:
        """The item types of the layers' matrices that have the most bytes, largest first."""
        sizes: Counter[str] = Counter()
        for name, entry in self.tensors.items():
            if name.startswith("blk.") and len(entry.shape) > 1:
                sizes[entry.kind] += entry.size
        return [kind for kind, _ in sizes.most_common()]


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as GGUF does. False also if it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The header of a GGUF file, and of the others if it is one of several. The last header is cached until its files
    change.

    Raises ENOENT, ENOEXEC (no GGUF file, or an unsupported version or byte order), EIO (broken).
    """
    global _last
    last = _last
    if last is not None and last[1].path == path and last[0] == _stamp(last[1].files):
        return last[1]
    before = _stamp(parts_beside(path))
    header = _read_parts(path)
    if before == _stamp(header.files):
        _last = before, header
    return header


def _stamp(files: Sequence[Path]) -> tuple[object, ...]:
    """A value that changes when one of the files does."""
    found: list[object] = []
    for file in files:
        try:
            of = file.stat()
        except OSError:
            return ()
        found.append((file, of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns))
    return tuple(found)


_last: tuple[tuple[object, ...], Header] | None = None


def _read_parts(path: Path) -> Header:
    metadata, tensors = _read(path)
    count = _split(path, metadata)
    if count == 1:
        return Header(path, (path,), metadata, tensors)
    files = part_names(path, count)
    joined: dict[str, Entry] = {}
    first: dict[str, Any] = {}
    for number, file in enumerate(files):
        if not file.exists():
            raise SyscallError(
                Errno.ENOENT,
                f"{path} is one of {count} parts, and {file.name} is not beside it; download all of them",
            )
        fields, entries = (metadata, tensors) if file == path else _read(file)
        if fields.get("split.no") != number or _split(file, fields) != count:
            what = f"part {fields.get('split.no')} of {fields.get('split.count')}"
            raise _broken(file, f"it says it is {what}, its name says {number}")
        if twice := joined.keys() & entries.keys():
            raise _broken(file, f"tensor {min(twice)!r} is in another part too")
        first = first or fields
        joined |= entries
        if len(joined) > MOST_TENSORS:
            raise _broken(file, f"there are more than {MOST_TENSORS} tensors in the parts up to this one")
    declared = first.get("split.tensors.count", len(joined))
    if declared != len(joined):
        raise _broken(path, f"its parts have {len(joined)} tensors, {declared} were announced")
    return Header(path, tuple(files), first, joined)


def parts_beside(path: Path) -> list[Path]:
    """The files of a split model, by their names."""
    named = _PART.fullmatch(path.name)
    if named is None or not 0 < int(named[3]) <= MOST_PARTS:
        return [path]
    return [file for file in part_names(path, int(named[3])) if file.exists()]


def part_names(path: Path, count: int) -> list[Path]:
    """The files of a model split into `count`, one of which is `path`. Raises EIO if its name is not that of a part."""
    named = _PART.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise _broken(path, f"it is one of {count} parts, but not named NAME-00001-of-{count:05}.gguf as they are")
    return [path.with_name(f"{named[1]}-{number:05}-of-{count:05}{named[4] or ''}") for number in range(1, count + 1)]


def _split(path: Path, metadata: Mapping[str, Any]) -> int:
    count = metadata.get("split.count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_PARTS:
        raise _broken(path, f"it says it is one of {str(count)[:40]!r} parts")
    return max(count, 1)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(24) or b""
            _check_start(path, start)
            return _Reader(path, file, size).header(start)
    except FileNotFoundError:
        raise SyscallError(Errno.ENOENT, f"there is no file {path}") from None
    except OSError as error:
        reason = f"broken GGUF file: {shown(path)}: it cannot be read ({error.strerror})"
        raise SyscallError(Errno.EIO, reason) from None


def _check_start(path: Path, start: bytes) -> None:
    if start[:4] != MAGIC:
        raise SyscallError(Errno.ENOEXEC, f"{path} is no GGUF file: it begins with {start[:4]!r}")
    if len(start) < 24:
        raise _broken(path, f"it has {len(start)} bytes, not even a header")
    version = int.from_bytes(start[4:8], "little")
    if version in VERSIONS:
        return
    what = f"version {version} of GGUF is not read, only {' and '.join(map(str, VERSIONS))} are"
    if int.from_bytes(start[4:8], "big") in (1, *VERSIONS):
        what = "it is written for big-endian machines"
    raise SyscallError(Errno.ENOEXEC, f"{path}: {what}; convert the model again with a llama.cpp of today")


class _Reader:
    """Reads one file's header; `at` never gets past its end. It is not mapped: a file that is cut short meanwhile would
    end the process."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.read = bytearray()  # the part of the file that has been read
        self.size = size
        self.most = min(size, MOST_HEADER)
        self.at = 24
        self.items = 0  # strings so far, and arrays within arrays

    def header(self, start: bytes) -> tuple[dict[str, Any], dict[str, Entry]]:
        tensors, fields = struct.unpack_from("<QQ", start, 8)
        if fields > MOST_FIELDS or tensors > MOST_TENSORS:
            raise self.broken(
                f"its header wants {fields} fields and {tensors} tensors; at most {MOST_FIELDS} and {MOST_TENSORS} "
                "are read"
            )
        self.room(fields * 13 + tensors * 24, "fields and tensors")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            name = self.name("a field")
            if name in metadata:
                raise self.broken(f"field {name!r} is there twice")
            metadata[name] = self.value(self.number("<I"), name, 0)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if isinstance(alignment, bool) or not isinstance(alignment, int):
            raise self.broken("general.alignment is no number")
        if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.broken(f"general.alignment is {alignment}, a power of two was wanted")
        found = [self.tensor() for _ in range(tensors)]
        return metadata, self.placed(found, -(-self.at // alignment) * alignment, alignment)

    def tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Name, items, shape, offset among the tensors' bytes, bytes."""
        name = self.name("a tensor")
        dimensions = self.number("<I")
        if not 0 <= dimensions <= MOST_DIMENSIONS:
            raise self.broken(f"tensor {name!r} has {dimensions} dimensions, at most {MOST_DIMENSIONS} are known")
        shape = tuple(self.number("<Q") for _ in range(dimensions))  # fastest dimension first
        number, offset = self.number("<I"), self.number("<Q")
        if number not in ITEMS:
            raise SyscallError(
                Errno.ENOEXEC,
                f"{self.path}: tensor {name!r} has items of type {number}, which is not known; take another "
                "quantisation of this model (Q4_K_M, Q8_0)",
            )
        kind, block, size = ITEMS[number]
        row = shape[0] if shape else 1
        if row % block or not all(0 < dim < 1 << 48 for dim in shape):
            raise self.broken(f"tensor {name!r} of {kind} has the shape {shape}, rows of {block} were wanted")
        return name, kind, shape[::-1], offset, prod(shape) // block * size

    def placed(
        self, found: list[tuple[str, str, tuple[int, ...], int, int]], base: int, alignment: int
    ) -> dict[str, Entry]:
        """The tensors by name: all within the file, and none overlapping (or a small file could ask for much memory)."""
        entries: dict[str, Entry] = {}
        end = 0
        for name, kind, shape, offset, size in sorted(found, key=lambda one: (one[3], one[4])):
            if name in entries:
                raise self.broken(f"tensor {name!r} is there twice")
            if offset % alignment:
                raise self.broken(f"tensor {name!r} lies at {offset}, which is no multiple of {alignment}")
            if base + offset + size > self.size:
                raise self.broken(
                    f"tensor {name!r} lies at {base + offset} and has {size} bytes, the file ends at {self.size}"
                )
            if offset < end:
                raise self.broken(f"tensor {name!r} lies upon the one before it")
            end = offset + size
            entries[name] = Entry(kind, shape, self.path, base + offset, size)
        return entries

    def value(self, kind: int, name: str, depth: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _BOOL:
            return bool(self.number("<B"))
        if kind == _TEXT:
            return self.text(MOST_TEXT, f"field {name!r}").decode(errors="replace")
        if kind != _ARRAY:
            raise self.broken(f"field {name!r} has a value of type {kind}, which is not known")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _NUMBERS or inner == _BOOL:
            import numpy as np  # late: a list of models needs no numpy

            items = np.dtype(_NUMBERS.get(inner, "<B")[-2:])
            self.room(count * items.itemsize, f"{count} items of field {name!r}")
            array = np.frombuffer(self.read[self.at : self.at + count * items.itemsize], dtype=items)
            self.at += count * items.itemsize
            return array.astype(bool) if inner == _BOOL else array
        if inner not in (_TEXT, _ARRAY):
            raise self.broken(f"field {name!r} is an array of type {inner}, which is not known")
        self.room(count * (8 if inner == _TEXT else 12), f"{count} items of field {name!r}")
        self.items += count
        if self.items > MOST_ITEMS:
            raise self.broken(f"with field {name!r} it has {self.items} texts in arrays, at most {MOST_ITEMS} are read")
        if inner == _TEXT:
            return self.texts(count, name)
        if depth == MOST_NESTING:
            raise self.broken(f"field {name!r} has arrays in arrays, more than {MOST_NESTING} deep")
        return [self.value(_ARRAY, name, depth + 1) for _ in range(count)]

    def texts(self, count: int, name: str) -> Texts:
        """Find where they end. They are decoded when they are read; a driver never does."""
        read, start, at, last = self.read, self.at, self.at, len(self.read) - 8
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > last:
                if at > self.most - 8:
                    raise self.short(8, f"an item of field {name!r}, at byte {at},")
                self.fill(at + 8)
                last = len(read) - 8
            at += 8 + length(read, at)[0]
        if at > self.most:
            raise self.broken(f"the last item of field {name!r} ends at {at}, behind the end")
        self.fill(at)
        self.at = at
        return Texts(bytes(read[start:at]), count)

    def name(self, what: str) -> str:
        try:
            return self.text(MOST_NAME, f"the name of {what}").decode()
        except UnicodeDecodeError:
            raise self.broken(f"the name of {what} before byte {self.at} is no UTF-8") from None

    def text(self, most: int, what: str) -> bytes:
        size = self.number("<Q")
        if size > most:
            raise self.broken(f"{what} has {size} bytes, at most {most} are read")
        self.room(size, what)
        self.at += size
        return bytes(self.read[self.at - size : self.at])

    def number(self, code: str) -> Any:
        size = struct.calcsize(code)
        self.room(size, "a number")
        (found,) = struct.unpack_from(code, self.read, self.at)
        self.at += size
        return found

    def room(self, size: int, what: str) -> None:
        if self.at + size > self.most:
            raise self.short(size, what)
        self.fill(self.at + size)

    def fill(self, end: int) -> None:
        """Read on, up to there at least."""
        while len(self.read) < end:
            wanted = max(end - len(self.read), min(_PIECE, self.most - len(self.read)))
            piece = os.pread(self.file.fileno(), wanted, len(self.read))
            if not piece:
                raise self.broken(f"it has become shorter while it was read, {len(self.read)} bytes")
            self.read += piece

    def short(self, size: int, what: str) -> SyscallError:
        end = f"the file ends at {self.size}" if self.size <= MOST_HEADER else f"a header ends at {self.most}"
        return self.broken(f"{what} at byte {self.at} wants {size} bytes, {end}")

    def broken(self, what: str) -> SyscallError:
        return _broken(self.path, what)


def _broken(file: Path, what: str) -> SyscallError:
    return broken(f"broken GGUF file: {shown(file)}: {what}; copy or download it again")
