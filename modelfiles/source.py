"""The place of a model's files: a directory, or a repository of the Hugging Face hub (its local cache first).

Like execve, this tells "there is no such file" (ENOENT) from "the file is broken" (EIO) and "I cannot run this kind of
file" (ENOEXEC, architecture.py). The network is asked only for a name that is neither a directory nor in the cache
(hub.py).
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from llmasos.modelfiles import bounds, choice, files, gguf, names
from llmasos.modelfiles.files import shown
from llmasos.syscalls.errno import Errno, SyscallError

if TYPE_CHECKING:
    from llmasos.modelfiles import hub

_MOST_TENSORS = 200_000  # the largest published mixtures have some 140,000
_MOST_INDEX = _MOST_HEADER = 32 << 20  # bytes
_MOST_DIMENSIONS = 16
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


def find(path: str, *, weights: bool = False, said: hub.Said | None = None) -> Path:
    """The directory that holds the model's files (with `weights`: the safetensors too), or the GGUF file of a name of the
    hub or of another program's store (names.py). `said` gets the progress of a download.

    Raises ENOENT, and for the hub the errors of hub.find.
    """
    directory = Path(path).expanduser()
    if gguf.is_gguf(directory):
        return directory
    if directory.is_dir():
        listed = set[str]() if (directory / "config.json").exists() else {file.name for file in directory.glob("*.gguf")}
        if listed:
            return directory / choice.gguf_files(shown(path), listed, "")[0]
        if not (directory / "config.json").exists():
            raise SyscallError(Errno.ENOENT, f"no model in {shown(path)}: {_what_is_there(directory)}")
        if weights and not any(directory.glob("*.safetensors")):
            raise SyscallError(
                Errno.ENOENT,
                f"no weights in {shown(path)}: no *.safetensors file there; convert the model with "
                "transformers' save_pretrained",
            )
        return directory
    if os.path.lexists(directory):
        raise SyscallError(Errno.ENOENT, f"no model {shown(path)!r}: {_what_it_is(directory)}")
    if directory.is_absolute() or path.startswith((".", "~")):
        what = "file" if directory.suffix == ".gguf" else "directory"
        raise SyscallError(Errno.ENOENT, f"no model {shown(path)!r}: there is no such {what}")
    # Late: most models are directories, and these import HTTP and TLS.
    from llmasos.modelfiles import hub, stores

    name = names.parse(path)
    if name.kind is names.Kind.STORE:
        return stores.lookup(name).path
    return hub.find(name, weights=weights, said=said)


def _what_is_there(directory: Path) -> str:
    """What a directory without config.json is, and what to do."""
    if (directory / "adapter_config.json").exists():
        return (
            "it holds an adapter (LoRA), which is a change to a model and none by itself; merge it into its base model "
            "with peft (merge_and_unload, then save_pretrained) and name the directory of that"
        )
    return "the directory has no config.json; name a directory that transformers' save_pretrained has written"


def _what_it_is(path: Path) -> str:
    """What a path that is no directory is, and what to do."""
    if not path.exists():
        return "it is a link to nothing"
    if not path.is_file():
        return "it is neither a directory nor a regular file"
    if path.suffix == ".safetensors":
        return f"it is a file of weights, one of several that make a model; name its directory, {shown(path.parent)}"
    if (path.parent / "config.json").exists():
        return f"it is one of the files of a model; name its directory, {shown(path.parent)}"
    return "it is a file, and a directory was wanted that transformers' save_pretrained has written"


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as a dictionary, its numbers within bounds (bounds.py); of a GGUF file, the same from its metadata.
    Raises EIO if it is not such JSON, ENOEXEC if it names no model_type."""
    if directory.is_file():
        from llmasos.modelfiles import gguf_config  # late: it imports numpy

        described = gguf_config.config_of(gguf.read_header(directory))
        bounds.check(described, directory)
        return described
    file = directory / "config.json"
    try:
        config = files.read_object(file)
    except FileNotFoundError:
        raise files.broken(f"{shown(file)} is not there; copy or download the model again") from None
    bounds.check(config, file)
    if not isinstance(config.get("model_type"), str):
        raise SyscallError(Errno.ENOEXEC, f"{shown(file)} has no model_type, so it is unknown which architecture this is")
    return config


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a safetensors file: the place of its bytes, counted from the file's beginning."""

    kind: str  # of its items, by safetensors' name
    shape: tuple[int, ...]
    offset: int
    size: int


def check_weights(directory: Path) -> int:
    """Check every safetensors file's header against its size, and the index against the files; returns the bytes of the
    tensors.

    Raises EIO naming the file: a copy or download that stopped early is the usual cause.
    """
    return sum(entry.size for _, entries in read_headers(directory) for entry in entries.values())


def read_headers(directory: Path) -> list[tuple[Path, dict[str, Entry]]]:
    """The tensors of each file that transformers would read. Raises EIO as `check_weights` does."""
    found = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").exists():  # transformers takes it even if there is an index
        found = [directory / "model.safetensors"]
    elif index.exists():
        try:
            named = set(files.read_json(index, _Index, _MOST_INDEX).weight_map.values())
        except OSError as error:
            raise _unread(index, error) from None
        for name in named:
            if Path(name).name != name:
                raise _broken(index, f"it names {shown(name)}, which is not a file beside it")
        missing = sorted(named - {file.name for file in found})
        if missing:
            raise _broken(directory / missing[0], f"{index.name} names it, but it is not there")
        found = [file for file in found if file.name in named]
    headers = [(file, _read_header(file)) for file in found]
    if sum(len(entries) for _, entries in headers) > _MOST_TENSORS:
        raise _broken(directory, f"its files have more than {_MOST_TENSORS} tensors")
    return headers


def _read_header(file: Path) -> dict[str, Entry]:
    try:
        with files.open_regular(file) as stream:
            return _parse_header(file, stream)
    except OSError as error:
        raise _unread(file, error) from None


def _parse_header(file: Path, stream: BinaryIO) -> dict[str, Entry]:
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    if len(start) < 8:
        raise _broken(file, f"it has {size} bytes, not even a header")
    (length,) = struct.unpack("<Q", start)
    if length > size - 8:
        raise _broken(file, f"its header wants {length} bytes, the file has {size - 8} after the length")
    if length > _MOST_HEADER:
        raise _broken(file, f"its header has {length} bytes, and at most {_MOST_HEADER} are read")
    raw = b""
    while len(raw) < length and (piece := stream.read(length - len(raw))):
        raw += piece
    try:
        header = msgspec.json.decode(raw, type=dict[str, _Stored])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(file, f"its header cannot be read ({shown(error)})") from None
    header.pop("__metadata__", None)
    if len(header) > _MOST_TENSORS:
        raise _broken(file, f"its header has {len(header)} tensors, and at most {_MOST_TENSORS} are read")
    entries: dict[str, Entry] = {}
    end = 0
    for name, stored in header.items():
        first, last = stored.data_offsets
        if not 0 <= first <= last or len(stored.shape) > _MOST_DIMENSIONS or min(stored.shape, default=0) < 0:
            raise _broken(file, f"tensor {shown(name)} of shape {stored.shape} lies at {first} to {last}")
        items = math.prod(stored.shape)
        bits = _ITEM_BITS.get(stored.dtype)
        if bits is not None and items * bits // 8 != last - first:
            raise _broken(file, f"tensor {shown(name)} has {last - first} bytes, its shape wants {items * bits // 8}")
        entries[name] = Entry(stored.dtype, tuple(stored.shape), 8 + length + first, last - first)
        end = max(end, last)
    if 8 + length + end != size:
        raise _broken(file, f"it has {size} bytes, its header describes {8 + length + end}")
    return entries


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Stored(msgspec.Struct, gc=False):
    """A tensor in a header; the metadata beside the tensors has none of its fields."""

    dtype: str = ""
    shape: list[int] = []
    data_offsets: tuple[int, int] = (0, 0)


def _broken(file: Path, what: str) -> SyscallError:
    return files.broken(f"broken weights: {shown(file)}: {what}; copy or download it again")


def _unread(file: Path, error: OSError) -> SyscallError:
    """The system's error for a file: an absent file stays absent, a disk or server may come back."""
    reason = f"broken weights: {shown(file)}: it cannot be read ({error.strerror}); copy or download it again"
    return files.broken(reason) if isinstance(error, FileNotFoundError) else SyscallError(Errno.EIO, reason)
