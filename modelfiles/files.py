"""Opening files that another author has put into a model's directory: regular files of a bounded size, and nothing else.

A fifo among the weights would block without end, and a link to /dev/zero never ends. So a file is opened without waiting
(O_NONBLOCK means nothing to a regular file), and checked through its descriptor, which cannot be exchanged for another
afterwards.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable

T = TypeVar("T")

MOST_CONFIG = 16 << 20  # bytes of a JSON or template file that is read whole; published ones have some kilobytes
MOST_TOKENIZER = 256 << 20  # of a tokenizer.json; the largest published have some 35 MB
_QUOTED = 80  # characters of a value that a message quotes
_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a fifo"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


class Broken(SyscallError):
    """A file is not what it should be: reading it again finds the same, until it is mended. A fault that may pass by
    itself (a disk that does not answer, short memory) is a plain SyscallError."""


def broken(reason: str) -> Broken:
    return Broken(Errno.EIO, reason)


def walk(
    place: Path, unlisted: Callable[[SyscallError], None], *, follow: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, which skips a folder that it cannot list as if nothing were in it: here `unlisted` is told, and may
    raise it. One that is not there has nothing in it. `follow`: links to folders, too."""

    def refused(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            unlisted(cannot_list(Path(error.filename or place), error))

    return os.walk(place, onerror=refused, followlinks=follow)


def contents(place: Path) -> list[Path]:
    """What is in a folder, by name; nothing, if it is not there. Raises SyscallError EIO: it cannot be listed."""
    try:
        return sorted(place.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise cannot_list(place, error) from None


def cannot_list(place: Path, error: OSError) -> SyscallError:
    return Errno.EIO(f"the folder {shown(place)} cannot be listed: {error.strerror or error}; what is in it is not known")


def unlisted(error: SyscallError) -> None:
    """For who wants all of `walk` or nothing."""
    raise error


def open_regular(path: Path) -> BinaryIO:
    """The file, open for unbuffered reading. Raises OSError if it cannot be opened, EIO if it is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
        raise broken(f"{shown(path)} is {kind}, and a regular file was wanted; remove it")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_whole(path: Path, most: int = MOST_CONFIG) -> bytes:
    """The file's bytes. Raises OSError, EIO if it is no regular file or has more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise broken(
                f"{shown(path)} has {size} bytes, and at most {most} are read of such a file; is it the right one?"
            )
        found = bytearray()
        while piece := file.read(most + 1 - len(found)):
            found += piece
            if len(found) > most:
                raise SyscallError(Errno.EIO, f"{shown(path)} grew while it was read")
        return bytes(found)


def read_json(path: Path, kind: type[T], most: int = MOST_CONFIG) -> T:
    """The value in a JSON file, checked against `kind`. Raises OSError, EIO naming the file and the fault in it."""
    raw = read_whole(path, most)
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise broken(f"{shown(path)} cannot be read as JSON ({error}); copy or download the model again") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object as Python reads it: published configurations have Infinity in them. Raises FileNotFoundError, EIO
    naming the file."""
    try:
        found = json.loads(read_whole(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SyscallError(Errno.EIO, f"{shown(path)} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise broken(f"{shown(path)} cannot be read as JSON ({shown(error)}); copy or download the model again") from None
    if not isinstance(found, dict):
        raise broken(f"{shown(path)} holds a JSON {type(found).__name__}, an object was wanted")
    return found


def shown(value: object) -> str:
    """Text of a file, or its name, made printable, whole."""
    return printable(str(value), one_line=True)


def quoted(value: object) -> str:
    """A value of a file in a message: as Python writes it, escaped, and short."""
    text = ascii(value)
    return text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "..."
