"""models --found, ls, du, rm: the models on disk, the room that they take, and their removal. None of it needs a kernel.

`rm` removes a model from the hub's cache, and the files that the drivers have installed of it; other programs' models are
for those programs to remove. Reads the drivers' directory by the names of its files (drivers/cpu/native/installed.py).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmasos.modelfiles import cache, names, stores
from llmasos.modelfiles.names import Kind
from llmasos.modelfiles.stores import Found
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.programs.figures import size
from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.table import NAME

_INSTALLED = re.compile(r"(?P<of>.+)-(?P<dtype>int[48]|fp32|bf16)-[0-9a-f]{16}\.v\d+\.\d+")
_ODD = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Installed:
    """A file that a driver made from a model, to load it faster."""

    path: Path
    of: str  # the name of the model's directory or file
    dtype: str
    size: int


# The models on this machine; one that cannot be run says why. Times are seconds since 1970.
FOUND: Listing[Found] = Listing(
    (
        Field("MODEL", "name", style="bold", elastic=True, keep=NAME, least=16),
        Field("STORE", "store", keep=6),
        Field("FORMAT", "format", keep=4),
        Field("SIZE", "size", shown=lambda one: size(one.size) if one.size else "-", right=True, keep=7),
        Field("MODIFIED", "modified", shown=lambda one: _day(one.modified), keep=3),
        Field("WHERE", "path", shown=lambda one: one.problem or one.path, elastic=True, keep=5, least=24),
    ),
    style=lambda one: "yellow" if one.problem else "",
)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds)) if seconds else "-"


def cached() -> list[Found]:
    """Those of the found models that are in the hub's cache, which `pull` fills and `rm` empties."""
    return [one for one in stores.found() if one.store == stores.HUGGING_FACE]


def installed_directory() -> Path | None:
    """The directory in which the drivers keep installed files; None if there is none."""
    chosen = os.environ.get("LLMASOS_CACHE")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "llmasos" / "installed"


def installed() -> list[Installed]:
    """The files that drivers have made from models."""
    made: list[Installed] = []
    place = installed_directory()
    if place is None:
        return made
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            name = _INSTALLED.fullmatch(path.name)
            if name is not None and path.is_file() and not path.is_symlink():
                made.append(Installed(path, name["of"], name["dtype"], path.stat().st_size))
    return made


def installed_name(place: Path) -> str:
    """The name of a model's directory or file in the names of installed files."""
    return _ODD.sub("-", place.name)[:64] or "model"


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes of the disk, with the model and the place that take them."""

    what: str
    kind: str
    size: int
    path: Path


def usage(unlisted: Callable[[SyscallError], None]) -> list[Use]:
    """The uses of the disk, largest first. `unlisted` is told of each folder whose files cannot be counted."""
    uses: list[Use] = []
    there = stores.found()
    of = _named_once(there)
    for repo, place in cache.repositories():
        partial = _partial_bytes(place)
        uses.append(Use(repo, "weights and words", cache.disk_bytes(place, unlisted) - partial, place))
        if partial:
            uses.append(Use(repo, "unfinished download", partial, place / "blobs"))
        with suppress(SyscallError):  # it has been told
            of |= dict.fromkeys(cache.revisions(place), repo)
    uses += [Use(of.get(one.of, one.of), f"installed as {one.dtype}", one.size, one.path) for one in installed()]
    uses += [Use(one.name, f"in {one.store}", one.size, one.path) for one in there if one.store != stores.HUGGING_FACE]
    return sorted((use for use in uses if use.size), key=lambda use: (-use.size, use.what))


def _named_once(there: list[Found]) -> dict[str, str]:
    """The models by the name that the drivers' files have for them; a name that several models share is left out."""
    of: dict[str, str] = {}
    places: dict[str, Path] = {}
    for one in there:
        name = installed_name(one.path)
        if places.setdefault(name, one.path) != one.path:
            of.pop(name, None)
        else:
            of.setdefault(name, one.name)
    return of


def _partial_bytes(place: Path) -> int:
    total = 0
    with suppress(OSError):
        for blob in (place / "blobs").iterdir():
            if blob.name.endswith(cache.PARTIAL):
                with suppress(OSError):
                    total += blob.lstat().st_size
    return total


USES: Listing[Use] = Listing(
    (
        Field("SIZE", "size", shown=lambda use: size(use.size), right=True, keep=8),
        Field("MODEL", "what", style="bold", elastic=True, keep=NAME, least=16),
        Field("WHAT", "kind", keep=6),
        Field("WHERE", "path", elastic=True, keep=5, least=24),
    )
)


@dataclass(frozen=True, slots=True)
class Removal:
    """What `rm` would remove: a repository of the cache (all its revisions), and the files installed of it."""

    repo: str
    places: list[Path]
    made: list[Installed]
    size: int

    def act(self) -> None:
        """Remove it. Raises EIO if something stays."""
        for one in self.made:
            with suppress(FileNotFoundError):
                one.path.unlink()
        if self.repo:
            cache.remove(self.repo)


def removal(text: str) -> Removal:
    """The removal of a model. Raises EINVAL for another program's model, ENOENT for one that is not there."""
    name = names.parse(text)
    if name.kind is Kind.STORE:
        owner = {
            names.OLLAMA: f"`ollama rm {name.path}` removes it",
            names.LM_STUDIO: "LM Studio removes it",
            names.LLAMA_CPP: "it is a file of llama.cpp's cache",
        }
        raise SyscallError(Errno.EINVAL, f"{text} belongs to another program: {owner[name.store]}")
    if name.kind is Kind.PATH:
        place = Path(name.path).absolute()
        made = [one for one in installed() if one.of == installed_name(place)]
        if not made:
            raise SyscallError(
                Errno.EINVAL,
                f"{text} is a directory of yours, which is yours to remove, and nothing is installed of it",
            )
        return Removal("", [one.path for one in made], made, sum(one.size for one in made))
    if name.folder or name.quant or name.revision != names.MAIN:
        raise SyscallError(
            Errno.EINVAL,
            f"a repository goes as a whole: `llmasos models rm {name.repo}` removes all that it has",
        )
    place = cache.folder(name.repo)
    if not place.is_dir():
        known = [repo for repo, _ in cache.repositories()]
        raise SyscallError(Errno.ENOENT, f"{name.repo} is not in {cache.directory()}{names.near(name.repo, known)}")
    places = [place, *(cache.snapshot(name.repo, commit) for commit in cache.revisions(place))]
    wanted = {installed_name(one) for one in places[1:]}
    made = [one for one in installed() if one.of in wanted]
    freed = cache.disk_bytes(place) + sum(one.size for one in made)
    return Removal(name.repo, [*places, *(one.path for one in made)], made, freed)


def users(rows: Iterator[tuple[str, str]] | list[tuple[str, str]], removed: Removal) -> list[str]:
    """The kernel's models (name and path) that the removal concerns."""
    tops = [os.fspath(place) for place in removed.places]
    return [
        name
        for name, path in rows
        if (removed.repo and names_repo(path) == removed.repo)
        or any(path == top or path.startswith(top + os.sep) for top in tops)
    ]


def names_repo(path: str) -> str:
    """The repository that a model's path in the kernel names, if that is a name of the hub."""
    if os.path.isabs(path):
        return ""
    try:
        return names.parse(path).repo
    except SyscallError:
        return ""
