"""Process images of the torch engine and the native decoder: frames to a file and back (drivers/checkpoint.py).

The thread that does the steps copies the KV, and another thread writes the copy, so that processes that decode wait for
memory and not for the disk. Import reads straight into the frames, with as many threads as there are cores, in the order
of the requests: a context that gets one of the frames next writes it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmasos.drivers import checkpoint
from llmasos.drivers.checkpoint_file import Reader
from llmasos.drivers.engine.digest import Stamp, content_digest, stamp
from llmasos.drivers.engine.image import Frames
from llmasos.drivers.engine.kv import bytes_of, fill
from llmasos.drivers.engine.swap import Lost
from llmasos.drivers.protocol import Export, Exported, Import, Imported
from llmasos.drivers.seals import Damaged
from llmasos.syscalls.errno import Errno, SyscallError

KV_FORMAT = "1"  # raise it when this engine computes other KV for the same model
Tick = Callable[[], None]


@dataclass(slots=True)
class Origin:
    """Where the model of an image came from, and the way it is computed. The digest is made when it is first needed, and
    only while the files are those that were loaded."""

    directory: Path
    memory: Path | None  # where digests are remembered
    way: Mapping[str, str]
    loaded: Stamp
    digest: str = ""
    trusted: str = ""  # why it may be loaded; empty: nobody asked

    def measure(self, tick: Tick) -> str:
        """The digest of the files. Raises EIO: they are not those that were loaded."""
        found = self.fingerprint(tick)
        if isinstance(found, str):
            raise SyscallError(Errno.EIO, found)
        return self.digest

    def fingerprint(self, tick: Tick) -> dict[str, str] | str:
        """All that decides about the bits of KV; or the reason why it is not known."""
        changed = f"the files of the model in {self.directory} are not those that were loaded"
        try:
            if stamp(self.directory) != self.loaded:
                return changed
            if not self.digest:
                self.digest = content_digest(self.directory, self.memory, tick)
                if stamp(self.directory) != self.loaded:
                    self.digest = ""
                    return changed
        except OSError as error:
            return f"{changed}: {error.strerror}"
        return {"model": self.digest, "format": KV_FORMAT, **self.way}


def block_bytes(image: Frames) -> int:
    return image.slab.shape.block_bytes


def export(request: Export, image: Frames | None, origin: Origin | None, tick: Tick) -> Callable[[], Exported]:
    """Copy the KV; the function that is returned writes it. Raises SyscallError, MemoryError."""
    if image is None or origin is None or not request.tokens:
        return lambda: checkpoint.save(request, {}, 0, [], "", tick)
    copied, reason = _copied(request, image, tick)
    size = block_bytes(image)

    def rest() -> Exported:
        fingerprint = origin.fingerprint(tick)
        if isinstance(fingerprint, str):
            return checkpoint.save(request, {}, size, [], fingerprint, tick)
        raw = bytes_of(copied)
        parts = [raw[at : at + size] for at in range(0, len(raw), size)]
        return checkpoint.save(request, fingerprint, size, parts, reason, tick)

    return rest


def _copied(request: Export, image: Frames, tick: Tick) -> tuple[np.ndarray, str]:
    """The frames of a request in the CPU's memory, [blocks, bytes]; and why there are fewer than asked for, or ""."""
    slab = image.slab
    if request.frames and not 0 <= min(request.frames) <= max(request.frames) < slab.frames:
        raise SyscallError(Errno.EINVAL, f"a frame is not among the image's {slab.frames}")
    held = slab.gather(request.frames)
    tick()
    below: list[np.ndarray] = []
    for tier, slot in request.places:
        frame = np.empty((1, held.shape[1]), dtype=np.uint8)
        try:
            image.below[tier - 1].read(request.ctx, slot, frame)
        except Lost as error:
            return np.concatenate([held, *below]), str(error)
        below.append(frame)
        tick()
    return (np.concatenate([held, *below]) if below else held), ""


def read(request: Import, image: Frames, origin: Origin, movers: Executor, tick: Tick) -> Imported:
    """Read KV into the frames."""
    if request.frames and not 0 <= min(request.frames) <= max(request.frames) < image.slab.frames:
        raise SyscallError(Errno.EINVAL, f"a frame is not among the image's {image.slab.frames}")
    image.slab.wipe(request.wipes)
    fingerprint = origin.fingerprint(tick)
    if isinstance(fingerprint, str):
        return checkpoint.nothing_imported(request, fingerprint)
    size = block_bytes(image)
    try:
        with Reader(request.path, request.key, request.seal) as file:
            if reason := checkpoint.mistrust(file, request, fingerprint, size):
                return checkpoint.nothing_imported(request, reason)

            def fetch(number: int) -> str:
                try:
                    fill(
                        image.slab.some(request.frames[number], 1),
                        lambda into: file.read(request.first + number, into),
                    )
                except Damaged as error:
                    return str(error)
                tick()
                return ""

            failures = list(movers.map(fetch, range(len(request.frames))))
            return checkpoint.imported(request, failures, file)
    except SyscallError as error:
        return checkpoint.nothing_imported(request, error.reason)
