"""Digests of models: the SHA-256 of a configuration and weights.

The digest of a gigabyte takes a second, so each file's is remembered until the file is touched, in a directory that
drivers share: by the file's identity, size and times of change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmasos.modelfiles import gguf
from llmasos.modelfiles.files import open_regular
from llmasos.syscalls import atomic_file

_PIECE = 1 << 20  # bytes read at a time

Stamp = tuple[tuple[object, ...], ...]


def files(source: Path) -> list[Path]:
    """The files in a model's directory that its digest covers; for a GGUF file, that file and its other parts."""
    if source.is_file():
        return gguf.parts_beside(source)
    names = ("config.json", "*.safetensors*", "*quant*_config.json")  # the last: where config.json is silent
    return sorted(path for name in names for path in source.glob(name))


def stamp(source: Path) -> Stamp:
    """A value that changes when one of the files does (a write changes its ctime)."""
    return tuple((path.name, *_identity(path)) for path in files(source))


def content_digest(source: Path, memory: Path | None, tick: Callable[[], None]) -> str:
    """The digest of the model in a directory. `memory` is where digests are remembered; `tick` is a sign of life."""
    whole = hashlib.sha256()
    for path in files(source):
        whole.update(f"{path.name}\0{_digest_of(path, memory, tick)}\0".encode())
    return whole.hexdigest()


def _identity(path: Path) -> tuple[object, ...]:
    state = path.stat()
    return (path.resolve(), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _digest_of(path: Path, memory: Path | None, tick: Callable[[], None]) -> str:
    known_by = hashlib.sha256(repr(_identity(path)).encode()).hexdigest()
    if memory is not None:
        with suppress(OSError):
            found = (memory / known_by).read_bytes()
            if re.fullmatch(b"[0-9a-f]{64}", found):
                return found.decode()
    computed = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            computed.update(piece)
            tick()
    if memory is not None:
        with suppress(OSError):
            _remember(memory, known_by, computed.hexdigest())
    return computed.hexdigest()


def _remember(memory: Path, known_by: str, found: str) -> None:
    memory.mkdir(parents=True, exist_ok=True)
    with atomic_file.replacing(memory / known_by) as descriptor:
        atomic_file.write_all(descriptor, found.encode())
