"""What stands in the file of a process, beside its KV: the fields, their versions, and how such a file is read.

CRIU's images of Unix processes are the model. A file is older or newer than the kernel that reads it, and may come from
anybody, so reading it checks all that the kernel relies on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from llmasos.kernel.journal.records import Traits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_PATH, MAX_RECORD_BYTES, MAX_RECORDS
from llmasos.syscalls.records import PRINTABLE, Count, Finish, LogRecord, Name, StopIds, Token

VERSION = 2
WITHOUT_RECORDS = 1  # written where there are none, so that an older kernel can go on with it
MOST_BYTES = 24 << 20  # of an image without its KV: some five million tokens

_Path = Annotated[str, Meta(max_length=MAX_PATH, pattern=PRINTABLE)]


class Continuing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decode under way."""

    left: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    start: Count
    stop_ids: StopIds


class ProcessImage(Traits, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A process, without its KV. `model` is what it was asked for under, `path` what that meant. Whether it was detached
    does not go with it: that is for the restoring call to say."""

    version: int
    path: _Path
    dtype: Name
    device: Name
    log: list[Token]
    forks: Count  # the seeds of further children follow from it
    stopped: bool
    ahead: bool
    finish: Finish
    decoding: Continuing | None
    records: list[LogRecord] = []


class _Version(msgspec.Struct):
    version: int


_encode = msgspec.msgpack.Encoder().encode


def version_with(rows: Sequence[LogRecord]) -> int:
    """The oldest version that can carry these records beside a log, so that older kernels can read what they know."""
    return VERSION if rows else WITHOUT_RECORDS


def write_image(image: ProcessImage, pid: int) -> bytes:
    """The bytes of the file. Raises E2BIG."""
    encoded = _encode(image)
    if len(encoded) > MOST_BYTES:
        raise Errno.E2BIG(
            f"the image of process {pid} would have {len(encoded)} bytes without KV, {MOST_BYTES} are possible"
        )
    return encoded


def read_image(encoded: bytes, path: str) -> ProcessImage:
    """What stands in the file `path`. Raises EINVAL for another version, EIO for what no kernel has written."""
    try:
        version = msgspec.msgpack.decode(encoded, type=_Version).version
        if version not in (VERSION, WITHOUT_RECORDS):
            raise Errno.EINVAL(
                f"{path} holds a process of version {version}, up to {VERSION} is known; use the LLMasOS that wrote it"
            )
        image = msgspec.msgpack.decode(encoded, type=ProcessImage)
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise Errno.EIO(f"{path} holds no process that could be: {error}") from None
    if image.decoding is not None and not (image.log and image.decoding.start <= len(image.log)):
        raise Errno.EIO(f"{path} holds no process that could be: its decode begins beyond its log")
    if wrong := check_places(image.records, len(image.log)):
        raise Errno.EIO(f"{path} holds no process that could be: {wrong}")
    return image


def check_size(count: int, size: int, who: str) -> None:
    """E2BIG if these are more records, or bytes of them, than one process may have."""
    if count > MAX_RECORDS or size > MAX_RECORD_BYTES:
        raise Errno.E2BIG(
            f"{who} {count} records with {size} bytes, at most {MAX_RECORDS} with {MAX_RECORD_BYTES} bytes are possible; "
            "cut the log, or keep less with it"
        )


def check_places(rows: Sequence[LogRecord], length: int) -> str:
    """Why these records cannot go with a log of `length` tokens; empty: they can."""
    positions = [row.position for row in rows]
    if positions != sorted(positions):
        return "its records are not in order"
    if positions and positions[-1] > length:
        return f"a record stands at {positions[-1]}, its log has {length} tokens"
    try:
        check_size(len(rows), sum(len(row.data) for row in rows), "it has")
    except SyscallError as error:
        return error.reason
    return ""
