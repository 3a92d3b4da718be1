"""The local cache of the Hugging Face hub, in huggingface_hub's layout, read and written without importing it.

    models--org--name/refs/main             the commit that `main` was, when it was last asked for
    models--org--name/snapshots/COMMIT/...  links to
    models--org--name/blobs/ETAG            the files, named by their SHA-256 (large files) or git's SHA-1

This reads what transformers, vLLM or `hf download` have fetched, and they read what this fetches. HF_HUB_CACHE, HF_HOME,
XDG_CACHE_HOME and HF_HUB_OFFLINE have the same meaning.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from llmasos.modelfiles import choice, files
from llmasos.modelfiles.names import Name
from llmasos.syscalls import atomic_file
from llmasos.syscalls.errno import Errno, SyscallError

COMMIT = re.compile(r"[0-9a-f]{40}")
PARTIAL = ".incomplete"  # the ending of an unfinished blob
_PREFIX = "models--"
_MOST_FILES = 20_000  # the most to look at in one snapshot
_TRUE = ("1", "on", "yes", "true")


def home() -> Path:
    """The directory of the hub's programs, with token and cache."""
    place = os.environ.get("HF_HOME")
    if place:
        return Path(place).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface"


def directory() -> Path:
    """The cache's directory."""
    place = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(place).expanduser() if place else home() / "hub"


def offline() -> bool:
    """Whether the user wants no network (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def folder(repo: str) -> Path:
    """A repository's directory in the cache."""
    return directory() / (_PREFIX + repo.replace("/", "--"))


def repositories() -> Iterator[tuple[str, Path]]:
    """The models' repositories in the cache: name and directory. Raises SyscallError EIO: it cannot be listed."""
    for place in files.contents(directory()):
        if place.name.startswith(_PREFIX) and place.is_dir():
            yield place.name[len(_PREFIX) :].replace("--", "/"), place


def commit_of(repo: str, revision: str) -> str | None:
    """The commit that a revision was when it was last asked for."""
    if COMMIT.fullmatch(revision):
        return revision if (folder(repo) / "snapshots" / revision).is_dir() else None
    try:
        said = files.read_whole(folder(repo) / "refs" / revision, 256).decode("ascii").strip()
    except (OSError, ValueError, SyscallError):
        return None
    return said if COMMIT.fullmatch(said) else None


def set_commit(repo: str, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag. Raises OSError."""
    if COMMIT.fullmatch(revision):
        return
    ref = folder(repo) / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file.replacing(ref, mode=0o666) as descriptor:  # as open to others as the umask says
        os.write(descriptor, commit.encode())


def revisions(place: Path) -> dict[str, list[str]]:
    """The snapshots below a repository's directory: for each commit, its branches and tags. Raises SyscallError EIO: a
    folder cannot be listed."""
    found: dict[str, list[str]] = {one.name: [] for one in files.contents(place / "snapshots") if one.is_dir()}
    refs = place / "refs"
    for at, _, listed in files.walk(refs, files.unlisted):
        for name in listed:
            with suppress(OSError, ValueError, SyscallError):
                ref = Path(at, name)
                commit = files.read_whole(ref, 256).decode("ascii").strip()
                if commit in found:
                    found[commit].append(ref.relative_to(refs).as_posix())
    return found


def snapshot(repo: str, commit: str) -> Path:
    """The directory of one commit's files."""
    return folder(repo) / "snapshots" / commit


def listing(place: Path) -> set[str]:
    """The readable files below a directory (a link to nothing is no file), as paths from there. Raises SyscallError EIO:
    a folder cannot be listed."""
    found: set[str] = set()
    for at, _, names in files.walk(place, files.unlisted):
        for name in names:
            path = Path(at, name)
            if path.is_file():
                found.add(path.relative_to(place).as_posix())
        if len(found) > _MOST_FILES:
            break
    return found


def find(name: Name, *, weights: bool) -> Path | None:
    """The directory of a model (of a GGUF repository the file) that is whole in the cache; None if it is absent or
    incomplete. Raises ENOENT and ENOEXEC for one that is there and is no model."""
    commit = commit_of(name.repo, name.revision)
    if commit is None:
        return None
    place = snapshot(name.repo, commit) / name.folder
    return whole(name, place, weights=weights)


def whole(name: Name, place: Path, *, weights: bool) -> Path | None:
    """As `find`, in a directory of files."""
    listed = listing(place)
    if not listed:
        return None
    if name.quant or choice.is_gguf(listed):
        models = choice.gguf_models(listed)
        if not models:
            return None
        try:
            return place / choice.gguf_files(name.canonical(), listed, name.quant)[0]
        except SyscallError:
            return None  # the hub may have it
    if choice.CONFIG not in listed:
        return None
    if weights and missing(place, listed) != []:
        return None
    return place


def missing(place: Path, listed: set[str]) -> list[str] | None:
    """The weight files that are named and absent; None if none are named at all."""
    if choice.SINGLE in listed:
        return []
    if choice.INDEX not in listed:
        return None
    index = files.read_whole(place / choice.INDEX, choice.MOST_INDEX)
    return sorted(choice.named_by(index, str(place)) - listed)


def remove(repo: str) -> int:
    """Remove a repository from the cache; returns the bytes freed. Raises ENOENT, EIO."""
    place = folder(repo)
    if place.is_symlink() or place.parent.resolve() != directory().resolve():
        raise SyscallError(Errno.EINVAL, f"{place} is a link to elsewhere; remove it by hand")
    if not place.is_dir():
        raise SyscallError(Errno.ENOENT, f"{repo} is not in {directory()}")
    size = disk_bytes(place)
    try:
        shutil.rmtree(place)  # follows no link
    except OSError as error:
        raise SyscallError(Errno.EIO, f"{place} could not be removed wholly: {error}") from None
    locks = directory() / ".locks" / place.name
    if not locks.is_symlink():
        shutil.rmtree(locks, ignore_errors=True)
    return size


def disk_bytes(place: Path, unlisted: Callable[[SyscallError], None] = files.unlisted) -> int:
    """The bytes of the files below a directory, each once, links not followed. `unlisted`: as of files.walk."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for at, _, names in files.walk(place, unlisted):
        for name in names:
            with suppress(OSError):
                about = os.lstat(os.path.join(at, name))
                if (about.st_dev, about.st_ino) not in seen:
                    seen.add((about.st_dev, about.st_ino))
                    total += about.st_size
    return total
