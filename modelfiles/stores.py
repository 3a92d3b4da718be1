"""The models that are on the disk already, in any program's store: they run from where they are, and nothing is copied.

The cache of the Hugging Face hub, Ollama's store (ollama.py), LM Studio's folder, llama.cpp's cache and the directories
that LLMASOS_MODELS names. A store belongs to its program and is only read here; a fault in it (rights, links to nothing,
loops) hides that one model or says what is wrong with it, and nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmasos.modelfiles import cache, choice, ollama_options
from llmasos.modelfiles.files import contents, open_regular, read_whole, shown, walk
from llmasos.modelfiles.names import LLAMA_CPP, LM_STUDIO, MAIN, OLLAMA, Kind, Name, near, parse
from llmasos.modelfiles.ollama_options import Started
from llmasos.syscalls.errno import Errno, SyscallError

HUGGING_FACE = "huggingface"
DIRECTORY = "directory"
GGUF, SAFETENSORS = "gguf", "safetensors"
_POINTER = b"version https://git-lfs"
_MOST_DEPTH = 4  # folders below a store's own
_MOST_FILES = 20_000  # the most to look at in one store


@dataclass(frozen=True, slots=True)
class Found:
    """A model on the disk. `name` runs it; `path` is its directory or GGUF file; `size` is in bytes, `modified` in
    seconds since 1970. `problem` says why it cannot be run; `params` and `system` are its store's settings for starting
    it."""

    name: str
    store: str
    path: Path
    format: str
    size: int
    modified: float
    problem: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    system: str = ""


def found() -> list[Found]:
    """Every model of every store, by name."""
    from llmasos.modelfiles import ollama

    everything = [
        *hugging_face(),
        *ollama.models(),
        *_gguf_files(LM_STUDIO, lm_studio_directories()),
        *_gguf_files(LLAMA_CPP, [llama_cpp_directory()]),
        *_directories(),
    ]
    return sorted(everything, key=lambda one: (one.store, one.name))


def lookup(name: Name) -> Found:
    """The model of another program's store that a name means. Raises ENOENT with the nearest names, ENOEXEC for one that
    cannot be run."""
    if name.kind is not Kind.STORE:
        raise SyscallError(Errno.EINVAL, f"{name.text!r} is no name of a store's model")
    from llmasos.modelfiles import ollama

    if name.store == OLLAMA:
        there = ollama.named(name.path)
        known = ollama.models() if there is None else []
    else:
        places = lm_studio_directories() if name.store == LM_STUDIO else [llama_cpp_directory()]
        known = _gguf_files(name.store, places)
        wanted = {f"{name.store}:{name.path}", f"{name.store}:{name.path.removesuffix('.gguf')}"}
        there = next((one for one in known if one.name in wanted), None)
    if there is not None:
        if there.problem:
            raise SyscallError(Errno.ENOEXEC, f"{there.name} cannot be run: {there.problem}")
        return there
    hint = near(f"{name.store}:{name.path}", [one.name for one in known])
    raise SyscallError(
        Errno.ENOENT,
        f"no model {name.text!r}: {name.store} has none of that name{hint or '; `llmasos models --found` lists them'}",
    )


def started(text: str) -> Started:
    """The way in which the store of this name starts its model; empty for every other name. Raises EIO for parameters
    that cannot be."""
    if ":" not in text:
        return Started()
    try:
        name = parse(text)
        there = lookup(name) if name.kind is Kind.STORE and name.store == OLLAMA else None
    except SyscallError:  # looking it up reports the error, or it means something else
        return Started()
    return Started() if there is None else ollama_options.started(there.name, there.params, there.system)


def lm_studio_directories() -> list[Path]:
    """The directories of LM Studio's models, now and in its earlier versions."""
    home = Path.home()
    places = [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    with suppress(OSError, ValueError, SyscallError):
        moved = read_whole(home / ".lmstudio-home-pointer", 4096).decode().strip()
        if moved:
            places.insert(0, Path(moved) / "models")
    return list(dict.fromkeys(places))


def llama_cpp_directory() -> Path:
    """The directory of what llama.cpp's `-hf` has fetched."""
    if place := os.environ.get("LLAMA_CACHE"):
        return Path(place).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "llama.cpp"


def hugging_face(folder: str = "") -> Iterator[Found]:
    """The models of the hub's cache, or of one folder in it."""
    try:
        repositories = list(cache.repositories())
    except SyscallError as error:
        yield unlisted(HUGGING_FACE, cache.directory(), error)
        return
    for repo, place in repositories:
        if folder and place.name != folder:
            continue
        try:
            revisions = cache.revisions(place)
        except SyscallError as error:
            yield unlisted(HUGGING_FACE, place, error, repo)
            continue
        fetched = any(MAIN in refs for refs in revisions.values())
        for commit, refs in revisions.items():
            at = "" if MAIN in refs else f"@{refs[0] if refs else commit}"
            with suppress(OSError):
                for one in _snapshot(repo, at, cache.snapshot(repo, commit)):
                    begun = one.problem and not refs and not fetched  # the first download, with which `pull` goes on
                    yield replace(one, name=one.name.removesuffix(at)) if begun else one


def _snapshot(repo: str, at: str, place: Path) -> Iterator[Found]:
    """The models in one commit of a repository: its own, one for each quantisation, or those of its folders."""
    try:
        listed = cache.listing(place)
    except SyscallError as error:
        yield unlisted(HUGGING_FACE, place, error, f"{repo}{at}")
        return
    if not listed:
        return
    for stem, files in choice.gguf_models(listed).items() if choice.is_gguf(listed) else ():
        quant = choice.quant_of(files[0]) or stem.rpartition("/")[2]
        yield _entry(f"{repo}{at}:{quant}", HUGGING_FACE, place / files[0], GGUF, [place / f for f in files])
    if choice.is_gguf(listed):
        return
    folders = sorted({path.rpartition("/")[0] for path in listed if path.rpartition("/")[2] == choice.CONFIG})
    for folder in folders:
        inside = choice.inside(listed, folder)
        here = place / folder
        if folder and not inside & {choice.SINGLE, choice.INDEX}:
            continue
        yield directory(f"{repo}{f'/{folder}' if folder else ''}{at}", HUGGING_FACE, here, inside)


def directory(name: str, store: str, place: Path, listed: set[str] | None = None) -> Found:
    """A directory of safetensors as a found model, with its fault if it has one."""
    try:
        listed = cache.listing(place) if listed is None else listed
    except SyscallError as error:
        return unlisted(store, place, error, name)
    problem = ""
    files = [place / one for one in choice.side_files(listed)]
    try:
        gone = cache.missing(place, listed)
        if gone is None:
            if not any(one.endswith((".safetensors", ".bin", ".pt", ".gguf")) for one in listed):
                problem = "only its configuration and words are there; `llmasos models pull` fetches the weights"
            else:
                problem = choice.no_weights(name, listed).reason
        elif gone:
            problem = f"{len(gone)} of its files are missing ({gone[0]}); `llmasos models pull` fetches them"
        elif choice.SINGLE in listed:
            files.append(place / choice.SINGLE)
        else:
            index = (place / choice.INDEX).read_bytes()
            files += [place / one for one in choice.named_by(index, name)]
    except (SyscallError, OSError) as error:
        problem = error.reason if isinstance(error, SyscallError) else str(error)
    return _entry(name, store, place, SAFETENSORS, files, problem)


def _entry(name: str, store: str, path: Path, kind: str, files: list[Path], problem: str = "") -> Found:
    size, modified = 0, 0.0
    for file in files:
        try:
            about = file.stat()
        except OSError as error:
            problem = problem or f"{file.name} cannot be read ({error.strerror})"
            continue
        size += about.st_size
        modified = max(modified, about.st_mtime)
        problem = problem or odd(file)
    return Found(name, store, path, kind, size, modified, problem)


def odd(file: Path) -> str:
    """The fault in a file of weights by its first bytes; empty if it begins as it should, and for all other files."""
    gguf, safetensors = file.name.lower().endswith(".gguf"), file.name.endswith(".safetensors")
    if not (gguf or safetensors):
        return ""
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(len(_POINTER))
    except SyscallError as error:
        return error.reason
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    if head == _POINTER:
        return f"{file.name} is a pointer of Git LFS and not the file; `git lfs pull` fetches it"
    if gguf and head[:4] != b"GGUF":
        return f"{file.name} is no GGUF file (its {size} bytes begin otherwise); fetch it again"
    if safetensors and not 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return f"{file.name} is no safetensors file, or is cut short ({size} bytes); fetch it again"
    return ""


def _gguf_files(store: str, places: list[Path]) -> list[Found]:
    """The GGUF models below some directories, named by their path there."""
    models: dict[str, Found] = {}
    for place in places:
        refused: list[SyscallError] = []
        listed = set(_walk(place, refused.append))
        for error in refused:
            row = unlisted(store, place, error)
            models[f"{row.name}: {row.problem}"] = row
        for stem, files in choice.gguf_models(listed).items():
            name = f"{store}:{stem}"
            if name not in models and name.isprintable():
                models[name] = _entry(name, store, place / files[0], GGUF, [place / one for one in files])
    return list(models.values())


def unlisted(store: str, place: Path, error: SyscallError, name: str = "") -> Found:
    """A row for a folder of a store that cannot be listed: which models are in it nobody knows. `name`: of the one model
    that it would be."""
    return Found(name or f"{store}:{shown(place)}", store, place, "", 0, 0.0, problem=error.reason)


def _walk(place: Path, refused: Callable[[SyscallError], None]) -> Iterator[str]:
    """The GGUF files below a directory. Follows links to folders, which LM Studio's users make, but only a few folders
    deep, so that a loop ends."""
    top = os.fspath(place)
    count = 0
    for at, folders, names in walk(place, refused, follow=True):
        below = os.path.relpath(at, top)
        depth = 0 if below == "." else below.count(os.sep) + 1
        if depth >= _MOST_DEPTH:
            folders.clear()
        folders[:] = [one for one in folders if not _is_loop(os.path.join(at, one), at)]
        count += len(names)
        if count > _MOST_FILES:
            return
        for name in names:
            if name.lower().endswith(".gguf") and os.path.isfile(os.path.join(at, name)):
                yield name if below == "." else f"{below.replace(os.sep, '/')}/{name}"


def _is_loop(folder: str, at: str) -> bool:
    """Whether it is a link to a folder that contains it."""
    return os.path.islink(folder) and os.path.realpath(at).startswith(os.path.realpath(folder))


def _directories() -> Iterator[Found]:
    """The models in the directories that LLMASOS_MODELS names, which a kernel knows by these names."""
    for word in filter(None, os.environ.get("LLMASOS_MODELS", "").split(os.pathsep)):
        place = Path(word).expanduser().absolute()
        with suppress(OSError):
            try:
                within = [place] if (place / choice.CONFIG).is_file() else contents(place)
            except SyscallError as error:
                yield unlisted(DIRECTORY, place, error)
                continue
            for one in within:
                if (one / choice.CONFIG).is_file():
                    yield directory(one.name, DIRECTORY, one)
