"""Where a model's files are: a directory, or a repository of the Hugging Face hub (its local cache first).

Like execve, this separates "there is no such file" (ENOENT) from "the file is broken" (EIO) and "I cannot run
this kind of file" (ENOEXEC, architecture.py). The network is asked only for a name that is neither a directory nor in
the cache, and only for a bounded time; HF_HUB_OFFLINE is honoured.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from syscalls.errno import Errno, SyscallError

ETAG_SECONDS = 5.0  # how long the hub may take to say what it has
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
METADATA = ("*.json", "*.jinja", "*.model", "*.txt")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


def find(path: str, *, weights: bool = False) -> Path:
    """The directory that holds the model's files (with `weights`: the safetensors too). Raises ENOENT."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise SyscallError(
                Errno.ENOENT,
                f"no model in {path}: the directory has no config.json; name a directory that "
                "transformers' save_pretrained has written",
            )
        if weights and not any(directory.glob("*.safetensors")):
            raise SyscallError(
                Errno.ENOENT,
                f"no weights in {path}: no *.safetensors file there; convert the model with "
                "transformers' save_pretrained",
            )
        return directory
    if directory.is_absolute() or path.startswith((".", "~")) or not _HUB_NAME.fullmatch(path):
        raise SyscallError(Errno.ENOENT, f"no model {path!r}: there is no such directory")
    return _from_hub(path, weights)


def _from_hub(name: str, weights: bool) -> Path:
    import huggingface_hub

    wanted = [*METADATA, *(WEIGHTS if weights else ())]
    try:
        cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=wanted))
        if (cached / "config.json").is_file() and (not weights or any(cached.glob("*.safetensors"))):
            return cached
    except (OSError, ValueError):
        pass  # not in the cache: ask the hub
    try:
        _reach(urlsplit(huggingface_hub.constants.ENDPOINT))
        if not weights:
            return Path(
                huggingface_hub.hf_hub_download(name, "config.json", etag_timeout=ETAG_SECONDS)
            ).parent
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, etag_timeout=ETAG_SECONDS))
    except Exception as error:  # huggingface_hub raises its own, requests', httpx' and OSErrors
        why = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise SyscallError(
            Errno.ENOENT,
            f"no model {name!r}: tried the directory {os.path.abspath(name)!r}, the local Hugging Face cache and the "
            f"hub ({type(error).__name__}: {why}); `models` lists what is known",
        ) from None


def _reach(hub: SplitResult) -> None:
    """Fail at once where there is no network at all: the hub's own client would try again for half a minute."""
    if getproxies():
        return
    port = hub.port or (443 if hub.scheme == "https" else 80)
    socket.create_connection((hub.hostname or "", port), timeout=ETAG_SECONDS).close()


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as a dictionary. Raises EIO if it is not JSON, ENOEXEC if it names no model_type."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SyscallError(
            Errno.EIO, f"{file} cannot be read as JSON ({error}); copy or download the model again"
        ) from None
    if not isinstance(config, dict):
        raise SyscallError(Errno.EIO, f"{file} holds a JSON {type(config).__name__}, an object was wanted")
    if not isinstance(config.get("model_type"), str):
        raise SyscallError(
            Errno.ENOEXEC, f"{file} has no model_type, so it is unknown which architecture this is"
        )
    return config


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a safetensors file: where its bytes are, counted from the file's beginning."""

    kind: str  # of its items, safetensors' name
    shape: tuple[int, ...]
    offset: int
    size: int


def check_weights(directory: Path) -> int:
    """Check every safetensors file's header against its size and the index against the files; the bytes of the tensors.

    Raises EIO naming the file: a copy or download that stopped early is the usual cause.
    """
    return sum(entry.size for _, entries in read_headers(directory) for entry in entries.values())


def read_headers(directory: Path) -> list[tuple[Path, dict[str, Entry]]]:
    """The tensors of each file that transformers would read. Raises EIO as `check_weights` does."""
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _broken(index, f"its weight_map cannot be read ({error!r})") from None
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise _broken(directory / missing[0], f"{index.name} names it, but it is not there")
        files = [file for file in files if file.name in named]
    elif (directory / "model.safetensors").is_file():
        files = [directory / "model.safetensors"]
    return [(file, _read_header(file)) for file in files]


def _read_header(file: Path) -> dict[str, Entry]:
    size = file.stat().st_size
    entries: dict[str, Entry] = {}
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise _broken(file, f"it has {size} bytes, not even a header")
        (length,) = struct.unpack("<Q", start)
        if length > size - 8:
            raise _broken(file, f"its header wants {length} bytes, the file has {size - 8} after the length")
        try:
            header = json.loads(stream.read(length))
            end = 0
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                first, last = entry["data_offsets"]
                items = 1
                for dim in entry["shape"]:
                    items *= dim
                bits = _ITEM_BITS.get(entry["dtype"])
                if bits is not None and items * bits // 8 != last - first:
                    raise _broken(
                        file, f"tensor {name} has {last - first} bytes, its shape wants {items * bits // 8}"
                    )
                if not 0 <= first <= last or any(dim < 0 for dim in entry["shape"]):
                    raise _broken(file, f"tensor {name} lies at {first} to {last}")
                entries[name] = Entry(entry["dtype"], tuple(entry["shape"]), 8 + length + first, last - first)
                end = max(end, last)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(file, f"its header cannot be read ({error!r})") from None
    if 8 + length + end != size:
        raise _broken(file, f"it has {size} bytes, its header describes {8 + length + end}")
    return entries


def _broken(file: Path, what: str) -> SyscallError:
    return SyscallError(Errno.EIO, f"broken weights: {file}: {what}; copy or download it again")
