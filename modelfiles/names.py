"""The names of models as people write them: a path, a repository of the hub, or a name in another program's store.

    `./dir`, `FILE.gguf`                    a path
    `org/name`, `org/name/folder`           a repository of the Hugging Face hub, a folder of it
    `org/name@revision`, `org/name:Q4_K_M`  a branch, tag or commit of it; one quantisation of a GGUF repository
    `hf.co/org/name`, `https://hf.co/...`   the same
    `ollama:llama3.2:1b`, `llama3.2:1b`     a model of Ollama's store; `lmstudio:` and `llamacpp:` are others

As with execvp, a word without a slash may also be the system's own name of a model (`tiny`): a caller that has a kernel
asks it first.
"""

from __future__ import annotations

import difflib
import enum
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from llmasos.modelfiles.files import shown
from llmasos.syscalls.errno import Errno, SyscallError

MAIN = "main"
OLLAMA, LM_STUDIO, LLAMA_CPP = STORES = ("ollama", "lmstudio", "llamacpp")
_HUB = re.compile(r"(?:(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/|hf://)", re.IGNORECASE)
_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]*\w)?", re.ASCII)
_MOST_PART = 96  # characters of an owner or a name, the hub's own limit
_REVISION = re.compile(r"[\w.+-]+(?:/[\w.+-]+)*", re.ASCII)
_QUANT = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_TAGGED = re.compile(r"[\w.-]+:[\w.-]+", re.ASCII)
_MOST = 1024  # characters of a name


class Kind(enum.StrEnum):
    """The kinds of places that a name can mean."""

    PATH = "path"
    HUB = "hub"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Name:
    """A name, taken apart. `text` is the name as written."""

    kind: Kind
    text: str
    path: str = ""  # of PATH, and the name in its store
    store: str = ""
    repo: str = ""  # of HUB, as the fields below
    folder: str = ""
    revision: str = MAIN
    quant: str = ""

    def canonical(self) -> str:
        """The shortest way to write it."""
        if self.kind is Kind.PATH:
            return self.path
        if self.kind is Kind.STORE:
            return f"{self.store}:{self.path}"
        folder = f"/{self.folder}" if self.folder else ""
        revision = f"@{self.revision}" if self.revision != MAIN else ""
        return f"{self.repo}{folder}{revision}{f':{self.quant}' if self.quant else ''}"


def parse(text: str) -> Name:
    """Take a name apart. Raises EINVAL for one that cannot be, ENOENT for a path that is not there."""
    if not text or len(text) > _MOST or not text.isprintable():
        raise SyscallError(
            Errno.EINVAL,
            f"a model's name has 1 to {_MOST} printable characters, found {shown(text[:40])!r}",
        )
    store, colon, rest = text.partition(":")
    if colon and store.lower() in STORES and rest:
        return Name(Kind.STORE, text, path=rest.removesuffix(":latest"), store=store.lower())
    bare = _HUB.match(text)
    if bare is None and text != text.strip() and not os.path.lexists(text):
        return parse(text.strip())  # copied with the space around it
    if bare is None:
        if text.startswith((".", "~", os.sep)) or os.path.isabs(text):
            return Name(Kind.PATH, text, path=os.path.expanduser(text))
        if os.path.lexists(text):
            return Name(Kind.PATH, text, path=text)
        if _TAGGED.fullmatch(tagged := text.rstrip("/")):
            return Name(Kind.STORE, text, path=tagged.removesuffix(":latest"), store=OLLAMA)
        if "://" in text:
            raise SyscallError(
                Errno.EINVAL,
                f"{text!r} is an address that is not the hub's (hf.co, huggingface.co); download it, and name the file",
            )
        if text.endswith((".gguf", ".safetensors")):
            raise SyscallError(Errno.ENOENT, f"no model {text!r}: there is no such file")
    if bare is None:
        return _hub(text, text.rstrip("/"))
    address = re.split(r"[?#]", text[bare.end() :].strip(), maxsplit=1)[0]
    return _hub(text, unquote(address).rstrip("/"))


def _hub(text: str, rest: str) -> Name:
    rest, at, revision = rest.partition("@")
    tail, colon, quant = (revision if at else rest).partition(":")
    if (at and not tail) or (colon and not quant):
        raise SyscallError(Errno.EINVAL, f"{text!r} ends where a revision or a quantisation was wanted")
    rest, revision = (rest, tail) if at else (tail, MAIN)
    parts = rest.split("/")
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):  # an address copied from a browser
        revision, parts = parts[3], parts[:2] + parts[4:]
    repo, folders = parts[:2], parts[2:]
    odd = next((part for part in repo if not _is_part(part)), None)
    if odd is None:
        odd = next((part for part in folders if part in ("", ".", "..") or "\\" in part), None)
    if odd is not None:
        raise SyscallError(
            Errno.ENOENT,
            f"no model {text!r}: there is no such directory, and {odd!r} can be no part of a hub name "
            "(org/name, org/name@revision, org/name/folder, org/name:QUANT)",
        )
    if not is_revision(revision):
        raise SyscallError(Errno.EINVAL, f"{revision!r} in {text!r} is no revision; it is a branch, tag or commit")
    if quant and not _QUANT.fullmatch(quant):
        raise SyscallError(Errno.EINVAL, f"{quant!r} in {text!r} is no quantisation; one is Q4_K_M or Q8_0")
    return Name(Kind.HUB, text, repo="/".join(repo), folder="/".join(folders), revision=revision, quant=quant)


def _is_part(part: str) -> bool:
    return (
        _PART.fullmatch(part) is not None
        and len(part) <= _MOST_PART
        and "--" not in part
        and ".." not in part
        and not part.endswith(".git")
    )


def is_revision(text: str) -> bool:
    """Whether it can be a branch, tag or commit, and a path below the cache's `refs`."""
    parts = text.split("/")
    return _REVISION.fullmatch(text) is not None and not any(part.startswith(".") for part in parts)


def near(text: str, known: Iterable[str]) -> str:
    """`; did you mean X?` if one of the known names is near, else empty."""
    names = sorted(set(known))
    word = text.lower()
    found = [name for name in names if name.lower() == word or name.lower().rpartition("/")[2] == word]
    found = found or difflib.get_close_matches(text, names, 1, 0.7)
    return f"; did you mean {found[0]}?" if found else ""


def locate(text: str) -> str | None:
    """The path of a model that another program's store or the hub's cache has as a file of its own, to give to `spawn`
    for `ollama:llama3.2:1b` or `org/name:Q4_K_M`; for an address of the hub, its name. None for everything else, which
    the kernel or its driver looks up (a simulated model's name has a colon too).

    Raises ENOENT for a model that a store should have and does not.
    """
    if ":" not in text and not _HUB.match(text):
        return None
    try:
        name = parse(text)
    except SyscallError:
        return None
    if name.kind is Kind.STORE:
        from llmasos.modelfiles import stores

        try:
            return os.fspath(stores.lookup(name).path)
        except SyscallError:
            if text.lower().startswith(f"{name.store}:"):
                raise
            return None
    if name.kind is not Kind.HUB:
        return None
    if name.quant:
        from llmasos.modelfiles import cache

        there = cache.find(name, weights=True)
        if there is not None:
            return os.fspath(there)
    return name.canonical() if _HUB.match(text) else None
