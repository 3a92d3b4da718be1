"""Ollama's store: its manifests name the blobs of a model, of which the weights are one GGUF file.

    manifests/REGISTRY/NAMESPACE/NAME/TAG     JSON, as OCI images have it: layers by media type and digest
    blobs/sha256-HEX                          the layers: weights, `params` (JSON), `system` (text), template, licence

The tokenizer of a model is in its GGUF file's metadata; Ollama's own templates are programs of Go's text/template, and
are never run. A digest names a file below `blobs` and nothing else, whatever a manifest says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from llmasos.modelfiles import files, stores
from llmasos.modelfiles.names import OLLAMA
from llmasos.modelfiles.stores import GGUF, Found
from llmasos.syscalls.errno import SyscallError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_TYPE = "application/vnd.ollama.image."
_MOST_MANIFESTS = 5_000
_MOST_TEXT = 1 << 20  # bytes of params and system
_MOST_MANIFEST = 1 << 20


class _Layer(msgspec.Struct):
    digest: str
    media_type: str = msgspec.field(name="mediaType")
    size: int = 0


class _Manifest(msgspec.Struct):
    layers: list[_Layer]


def directories() -> list[Path]:
    """The directories of its models: OLLAMA_MODELS, else the user's and the service's."""
    if place := os.environ.get("OLLAMA_MODELS"):
        return [Path(place).expanduser()]
    return [
        Path.home() / ".ollama" / "models",
        Path("/usr/share/ollama/.ollama/models"),
        Path("/var/lib/ollama/.ollama/models"),
    ]


def models() -> list[Found]:
    """The models of the store, as `ollama:NAME:TAG`; those that cannot be run say why."""
    named: dict[str, Found] = {}
    refused: list[Found] = []
    for place in directories():

        def unlisted(error: SyscallError, place: Path = place) -> None:
            refused.append(stores.unlisted(OLLAMA, place / "manifests", error))

        for name, manifest in _manifests(place / "manifests", unlisted):
            if name not in named:
                named[name] = _model(name, place / "blobs", manifest)
    return [*named.values(), *refused]


def named(path: str) -> Found | None:
    """The model with this name in Ollama (with its tag, or `latest` of it); the others are not read."""
    wanted = (f"{OLLAMA}:{path}", f"{OLLAMA}:{path}:latest")
    for place in directories():
        for name, manifest in _manifests(place / "manifests", lambda _: None):  # `models` says it
            if name in wanted:
                return _model(name, place / "blobs", manifest)
    return None


def _manifests(place: Path, unlisted: Callable[[SyscallError], None]) -> Iterator[tuple[str, Path]]:
    """Every manifest: the model's name, and the file."""
    count = 0
    for at, folders, names in files.walk(place, unlisted):
        parts = Path(at).relative_to(place).parts
        if len(parts) >= 3:
            folders.clear()
        if len(parts) != 3:
            continue
        registry, namespace, model = parts
        for tag in sorted(names):
            count += 1
            if count > _MOST_MANIFESTS:
                return
            owner = "" if namespace == "library" else f"{namespace}/"
            server = "" if registry == "registry.ollama.ai" else f"{registry}/"
            name = f"{OLLAMA}:{server}{owner}{model}:{tag}"
            if name.isprintable() and not tag.startswith("."):
                yield name, Path(at, tag)


def _model(name: str, blobs: Path, file: Path) -> Found:
    def refused(why: str) -> Found:
        return Found(name, OLLAMA, file, GGUF, 0, 0.0, problem=why)

    try:
        manifest = msgspec.json.decode(files.read_whole(file, _MOST_MANIFEST), type=_Manifest)
    except (OSError, SyscallError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return refused("its manifest cannot be read; `ollama pull` it again")
    layers: dict[str, list[Path]] = {}
    for layer in manifest.layers:
        kind = layer.media_type.removeprefix(_TYPE)
        digest = _DIGEST.fullmatch(layer.digest)
        if digest is None:
            return refused("its manifest names a blob by what is no digest")
        layers.setdefault(kind, []).append(blobs / f"sha256-{digest[1]}")
    if "adapter" in layers:
        return refused("it is a model with an adapter (LoRA) over it, which is not applied here; merge it first")
    weights = layers.get("model", [])
    if len(weights) != 1:
        return refused(
            "it has no weights of its own (a model of the cloud?)"
            if not weights
            else f"its weights are in {len(weights)} blobs, and one GGUF file is wanted"
        )
    try:
        with files.open_regular(weights[0]) as stream:
            magic = stream.read(4)
            about = os.fstat(stream.fileno())
    except FileNotFoundError:
        return refused("its weights are not there; `ollama pull` it again")
    except OSError as error:
        return refused(f"its weights cannot be read ({error.strerror})")
    except SyscallError as error:
        return refused(error.reason)
    if magic != b"GGUF":
        return refused("its weights are no GGUF file")
    return Found(
        name,
        OLLAMA,
        weights[0],
        GGUF,
        about.st_size,
        about.st_mtime,
        params=_params(layers),
        system=_text(layers),
    )


def _params(layers: dict[str, list[Path]]) -> dict[str, Any]:
    """Ollama's options (temperature, top_k, stop, num_ctx, ...) for starting the model."""
    for place in layers.get("params", []):
        with suppress(OSError, SyscallError):
            return files.read_json(place, dict[str, Any], _MOST_TEXT)
    return {}


def _text(layers: dict[str, list[Path]]) -> str:
    for place in layers.get("system", []):
        with suppress(OSError, SyscallError, UnicodeDecodeError):
            return files.read_whole(place, _MOST_TEXT).decode()
    return ""
