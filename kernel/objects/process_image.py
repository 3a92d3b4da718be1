"""The image of a process: what has to be kept for it to go on elsewhere as if nothing had happened.

That is the token log with its records, the sampler, the limits and how much of them is used up, its class, and what is
left of a decode under way; the KV is a cache beside it, and the driver's affair. The call that waited for a decode, and
the deadline, do not go with it, as they do not go with a fork; the tokens decoded so far are in the log. (CRIU's images
of Unix processes are the model.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import astuple, replace

from llmasos.kernel.journal.records import Traits
from llmasos.kernel.objects.log_records import check_places
from llmasos.kernel.objects.process import Decoding, LLMProcess
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_PATH
from llmasos.syscalls.records import PRINTABLE, Count, Finish, LogRecord, Name, StopIds, Token

if TYPE_CHECKING:
    from llmasos.kernel.objects.image import Image

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


def image_of(process: LLMProcess, image: Image) -> bytes:
    """The image of a process that is not in a step, encoded. Raises E2BIG."""
    decoding = process.decoding
    going_on = decoding is not None and decoding.append  # a mere look at log-probabilities is its caller's affair
    traits = replace(process.traits, spent=process.traits.spent + process.account.decoded, detached=False)
    record = ProcessImage(
        *astuple(traits),
        version=VERSION if process.records.rows else WITHOUT_RECORDS,
        path=image.path,
        dtype=image.dtype,
        device=process.device.name,
        log=process.log,
        forks=process.account.forks,
        stopped=process.stopped,
        ahead=process.ahead,
        finish=process.finish,
        decoding=Continuing(decoding.left, decoding.start, sorted(decoding.stop_ids)) if decoding and going_on else None,
        records=process.records.rows,
    )
    encoded = _encode(record)
    if len(encoded) > MOST_BYTES:
        raise Errno.E2BIG(
            f"the image of process {process.pid} would have {len(encoded)} bytes without KV, {MOST_BYTES} are possible"
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


def go_on(process: LLMProcess, saved: ProcessImage) -> None:
    """Let a process that has its model do what the other was doing; where it cannot, its decode has ended."""
    process.stopped, process.ahead, process.finish = saved.stopped, saved.ahead, saved.finish
    if saved.decoding is None:
        return
    if process.budget_used:
        process.finish = Finish.BUDGET
    elif len(process.log) >= process.context:
        process.finish = Finish.CONTEXT
    else:
        going_on = saved.decoding
        process.decoding = Decoding(going_on.left, True, going_on.start, frozenset(going_on.stop_ids), logprobs=0)
        process.finish = Finish.NONE
