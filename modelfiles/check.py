"""Is a model's directory or file whole: every finding says what is broken and what to do. Loads nothing.

Like fsck, it looks from the outside in: configuration, tokenizer, index, the headers of the weights against the files'
sizes; and every byte of a blob of the hub's cache or of Ollama's store, whose name is its digest. Whether an architecture
can be run is for the driver to say (userland/programs/models.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmasos.modelfiles import cache, choice, files, gguf, source
from llmasos.modelfiles.files import shown
from llmasos.syscalls.errno import Errno, SyscallError

OK, NOTE, REFUSED, BROKEN = "ok", "note", "refused", "broken"
CONFIGURATION, ENGINE = "configuration", "engine"
_BLOB = re.compile(r"(?:sha256-)?(?P<digest>[0-9a-f]{64}|[0-9a-f]{40})")
_PIECE = 1 << 20
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The subject of a check, its status (`ok`, `note`, `refused` by the engine, `broken`), and the facts."""

    what: str
    status: str
    found: str


Said = Callable[[str, int, int], None]  # the file, bytes read, bytes in all; an exception ends the check


def check(place: Path, said: Said | None = None) -> Iterator[Finding]:
    """Check a directory of safetensors or a GGUF file. Reads every byte of blobs that are named by their digest."""
    if not place.is_dir():
        yield from _gguf(place, said)
        return
    try:
        listed = cache.listing(place)
    except SyscallError as error:
        yield Finding("files", BROKEN, error.reason)
        return
    yield _of(CONFIGURATION, lambda: _config(place))
    yield from _words(place, listed)
    yield _of("weights", lambda: _weights(place))
    gone = [
        path
        for path in sorted(_links(place))
        if not (place / path).exists() and (path in choice.side_files({*listed, path}) or _is_weight(path))
    ]
    for path in gone:
        yield Finding(path, BROKEN, "it is a link to nothing; fetch it again (`llmasos models pull`)")
    for path in sorted(listed):
        if path in choice.side_files(listed) or _is_weight(path):
            yield from _digest(place / path, path, said)


def _is_weight(path: str) -> bool:
    return "/" not in path and path.endswith((".safetensors", ".gguf"))


def _links(place: Path) -> set[str]:
    return {
        Path(at, name).relative_to(place).as_posix()
        for at, _, names in files.walk(place, files.unlisted)
        for name in names
        if Path(at, name).is_symlink()
    }


def _of(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, OK, look())
    except SyscallError as error:
        return Finding(what, REFUSED if error.errno is Errno.ENOEXEC else BROKEN, error.reason)
    except OSError as error:
        return Finding(what, BROKEN, f"{shown(error.filename or what)} cannot be read: {error.strerror}")


def _config(place: Path) -> str:
    config = source.read_config(place)
    named = config.get("architectures")
    classes = [str(one) for one in named] if isinstance(named, list) else []
    return f"architecture {shown(config['model_type'])}" + (f" ({shown(', '.join(classes))})" if classes else "")


def _weights(place: Path) -> str:
    source.find(os.fspath(place), weights=True)
    headers = source.read_headers(place)
    size = sum(entry.size for _, entries in headers for entry in entries.values())
    kinds = sorted({entry.kind for _, entries in headers for entry in entries.values()})
    count = sum(len(entries) for _, entries in headers)
    return f"{count} tensors of {size} bytes in {len(headers)} file{'s' if len(headers) > 1 else ''} ({', '.join(kinds)})"


def _words(place: Path, listed: set[str]) -> Iterator[Finding]:
    there = [name for name in _TOKENIZERS if name in listed]
    if not there:
        yield Finding("words", NOTE, "there is no tokenizer; it can be run with token ids only")
    for name in sorted(listed):
        if "/" in name or not name.endswith(".json") or name == choice.INDEX or name == choice.CONFIG:
            continue
        finding = _of(name, partial(_json, place / name))
        if finding.status is BROKEN or name in _TOKENIZERS:
            yield finding


def _json(file: Path) -> str:
    raw = files.read_whole(file, files.MOST_TOKENIZER)
    try:
        json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SyscallError(Errno.EIO, f"{shown(file)} is no JSON ({shown(error)}); copy or download it again") from None
    return f"{len(raw)} bytes of JSON"


def _gguf(place: Path, said: Said | None) -> Iterator[Finding]:
    parts = choice.gguf_models({one.name for one in place.parent.iterdir()} if place.suffix == ".gguf" else ())
    own = next((names for names in parts.values() if place.name in names), [place.name])
    for name in own:
        file = place.parent / name

        def look(file: Path = file) -> str:
            with files.open_regular(file) as stream:
                if stream.read(4) != gguf.MAGIC:
                    raise SyscallError(Errno.EIO, f"{shown(file)} does not begin as a GGUF file does; fetch it again")
                size = os.fstat(stream.fileno()).st_size
            tensors = gguf.read_header(file).tensors.values()
            return f"{sum(entry.file == file for entry in tensors)} tensors in {size} bytes"

        yield _of(name, look)
        yield from _digest(file, name, said)
    yield _of("weights", lambda: _tensors(place))
    yield _of(CONFIGURATION, lambda: _config(place))


def _tensors(place: Path) -> str:
    from llmasos.modelfiles import gguf  # here: a list of models needs no numpy

    entries = gguf.read_header(place).tensors.values()
    kinds = ", ".join(sorted({entry.kind for entry in entries}))
    return f"{len(entries)} tensors of {sum(entry.size for entry in entries)} bytes ({kinds})"


def _digest(file: Path, what: str, said: Said | None) -> Iterator[Finding]:
    """Compare the file's bytes with the name of its blob."""
    try:
        named = _BLOB.fullmatch(file.resolve(strict=True).name)
        if named is None:
            return
        with files.open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            git = len(named["digest"]) == 40
            summed = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256()
            done = 0
            while piece := stream.read(_PIECE):
                summed.update(piece)
                done += len(piece)
                if said is not None:
                    said(what, done, size)
    except SyscallError as error:
        yield Finding(what, BROKEN, error.reason)
        return
    except OSError as error:
        yield Finding(what, BROKEN, f"it cannot be read: {error.strerror}")
        return
    if summed.hexdigest() == named["digest"]:
        yield Finding(what, OK, "its bytes are those of its digest")
    else:
        yield Finding(what, BROKEN, "its bytes are not those of its digest; remove the model and fetch it again")
