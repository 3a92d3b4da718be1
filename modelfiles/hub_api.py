"""The hub's HTTP API: requests for the files of a commit, and the answers, errors included.

Every status becomes an errno with words that say what to do: a missing or wrong token and terms that are not accepted are
EPERM, what is not there (or is hidden from a visitor) is ENOENT, a hub in trouble is EAGAIN.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec

from llmasos.modelfiles import cache, choice, files, web
from llmasos.modelfiles.files import shown
from llmasos.modelfiles.names import Name
from llmasos.syscalls.errno import Errno, SyscallError

TRIES = 5  # without a new byte
LONGEST_WAIT = 60.0  # seconds; the longest that a hub may tell us to wait
_MOST_LISTING = 64 << 20  # bytes
_LISTING_SECONDS = 30.0
PIECE = 1 << 20


class Large(msgspec.Struct):
    """A file that git holds by its SHA-256 only."""

    sha256: str = ""
    size: int = 0


class Sibling(msgspec.Struct):
    """A file in the listing of a commit."""

    rfilename: str
    size: int | None = None
    blob_id: str | None = msgspec.field(name="blobId", default=None)
    lfs: Large | None = None


class _Repository(msgspec.Struct):
    sha: str
    siblings: list[Sibling] = []


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of a commit: its place, its size in bytes, and the digest that names it (`sha256`, `git`, or empty:
    unknown)."""

    path: str
    size: int
    etag: str
    digest: str


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else the public one. Raises EINVAL."""
    place = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").strip().rstrip("/")
    with suppress(ValueError):
        apart = urlsplit(place)
        if apart.scheme in ("http", "https") and apart.hostname and apart.port != 0 and place.isprintable():
            return place
    raise SyscallError(
        Errno.EINVAL,
        f"HF_ENDPOINT is {shown(place[:200])!r}, the address of a hub was wanted, such as https://huggingface.co",
    )


def token() -> tuple[str, str]:
    """The user's token and its origin; two empty strings without one."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name, "").strip():
            return _clean(value, name), name
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in ("1", "on", "yes", "true"):
        return "", ""
    place = Path(os.environ.get("HF_TOKEN_PATH") or cache.home() / "token").expanduser()
    try:
        value = files.read_whole(place, 4096).decode("ascii").strip()
    except (OSError, ValueError, SyscallError):
        return "", ""
    return (_clean(value, str(place)), str(place)) if value else ("", "")


def _clean(value: str, where: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise SyscallError(Errno.EINVAL, f"what {where} holds is no token: it has other characters in it")
    return value


def listing(name: Name, revision: str) -> tuple[str, dict[str, Sibling]]:
    """The commit that `revision` is, and its files by path."""
    url = f"{endpoint()}/api/models/{quote(name.repo)}/revision/{quote(revision, safe='')}?blobs=true"
    raw = _asked(name, url)
    try:
        found = msgspec.json.decode(raw, type=_Repository)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SyscallError(Errno.EIO, f"what {endpoint()} says of {name.repo} cannot be read ({error})") from None
    if not cache.COMMIT.fullmatch(found.sha):
        raise SyscallError(Errno.EIO, f"{endpoint()} says that {name.repo} is at {shown(found.sha)[:60]!r}, no commit")
    return found.sha, {choice.checked(one.rfilename): one for one in found.siblings}


def _asked(name: Name, url: str) -> bytes:
    """The body of a short answer."""

    def ask() -> bytes:
        give_up = time.monotonic() + _LISTING_SECONDS
        with web.request(url, token=token()[0]) as reply:
            check(name, reply)
            raw = bytearray()
            while piece := reply.read(PIECE):
                raw += piece
                if len(raw) > _MOST_LISTING or time.monotonic() > give_up:
                    raise SyscallError(Errno.EIO, f"what {endpoint()} says of {name.repo} has no end")
            return bytes(raw)

    return _tried(name, ask)


def _tried(name: Name, act: Callable[[], bytes]) -> bytes:
    """Do it, and again if another try may help; not if nothing can be reached at all."""
    for attempt in range(TRIES):
        try:
            return act()
        except Later as later:
            if attempt == TRIES - 1 or later.seconds > LONGEST_WAIT:
                raise SyscallError(Errno.EAGAIN, later.why) from None
            pause(later.seconds or 2.0**attempt)
        except web.Cut as cut:
            raise Unreachable(
                Errno.EAGAIN, f"{endpoint()} cannot be reached for {name.repo} ({cut}); try again later"
            ) from None
    raise AssertionError("the last try returns or raises")


class Unreachable(SyscallError):
    """The hub did not answer."""


def pause(seconds: float, tell: Callable[[], None] = lambda: None) -> None:
    """Wait before another try, and report now and then; an exception of `tell` ends it."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        tell()
        time.sleep(min(left, 0.5))


class Later(Exception):
    """The hub is busy: `seconds` to wait (0: as we like) and why."""

    def __init__(self, seconds: float, why: str) -> None:
        super().__init__(why)
        self.seconds, self.why = seconds, why


def check(name: Name, reply: web.Reply) -> None:
    """Raise the error that a status other than success means, in words."""
    status = reply.status
    if 200 <= status < 300:
        return
    at, (held, where) = endpoint(), token()
    code = reply.header("X-Error-Code")
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if code == "GatedRepo":
        then = "then pull again" if held else f"and {login}"
        raise SyscallError(
            Errno.EPERM,
            f"the makers of {name.repo} want their terms accepted first: at {at}/{name.repo}, {then}",
        )
    if status == 401 and held:
        raise SyscallError(Errno.EPERM, f"{at} does not take the token of {where}; {login}")
    if status in (401, 404) and code not in ("RevisionNotFound", "EntryNotFound"):
        more = "your token cannot read it" if held else f"it is private: {login}"
        raise SyscallError(Errno.ENOENT, f"{at} has no model {name.repo}, or {more}")
    if status == 404:
        what = f"revision {name.revision!r}" if code == "RevisionNotFound" else "such file any more"
        raise SyscallError(Errno.ENOENT, f"{name.repo} has no {what}")
    if status == 403:
        more = f"the token of {where} may not" if held else login
        raise SyscallError(Errno.EPERM, f"{at} does not let {name.repo} be read: {more}")
    if status == 429:
        seconds = _seconds(reply.header("Retry-After"))
        more = f" for {seconds:g} s" if seconds else ""
        raise Later(seconds, f"{at} wants to be left alone{more} (429: too many requests); try again later")
    if status >= 500 or status == 408:
        raise Later(0.0, f"{at} is in trouble (HTTP {status}); try again later")
    raise SyscallError(Errno.EIO, f"{at} answers HTTP {status} for {name.repo}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if 0.0 < seconds < 1e9 else 0.0


def remote(name: Name, commit: str, one: Sibling) -> Remote:
    """The facts about a file before it is fetched, asked for if the listing does not have them. Raises as `listing`."""
    if one.lfs is not None and one.lfs.sha256:
        return _sound(Remote(one.rfilename, one.lfs.size, one.lfs.sha256, "sha256"))
    if one.size is not None and one.blob_id:
        return _sound(Remote(one.rfilename, one.size, one.blob_id, "git"))
    found: list[Remote] = []

    def ask() -> bytes:  # for a mirror whose listing has neither sizes nor digests
        with web.request(url_of(name, commit, one.rfilename), method="HEAD", token=token()[0], redirects=False) as reply:
            if reply.status not in (301, 302, 303, 307, 308):
                check(name, reply)
            etag = (reply.header("X-Linked-Etag") or reply.header("ETag")).removeprefix("W/").strip('"')
            size = reply.header("X-Linked-Size") or reply.header("Content-Length")
            if not size.isdecimal():
                raise SyscallError(Errno.EIO, f"{endpoint()} does not say how large {shown(one.rfilename)} is")
            kind = {64: "sha256", 40: "git"}.get(len(etag), "")
            found.append(_sound(Remote(one.rfilename, int(size), etag, kind)))
        return b""

    _tried(name, ask)
    return found[0]


def _sound(remote: Remote) -> Remote:
    """Refuse a digest that cannot be a file's name, and a size that cannot be one."""
    if not remote.etag or len(remote.etag) > 128 or not remote.etag.isascii() or not remote.etag.isalnum():
        raise SyscallError(Errno.EIO, f"the hub calls {shown(remote.path)} {shown(remote.etag)[:80]!r}, no digest")
    if not 0 <= remote.size < 1 << 50:
        raise SyscallError(Errno.EIO, f"the hub says that {shown(remote.path)} has {remote.size} bytes")
    return remote


def url_of(name: Name, commit: str, path: str) -> str:
    """The address of a file of a commit."""
    return f"{endpoint()}/{quote(name.repo)}/resolve/{commit}/{quote(path)}"
