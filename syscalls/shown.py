"""Files that a call names, shown to a kernel that serves several users: what its clients and that kernel both know.

Such a kernel opens no path for a user, or it would do so with its own rights (a confused deputy). The user's program
opens the file and sends the descriptor over a second socket beside the kernel's, as with SCM_RIGHTS of systemd's and
Wayland's sockets; it gets a reference for it, good for one call of the same OS process, and that stands in the call in
place of the path. What is to be read the kernel copies (kernel/edge/copies.py); what is to be written it writes there.

A connection is for one thing: `Show`, then each of its files with one descriptor and an answer (`Kept`), then `Whole`,
which is answered by the reference. A message is its length (32 bits, little-endian) and msgpack; the descriptor comes
with the first byte.
"""

from __future__ import annotations

import re
import struct
from typing import Annotated, Any, Literal

import msgspec

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import PRINTABLE
from llmasos.syscalls.table import TABLE, Call, Names

REFERENCE = re.compile(r"shown:[0-9a-f]{32}")
MOST_MESSAGE = 16_384  # bytes of a message
MOST_FILES = 4_096  # of a model
LENGTH = struct.Struct("<I")
IMAGE_MAGIC = b"LLMasPI\0"  # the first bytes of a process image
UNKNOWN = (
    "is no reference to files that this kernel holds; show them again"  # in an EAGAIN: another kernel may run by now
)
NOT_YOURS = "would be opened with the rights of the machine's kernel, not with yours, and so it is not"  # in an EPERM

Part = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"\A(?!\.{1,2}\Z)[^/\x00-\x1f\x7f-\x9f]+\Z")]

# A model of the simulated device. The script, if there is one, is a file; nothing else in such a name is.
_TRAIT = r"(?!script=)[A-Za-z0-9_.+-]+(?:=[A-Za-z0-9_.+-]*)?"
SIMULATED = re.compile(rf"sim(?::{_TRAIT}(?:,{_TRAIT})*)?")
_SCRIPTED = re.compile(rf"sim:(?:{_TRAIT},)*script=([^,]+)(?:,{_TRAIT})*")

# The fields of each call that name files, and how.
NAMING: dict[type[Call[Any]], tuple[tuple[str, Names], ...]] = {
    entry.record: fields
    for entry in TABLE.values()
    if (
        fields := tuple(
            (one.field, one.what) for one in entry.touches if one.what in (Names.MODEL, Names.FILE, Names.TARGET)
        )
    )
}


def file_of(name: str) -> str:
    """The path in what a call gives for a model or file: all of it but for a simulated model with a script."""
    found = _SCRIPTED.fullmatch(name)
    return found[1] if found else name


class Show(msgspec.Struct, tag=True, frozen=True):
    """The first message: what the files are for, and what people call it (the file of a path, a directory's name)."""

    what: Literal["model", "file", "target"]  # a kind of field of the table's (Names): two to be read, one to be written
    name: Annotated[str, msgspec.Meta(max_length=255, pattern=PRINTABLE)]


class File(msgspec.Struct, tag=True, frozen=True):
    """One of the files; its descriptor comes with it."""

    name: Part


class Whole(msgspec.Struct, tag=True, frozen=True):
    """There are no more. `first`: the file that the call names, where that is one of several; empty: their directory."""

    first: Part | None = None


class Kept(msgspec.Struct, tag=True, frozen=True):
    """The kernel has what it needs of a file."""


class Taken(msgspec.Struct, tag=True, frozen=True):
    """`reference`: for one call of this OS process, while this connection stays. `path`: how the kernel calls it."""

    reference: Annotated[str, msgspec.Meta(max_length=64)]
    path: Annotated[str, msgspec.Meta(max_length=limits.MAX_PATH)]


class Denied(msgspec.Struct, tag=True, frozen=True):
    """The kernel does not take it."""

    errno: Errno
    reason: str


ToKernel = Show | File | Whole
FromKernel = Kept | Taken | Denied

_encode = msgspec.msgpack.Encoder().encode
to_kernel = msgspec.msgpack.Decoder(ToKernel).decode
from_kernel = msgspec.msgpack.Decoder(FromKernel).decode


def framed(message: ToKernel | FromKernel) -> bytes:
    data = _encode(message)
    return LENGTH.pack(len(data)) + data
