"""Models of the Hugging Face hub: from the local cache, else fetched into it, so that every other program finds them too.

As in git, a download first learns which commit a branch is, and then takes every file of that commit, checked against the
digest by which the commit knows it (SHA-256 of large files, git's own SHA-1 of small ones). The code is here (hub_api.py,
download.py, web.py) and not huggingface_hub's, whose layout it keeps, because that library throws an unfinished file away
when it is interrupted, and sleeps for as long as a server tells it to.
"""

from __future__ import annotations

from pathlib import Path

from llmasos.modelfiles import cache, choice, files, names
from llmasos.modelfiles.download import Download, Progress, Said
from llmasos.modelfiles.hub_api import Remote, Unreachable, listing, remote
from llmasos.modelfiles.names import Name
from llmasos.syscalls.errno import Errno, SyscallError

__all__ = ["Progress", "Said", "find", "pull"]


def find(name: Name, *, weights: bool, said: Said | None = None) -> Path:
    """The model's directory (of a GGUF repository the file), from the cache if it is whole there, else fetched; without
    `weights`, only the small files. A commit that is partly there is completed, not replaced by a newer one.

    Raises ENOENT, EPERM (token, terms), EAGAIN (network, hub), EDQUOT (disk), EIO, ENOEXEC (nothing to run).
    """
    there = cache.find(name, weights=weights)
    if there is not None:
        return there
    commit = cache.commit_of(name.repo, name.revision)
    if cache.offline():
        part = " wholly" if commit else ""
        raise SyscallError(
            Errno.ENOENT,
            f"no model {name.text!r}: it is not{part} in {cache.directory()}, and HF_HUB_OFFLINE says to ask nobody",
        )
    try:
        return _fetch(name, commit or name.revision, weights=weights, said=said)
    except SyscallError as error:
        if error.errno is not Errno.ENOENT and (commit is not None or not isinstance(error, Unreachable)):
            raise
        near = names.near(name.canonical(), [repo for repo, _ in cache.repositories()])
        raise SyscallError(
            Errno.ENOENT,
            f"no model {name.text!r}: tried a directory of that name, the local Hugging Face cache "
            f"and the hub ({error.reason}){near or '; `models` lists what is known'}",
        ) from None


def pull(name: Name, said: Said | None = None) -> Path:
    """Fetch the hub's present files of a model; those that are in the cache stay. Raises as `find` does."""
    if cache.offline():
        raise SyscallError(Errno.EPERM, "HF_HUB_OFFLINE says to ask nobody; unset it to download")
    return _fetch(name, name.revision, weights=True, said=said)


def _fetch(name: Name, revision: str, *, weights: bool, said: Said | None) -> Path:
    commit, siblings = listing(name, revision)
    inside = choice.inside(siblings, name.folder)
    if name.folder and not inside:
        raise SyscallError(Errno.ENOENT, f"{name.repo} has no folder {name.folder!r} at {name.revision}")
    place = cache.snapshot(name.repo, commit) / name.folder
    download = Download(name, commit, said)
    what = name.canonical()

    def remotes(paths: list[str]) -> list[Remote]:
        prefix = f"{name.folder}/" if name.folder else ""
        return [remote(name, commit, siblings[prefix + path]) for path in paths]

    if name.quant or choice.is_gguf(inside):
        chosen = choice.gguf_files(what, inside, name.quant)
        download.all(remotes(chosen))
        download.remember()
        return place / chosen[0]
    if not inside & {choice.SINGLE, choice.INDEX}:
        raise choice.no_weights(what, inside)
    if choice.CONFIG not in inside:
        raise SyscallError(Errno.ENOENT, f"{what} has no {choice.CONFIG} on the hub")
    wanted = choice.side_files(inside)
    if weights and choice.SINGLE in inside:
        wanted.append(choice.SINGLE)
    elif weights:
        download.all(remotes([choice.INDEX]))  # it names the shards
        index = files.read_whole(place / choice.INDEX, choice.MOST_INDEX)
        wanted += choice.shards(what, inside, index)
    download.all(remotes(wanted))
    download.remember()
    return place
